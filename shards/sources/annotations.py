"""Reads the annotation files of data sets into rows: one row per video and split, with all its texts.

`forms.py` lists the forms. Each name is looked up in the folder of videos, with or without an extension; a name
without a folder is also looked up in subfolders. Absolute paths, and paths that start in a parent folder, are relative
to `root`. WebVid's videos are fetched from their `contentUrl` if the folder has no media.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.log import log
from alpro.progress import progress
from alpro.shards.schema import IMAGE_EXTENSIONS, SPLITS, VIDEO_EXTENSIONS, Question, Reject, Row
from alpro.shards.sources.forms import MSRVTT, Entry, read_entry, split_name, unused
from alpro.shards.sources.records import read_records
from alpro.shards.storage import Location, resolve
from alpro.shards.storage import suffix as extension_of

TEXTS = "texts"  # the file that has the texts of files that only list videos
ANNOTATION_FILES = (*SPLITS, TEXTS)
# Several files of one split are keyed train, train.2, train.3 and so on.
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


@dataclass
class Video:
    """What the annotation files say of a video in a split."""

    split: str
    name: str
    path: Location = ""
    problem: str = ""  # why there is no path
    texts: list[tuple[str, Any]] = field(default_factory=list)  # with their kinds

    def row(self, row_id: str) -> Row | Reject:
        if self.problem:
            return Reject(id=row_id, path="", reason="bad row", detail=self.problem)
        sentences = " ".join(text for kind, text in self.texts if kind == "sentence")
        captions = [text for kind, text in self.texts if kind == "caption"] + ([sentences] if sentences else [])
        return Row(
            id=row_id,
            path=self.path,
            kind="image" if extension_of(self.path) in IMAGE_EXTENSIONS else "video",
            captions=tuple(captions),
            questions=tuple(Question(**text) for kind, text in self.texts if kind == "question"),
            split=self.split,
            name=self.name,
        )


def scan_annotations(videos: Path, files: Mapping[str, Path], root: Path | None = None) -> Iterator[Row | Reject]:
    """Yields a row per video and split, in the order of the files, and a reject for each invalid line.

    files: an annotation file for each split; with the key "", of all splits, as its records name them; with the key
    "texts", the texts of the videos that the others only list. Further files of a split, keyed as in `keyed`, add texts
    to its videos. root: the folder that the names in the files are relative to, here or on the machine where the files
    were written; default: `videos`. A missing video is also a row, so that it becomes a reject and is counted.

    Raises InputError if a file or the folder is missing or has an unknown format, and if most names in a file are
    absolute paths outside the folder.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    media, joined = MediaFiles(videos, root), dict[tuple[str, str], Video]()
    for key, file in sorted(files.items(), key=lambda item: item[0] != TEXTS):
        with progress(f"reading {file.name}", None, "records") as advance:
            yield from read_file(file, split_of(key), joined, media, TEXTS in files and key != TEXTS, advance)
    listed = [(split, place) for split, place in joined if split != TEXTS]
    splits = Counter(place for _, place in listed)
    if not listed:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations")
    for split, place in listed:
        video = joined[split, place]
        if not video.texts and (texts := joined.get((TEXTS, place))):
            video.texts = texts.texts
        yield video.row(video.name if splits[place] == 1 else f"{split}/{video.name}")


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
    file: Path,
    split: str,
    joined: dict[tuple[str, str], Video],
    media: "MediaFiles",
    lists: bool,
    advance: Callable[[], None],
) -> Iterator[Reject]:
    """Adds the texts of a file to the videos, calls `advance` for each record, and yields a reject for each invalid
    one. joined: the videos by split and path. lists: another file has the texts of the videos."""
    if not file.is_file():
        raise InputError(f"{file}: no such annotation file ({split})")
    others: set[str] = set()  # splits of the file's own that are not read
    taken = False
    for where, record in read_records(file):
        advance()
        try:
            if isinstance(record, str):
                raise ValueError(record)
            form, entry = read_entry(record, file, lists)
            if not taken and not split:
                announce(file, form.title + unused(record, form))
            own = split or split_name(record.get("split"))
            if form is MSRVTT and split in SPLITS and (named := split_name(record.get("split"))) not in ("", split):
                others.add(named)
                continue
            taken = True
            name, path, problem = media.locate(entry)
            video = joined.setdefault((own, str(path) or name), Video(own, name, path, problem))
            video.texts += [(entry.kind, text) for text in entry.texts]
            if entry.problem:
                raise ValueError(entry.problem)
        except ValueError as error:
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=str(error))
    if others and not taken:
        raise InputError(f"{file}: no video of the split {split}; its videos are of {' and '.join(sorted(others))}")
    media.check(file)


@lru_cache(maxsize=64)
def announce(file: Path, form: str) -> None:
    """Prints, once, which form the records of a file have that is in the place of a manifest."""
    log.info(f"{file}: read as {form}; its videos are looked up in {file.parent}")


class MediaFiles:
    """The media files of a folder, looked up by the names in annotation files.

    root: the folder that the names are relative to, here or on another machine.
    """

    def __init__(self, folder: Path, root: Path | None = None):
        self.folder = folder
        self.root = Path(os.path.normpath(root.absolute())) if root else folder
        self.total, self.outside, self.example = 0, 0, ""
        self.located: dict[str, tuple[str, Location, str]] = {}
        self.by_stem: dict[str, str | list[str]] = {}  # paths; a million lists of Path objects would take a gigabyte
        with progress("listing media", None, "files") as advance:
            for path in walk(folder, MEDIA_EXTENSIONS):
                advance()
                stem = media_stem(path.rpartition("/")[2])
                before = self.by_stem.setdefault(stem, path)
                if before is not path:
                    self.by_stem[stem] = [*([before] if isinstance(before, str) else before), path]

    def locate(self, entry: Entry) -> tuple[str, Location, str]:
        """The name of a video relative to the folder, and its path: that of one of its names, its URL if the folder has
        no media, or where it is expected. Instead of the path a reason if the names mean several files.

        Raises ValueError if the name is none in the folder.
        """
        self.total += 1
        if located := self.located.get(entry.name):
            return located
        try:
            name = self.relative(entry.name)
        except ValueError as error:
            raise ValueError(f"name {entry.name!r} {error}") from None
        self.located[entry.name] = name, *self._locate(name, entry)
        return self.located[entry.name]

    def _locate(self, name: str, entry: Entry) -> tuple[Location, str]:
        try:
            if not self.by_stem and entry.url:
                return resolve(self.folder, entry.url), ""
            for place, other in enumerate((name, *entry.other_names)):
                with suppress(ValueError):  # ambiguous: another of its names may not be
                    if is_file(path := self.find(self.relative(other) if place else other)):
                        return path, ""
            path = self.find(name)
            str(path).encode()  # a folder name may not be valid UTF-8
            return path, ""
        except (ValueError, InputError) as error:
            return "", str(error)

    def relative(self, name: str) -> str:
        """The path of a name relative to the folder of videos. Raises ValueError if it is outside."""
        if not Path(name).name:
            raise ValueError("names no file in the folder of videos")
        if self.root == self.folder and not name.startswith(("/", "..")) and os.path.normpath(name) == name:
            return name  # the usual case, in a tenth of the time
        path = Path(os.path.normpath(self.root / name))
        for candidate in (path, _real_folder(path.parent) / path.name):
            for folder in (self.folder, self.root):
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
                f"{self.example!r}; set `root` of the corpus to the folder in them that corresponds to {self.folder}"
            )
        self.total = self.outside = 0

    def find(self, name: str) -> Path:
        """The file that a name refers to; if there is none, the path where it is expected.

        The file with exactly this name comes first, then the name with an extension, in the same folder. A name
        without a folder also matches files in subfolders. A name with a video extension never matches an image, nor
        the reverse; a name without an extension prefers the video. Raises ValueError if it matches several files.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        has_extension = exact.suffix.lower() in MEDIA_EXTENSIONS
        with_extension = self.with_stem(exact.name)
        candidates = [[path for path in with_extension if path.parent == exact.parent]]
        if exact.parent == self.folder:
            other_extension = self.with_stem(exact.stem) if has_extension else []
            same_name = [path for path in other_extension if path.name == exact.name]
            candidates += [same_name, with_extension, other_extension]
        for paths in candidates:
            if paths and (match := self._select(paths, exact.suffix.lower())):
                return match
        return exact if has_extension else exact.with_name(f"{exact.name}.mp4")

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


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> Path:
    """A folder with symbolic links resolved: annotations may name the videos through a link."""
    return Path(os.path.realpath(folder))


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an invalid file name
        return False


def walk(folder: Path, extensions: set[str]) -> Iterator[str]:
    """The paths of the files with these extensions in a folder and below; links to folders are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name[len(media_stem(name)) :].lower() in extensions:
                yield f"{place}/{name}" if place != "/" else f"/{name}"


def media_stem(name: str) -> str:
    """A file name without its extension, as pathlib's `stem`.

    >>> [media_stem(name) for name in ("a.mp4", "a.b.mp4", ".mp4", "a.", "a")]
    ['a', 'a.b', '.mp4', 'a.', 'a']
    """
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name
