"""Reads the annotation files of data sets into rows: one row per video and split, with all its texts.

`adapters.py` lists the forms. Each name is looked up in the folder of videos, with or without an extension; a name
without a folder is also looked up in subfolders. Absolute paths, and paths that start in a parent folder, are relative
to `root`. WebVid's videos are fetched from their `contentUrl` if the folder has no media.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.log import log
from alpro.progress import progress
from alpro.shards.database import database
from alpro.shards.schema import IMAGE_EXTENSIONS, SPLITS, VIDEO_EXTENSIONS, Question, Reject, Row
from alpro.shards.sources.adapters import (
    MSRVTT,
    NAMES,
    Entry,
    form_of,
    read_annotations,
    read_entry,
    split_name,
    unused,
)
from alpro.shards.sources.downloads import is_downloads, scan_downloads
from alpro.shards.sources.manifest import Groups, Ids, scan_manifest
from alpro.shards.storage import Location, resolve
from alpro.shards.storage import suffix as extension_of

TEXTS = "texts"  # the file that has the texts of files that only list videos
ANNOTATION_FILES = (*SPLITS, TEXTS)
# Several files of one split are keyed train, train.2, train.3 and so on.
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
RECORD_EXTENSIONS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")

# Called with each folder and file that rows depend on, besides their own files; with None for what cannot be checked.
Note = Callable[[Path | None], None]


def ignore(path: Path | None) -> None:
    """Notes nothing."""


def scan_source(
    data: Location,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    group_pattern: str = "",
    note: Note = ignore,
) -> Iterator[Row | Reject]:
    """Yields the rows of the annotation files (by split) if there are any, otherwise of the manifest, the folder, the
    shards of video2dataset or img2dataset in it, or the file in the form of a known data set, whose videos lie beside
    it or below. note: called with what the rows depend on, for sources that `can_be_noted`."""
    if annotations:
        return scan_annotations(Path(data), annotations, root, group_pattern, note)
    if is_downloads(data):
        return scan_downloads(data, group_pattern)
    if isinstance(data, Path) and (file := annotation_file(data)):
        return scan_annotations(file.parent, {"": file}, root, group_pattern, note)
    return scan_manifest(table_of(data) or data, group_pattern)


def has_questions(data: Location) -> bool:
    """Whether the data has a question; also if it cannot be read, which the plan reports. Of a folder with texts beside
    its videos, which has none, only the first is read."""
    try:
        rows = scan_source(data)
        if isinstance(data, Path) and not table_of(data) and not is_downloads(data):
            rows = islice(rows, 1)
        return any(isinstance(row, Row) and row.questions for row in rows)
    except InputError:
        return True


def can_be_noted(data: Location, annotations: Mapping[str, Path] | None) -> bool:
    """Whether a source is a local manifest, whose rows name their files, or has annotation files. Not a folder whose
    texts lie beside the videos."""
    if not isinstance(data, Path) or is_downloads(data):
        return False
    return bool(annotations) or data.is_file()


def annotation_file(data: Path) -> Path | None:
    """The file `data`, or the only table of that folder, if it is in the form of a known data set. None otherwise: a
    manifest names its files in `path`."""
    file = table_of(data)
    if file is None or not file.is_file():
        return None
    try:
        first = next((record for _, record in read_annotations(file) if isinstance(record, dict)), None)
    except InputError:
        return None  # the caller reads it again and reports it
    form = form_of(first) if first and "path" not in first else None
    return None if form in (None, NAMES) else file


def table_of(data: Location) -> Path | None:
    """A file itself; for a folder without texts beside its videos, the only table in it, or None."""
    if not isinstance(data, Path) or not data.is_dir():
        return data if isinstance(data, Path) else None
    tables = [p for p in sorted(data.iterdir()) if p.name.removesuffix(".gz").endswith(RECORD_EXTENSIONS)]
    tables = [p for p in tables if p.is_file() and not is_download(p)]
    if len(tables) != 1 or any(Path(path).with_suffix(".txt").is_file() for path in walk_media(data)):
        return None
    return tables[0]


def is_download(file: Path) -> bool:
    """Whether a file lies beside a shard, or a folder, that video2dataset or img2dataset has written."""
    stem = file.with_name(file.name.partition(".")[0].removesuffix("_stats"))
    return stem.is_dir() or stem.with_suffix(".tar").is_file()


def scan_annotations(
    videos: Path, files: Mapping[str, Path], root: Path | None = None, group_pattern: str = "", note: Note = ignore
) -> Iterator[Row | Reject]:
    """Yields a row per video and split, in the order of the files, and a reject for each invalid line.

    files: an annotation file for each split; with the key "", of all splits, as its records name them; with the key
    "texts", the texts of the videos that the others only list. Further files of a split, keyed as in `keyed`, add texts
    to its videos, whose names may lack the extension in one of them. root: the folder that the names in the files are
    relative to, here or on the machine where the files were written; default: `videos`. group_pattern: as in
    `scan_manifest`, applied to a video's name. A missing video is also a row, so that it becomes a reject and is
    counted. Annotations are kept in a temporary file, the names of the media files in memory.

    Raises InputError if a file or the folder is missing or has an unknown format, and if most names in a file are
    absolute paths outside the folder.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    with database() as db:
        several = any(split_of(key) != key for key in files)
        annotations, ids, names = Annotations(db, several), Ids(videos, db), NameResolver(videos, root, note)
        for key, file in sorted(files.items(), key=lambda item: item[0] != TEXTS):
            split = split_of(key)
            note(file)
            with progress(f"reading {file.name}", None, "records") as advance:
                yield from read_file(file, split, annotations, names, TEXTS in files and split != TEXTS, advance)
        media, groups = MediaFiles(videos, note), Groups(group_pattern)
        empty = True
        for video in annotations:
            empty = False
            row_id = video.name if video.only_split else f"{video.split}/{video.name}"
            try:
                path = media.locate(video, names)
                str(path).encode()  # a folder name may not be valid UTF-8
            except (ValueError, InputError) as error:
                yield Reject(id=row_id, path="", reason="bad row", detail=str(error))
                continue
            ids.add(row_id, f"{video.name} ({video.split})")
            yield Row(
                id=row_id,
                path=path,
                kind="image" if extension_of(path) in IMAGE_EXTENSIONS else "video",
                captions=tuple(video.captions),
                questions=tuple(Question(**question) for question in video.questions),
                split=video.split,
                group=groups.of(video.name),
            )
        groups.check(videos)
    if empty:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations")


def keyed(files: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The annotation files, several for a split, each under a key of its own.

    >>> list(keyed({"train": ["a.json", "b.json"], "test": ["c.json"]}))
    ['train', 'train.2', 'test']
    """
    return {
        split if number == 1 else f"{split}.{number}": Path(file)
        for split, names in files.items()
        for number, file in enumerate(names, 1)
    }


def split_of(key: str) -> str:
    """The split of a key of `keyed`."""
    return key.partition(".")[0]


def read_file(
    file: Path, split: str, annotations: "Annotations", names: "NameResolver", lists: bool, advance: Callable[[], None]
) -> Iterator[Reject]:
    """Adds the records of a file to the annotations, calls `advance` for each, and yields a reject for each invalid
    one."""
    if not file.is_file():
        raise InputError(f"{file}: no such annotation file ({split})")
    others: set[str] = set()  # splits of the file's own that are not read
    taken = False
    for where, record in read_annotations(file):
        advance()
        try:
            if isinstance(record, str):
                raise ValueError(record)
            form, entry = read_entry(record, file, lists)
            if not taken:
                announce(file, form.name + unused(record, form), split)
            own = split if split else split_name(entry.split)
            if form is MSRVTT and split in SPLITS and (named := split_name(entry.split)) not in ("", split):
                others.add(named)
                continue
            taken = True
            if problem := annotations.add(own, entry, names):
                raise ValueError(problem)
        except ValueError as error:
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=str(error))
    if others and not taken:
        raise InputError(f"{file}: no video of the split {split}; its videos are of {' and '.join(sorted(others))}")
    names.check(file)


@lru_cache(maxsize=64)
def announce(file: Path, form: str, split: str) -> None:
    """Prints, once, which form the records of a file have that is in the place of a manifest."""
    if not split:
        log.info(f"{file}: read as {form}; its videos are looked up in {file.parent}")


@dataclass(frozen=True)
class Video:
    """The annotations of a video in a split."""

    split: str
    name: str
    other_names: list[str]
    url: str
    only_split: bool
    captions: list[str]
    questions: list[dict[str, str]]


class Annotations:
    """The captions and questions of each video, in a database. several: a split may have several files."""

    def __init__(self, db: sqlite3.Connection, several: bool = False):
        self.db, self.several = db, several
        self.db.execute("create table videos (n integer primary key, name, split, about, unique (name, split))")
        self.db.execute("create table texts (video, kind, text)")

    def add(self, split: str, entry: Entry, names: "NameResolver") -> str:
        """Adds what a record says of a video. Returns why it has no text, or an empty string; the video itself is added
        anyway. Raises ValueError if its name is not a name in the folder of videos."""
        try:
            name = names.relative(entry.name)
        except ValueError as error:
            raise ValueError(f"name {entry.name!r} {error}") from None
        name = self.same_video(name, split)
        about = json.dumps([entry.other_names, entry.url])
        self.db.execute("insert or ignore into videos (name, split, about) values (?, ?, ?)", (name, split, about))
        (video,) = self.db.execute("select n from videos where name = ? and split = ?", (name, split)).fetchone()
        texts = ((video, entry.kind, json.dumps(text)) for text in entry.texts)
        self.db.executemany("insert into texts values (?, ?, ?)", texts)
        return entry.problem

    def same_video(self, name: str, split: str) -> str:
        """The name by which an earlier file of the split has a video: with or without an extension."""
        if not self.several:
            return name
        stem = name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in MEDIA_EXTENSIONS else name
        names = (name, stem, *(stem + extension for extension in sorted(MEDIA_EXTENSIONS)))
        marks = ", ".join("?" * len(names))
        query = f"select name from videos where split = ? and name in ({marks}) order by name != ? limit 1"
        known = self.db.execute(query, (split, *names, name)).fetchone()
        return known[0] if known else name

    def __iter__(self) -> Iterator[Video]:
        """Yields the videos in insertion order. Sentences become one caption, a paragraph. A video without texts of its
        own has those of the file of texts."""
        self.db.execute("create index of_video on texts (video)")
        videos = self.db.execute("select n, name, split, about from videos where split != ? order by n", (TEXTS,))
        count = "select count(*) from videos where name = ? and split != ?"
        for video, name, split, about in videos:
            (splits,) = self.db.execute(count, (name, TEXTS)).fetchone()
            texts = self.texts(video)
            if not any(texts.values()):
                listed = self.db.execute("select n from videos where name = ? and split = ?", (name, TEXTS)).fetchone()
                texts = self.texts(listed[0]) if listed else texts
            paragraph = [" ".join(texts["sentence"])] if texts["sentence"] else []
            other_names, url = json.loads(about)
            captions = texts["caption"] + paragraph
            yield Video(split, name, other_names, url, splits == 1, captions, texts["question"])

    def texts(self, video: int) -> dict[str, list[Any]]:
        texts: dict[str, list[Any]] = {"caption": [], "question": [], "sentence": []}
        for kind, text in self.db.execute("select kind, text from texts where video = ? order by rowid", (video,)):
            texts[kind].append(json.loads(text))
        return texts


class NameResolver:
    """Resolves names in annotation files to paths in the folder of videos, and counts absolute paths outside it."""

    def __init__(self, videos: Path, root: Path | None, note: Note = ignore):
        self.videos, self.note = videos, note
        self.root = Path(os.path.normpath(root.absolute())) if root else videos
        self.total, self.outside, self.example = 0, 0, ""

    def relative(self, name: str) -> str:
        """The path of a name relative to the folder of videos. Raises ValueError if it is outside."""
        if "\0" in name or not Path(name).name:
            raise ValueError("names no file in the folder of videos")
        self.total += 1
        if self.root == self.videos and not name.startswith(("/", "..")) and os.path.normpath(name) == name:
            return name  # the usual case, in a tenth of the time
        path = Path(os.path.normpath(self.root / name))
        for candidate in (path, _real_folder(path.parent) / path.name):
            if candidate is not path:
                self.note(None)  # depends on links
            for folder in (self.videos, self.root):
                if candidate.is_relative_to(folder) and candidate != folder:
                    return str(candidate.relative_to(folder))
            if not Path(name).is_absolute():
                raise ValueError("names no file in the folder of videos")
        self.outside += 1
        self.example = name
        raise ValueError(f"is an absolute path outside {self.root}")

    def check(self, file: Path) -> None:
        """Raises InputError if most names of a file are absolute paths outside: the setting `root` fixes all."""
        if 2 * self.outside > self.total:
            raise InputError(
                f"{file}: {self.outside} of {self.total} names are absolute paths outside {self.root}, such as "
                f"{self.example!r}; set `root` of the corpus to the folder in them that corresponds to {self.videos}"
            )
        self.total = self.outside = 0


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> Path:
    """A folder with symbolic links resolved: annotations may name the videos through a link."""
    return Path(os.path.realpath(folder))


class MediaFiles:
    """The media files of a folder, looked up by the names in annotation files."""

    def __init__(self, folder: Path, note: Note = ignore):
        self.folder = folder
        self.by_stem: dict[str, str | list[str]] = {}  # paths; a million lists of Path objects would take a gigabyte
        with progress("listing media", None, "files") as advance:
            for path in walk_media(folder, note):
                advance()
                stem = media_stem(path.rpartition("/")[2])
                before = self.by_stem.setdefault(stem, path)
                if before is not path:
                    self.by_stem[stem] = [*([before] if isinstance(before, str) else before), path]

    def locate(self, video: Video, names: NameResolver) -> Location:
        """The file of a video, by its name or another of its names; its URL if the folder has no media. Raises
        ValueError as `find`, and InputError if the URL is not on a network."""
        if not self.by_stem and video.url:
            return resolve(self.folder, video.url)
        for place, name in enumerate((video.name, *video.other_names)):
            with suppress(ValueError):  # ambiguous: another of its names may not be
                path, exists = self._find(names.relative(name) if place else name)
                if exists or is_file(path):
                    return path
        return self.find(video.name)

    def find(self, name: str) -> Path:
        """The file that a name refers to; if there is none, the path where it is expected.

        The file with exactly this name comes first, then the name with an extension, in the same folder. A name
        without a folder also matches files in subfolders. A name with a video extension never matches an image, nor
        the reverse; a name without an extension prefers the video. Raises ValueError if it matches several files.
        """
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[Path, bool]:
        """As `find`, and whether the path is known to be a file."""
        exact = self.folder / name
        if is_file(exact):
            return exact, True
        has_extension = exact.suffix.lower() in MEDIA_EXTENSIONS
        only = self.by_stem.get(exact.name)
        if not has_extension and isinstance(only, str) and only.rpartition("/")[0] == str(exact.parent):
            return Path(only), False  # the usual case, in a fifth of the time
        with_extension = self.with_stem(exact.name)
        candidates = [[path for path in with_extension if path.parent == exact.parent]]
        if exact.parent == self.folder:
            other_extension = self.with_stem(exact.stem) if has_extension else []
            same_name = [path for path in other_extension if path.name == exact.name]
            candidates += [same_name, with_extension, other_extension]
        for paths in candidates:
            if paths and (match := self._select(paths, exact.suffix.lower())):
                return match, False
        return exact if has_extension else exact.with_name(f"{exact.name}.mp4"), False

    def with_stem(self, stem: str) -> list[Path]:
        """The media files with this name before the extension, sorted."""
        paths = self.by_stem.get(stem, [])
        return [Path(paths)] if isinstance(paths, str) else sorted(map(Path, paths))

    def _select(self, paths: list[Path], extension: str) -> Path | None:
        """The first video, otherwise the first image, that a name with this extension matches."""
        for same, other in ((VIDEO_EXTENSIONS, IMAGE_EXTENSIONS), (IMAGE_EXTENSIONS, VIDEO_EXTENSIONS)):
            matches = [path for path in paths if path.suffix.lower() in same and extension not in other]
            if len({path.parent for path in matches}) > 1:
                first, second = (path.relative_to(self.folder) for path in matches[:2])
                raise ValueError(f"the name could mean {first} or {second}")
            if matches:
                return matches[0]
        return None


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an invalid file name
        return False


def walk_media(folder: Path, note: Note = ignore) -> Iterator[str]:
    """The paths of the media files in a folder and below. note: called with each folder, or with None for a link to a
    folder, whose files are not walked."""
    for root, folders, names in os.walk(folder):
        note(Path(root))
        if any(os.path.islink(os.path.join(root, name)) for name in folders):  # noqa: PTH118, PTH114
            note(None)
        for name in names:
            if name[len(media_stem(name)) :].lower() in MEDIA_EXTENSIONS:
                yield f"{root}/{name}" if root != "/" else f"/{name}"


def media_stem(name: str) -> str:
    """A file name without its extension, as pathlib's `stem`.

    >>> [media_stem(name) for name in ("a.mp4", "a.b.mp4", ".mp4", "a.", "a")]
    ['a', 'a.b', '.mp4', 'a.', 'a']
    """
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name
