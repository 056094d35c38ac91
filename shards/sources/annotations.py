"""Reads the annotation files of data sets into rows: one row per video and split, with all its texts.

`forms.py` lists the forms. Each name is looked up in the folder of videos, with or without an extension; a name
without a folder is also looked up in subfolders. Absolute paths, and paths that start in a parent folder, are relative
to `root`. WebVid's videos are fetched from their `contentUrl` if the folder has no media.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.log import log
from alpro.progress import progress
from alpro.shards.schema import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, SPLITS, VIDEO_EXTENSIONS, Question, Reject, Row
from alpro.shards.sources.forms import MSRVTT, QUESTIONS, Entry, read_entry, split_name
from alpro.shards.sources.records import read_records
from alpro.shards.storage import Location, resolve
from alpro.shards.storage import suffix as extension_of

TEXTS = "texts"  # the file that has the texts of files that only list videos
ANNOTATION_FILES = (*SPLITS, TEXTS)


@dataclass
class Video:
    """What the annotation files say of a video in a split."""

    split: str
    name: str
    path: Location
    problem: str  # why there is no path
    captions: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # that together are one caption
    questions: list[dict[str, str]] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        texts: list[Any] = self.sentences if entry.form.joined == "video" else self.captions
        (self.questions if entry.form is QUESTIONS else texts).extend(entry.texts)

    def row(self, row_id: str, texts: "Video") -> Row | Reject:
        """texts: the video with the texts, itself or that of another file."""
        if self.problem:
            return Reject(id=row_id, path="", reason="bad row", detail=self.problem)
        return Row(
            id=row_id,
            path=self.path,
            kind="image" if extension_of(self.path) in IMAGE_EXTENSIONS else "video",
            captions=(*texts.captions, *([" ".join(texts.sentences)] if texts.sentences else [])),
            questions=tuple(Question(**question) for question in texts.questions),
            split=self.split,
            name=self.name,
        )


def scan_annotations(videos: Path, files: Mapping[str, Path], root: Path | None = None) -> Iterator[Row | Reject]:
    """Yields a row per video and split, in the order of the files, and a reject for each invalid record.

    files: an annotation file for each split; with the key "", of all splits, as its records name them; with the key
    "texts", the texts of the videos that the others only list. Further files of a split, keyed as in `keyed`, add texts
    to its videos. root: the folder that the names in the files are relative to, here or on the machine where the files
    were written; default: `videos`. A missing video is also a row, so that it becomes a reject and is counted.

    Raises InputError if a file or the folder is missing or has an unknown format.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    media, joined, bad = MediaFiles(videos, root), dict[tuple[str, str], Video](), ""
    for key, file in files.items():
        with progress(f"reading {file.name}", None, "records") as advance:
            for reject in read_file(file, split_of(key), joined, media, TEXTS in files and key != TEXTS, advance):
                bad = bad or f"; {reject.id}: {reject.detail}"
                yield reject
    splits = Counter(place for split, place in joined if split != TEXTS)
    if not splits:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations{bad}")
    for (split, place), video in joined.items():
        if split != TEXTS:
            has_texts = video.captions or video.sentences or video.questions
            texts = video if has_texts else joined.get((TEXTS, place), video)
            yield video.row(video.name if splits[place] == 1 else f"{split}/{video.name}", texts)


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
    others: set[str] = set()  # splits of an MSR-VTT file that are not read
    taken = False
    for where, record in read_records(file):
        advance()
        try:
            if isinstance(record, str):
                raise ValueError(record)
            entry = read_entry(record, file, lists)
            own = split_name(record.get("split")) if entry.form is MSRVTT or not split else ""
            if split in SPLITS and own not in ("", split):
                others.add(own)
                continue
            if not taken and not split:
                announce(file, entry.form.title)
            taken = True
            name, path, problem = media.locate(entry)
            key = split or own, str(path) or name
            joined.setdefault(key, Video(key[0], name, path, problem)).add(entry)
        except ValueError as error:
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=str(error))
    if others and not taken:
        raise InputError(f"{file}: no video of the split {split}; its videos are of {' and '.join(sorted(others))}")


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
        self.located: dict[str, tuple[str, Location, str]] = {}
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)  # paths by their names without the extension
        with progress("listing media", None, "files") as advance:
            for path in walk(folder, MEDIA_EXTENSIONS):
                advance()
                self.by_stem[media_stem(path.rpartition("/")[2])].append(path)

    def locate(self, entry: Entry) -> tuple[str, Location, str]:
        """The name of a video relative to the folder, and its path: that of one of its names, its URL if the folder has
        no media, or where it is expected. Instead of the path a reason if the names mean several files.

        Raises ValueError if the name is none in the folder.
        """
        if entry.name not in self.located:
            name = self.relative(entry.name)
            try:
                path = self._path(name, entry)
                str(path).encode()  # a folder name may not be valid UTF-8
                self.located[entry.name] = name, path, ""
            except (ValueError, InputError) as error:
                self.located[entry.name] = name, "", str(error)
        return self.located[entry.name]

    def _path(self, name: str, entry: Entry) -> Location:
        if entry.url and not self.by_stem:
            return resolve(self.folder, entry.url)
        for place, other in enumerate((name, *entry.other_names)):
            with suppress(ValueError):  # ambiguous: another of its names may not be
                if is_file(path := self.find(self.relative(other) if place else other)):
                    return path
        return self.find(name)

    def relative(self, name: str) -> str:
        """The path of a name relative to the folder of videos. Raises ValueError if it is outside."""
        path = os.path.normpath(os.path.join(self.root, name))  # noqa: PTH118 (much faster)
        for folder in (f"{self.folder}/", f"{self.root}/") if Path(name).name else ():
            if path.startswith(folder):
                return path.removeprefix(folder)
        if name.startswith("/"):
            raise ValueError(
                f"name {name!r} is an absolute path outside {self.root}; set `root` of the corpus to the folder in it "
                f"that corresponds to {self.folder}"
            )
        raise ValueError(f"name {name!r} names no file in the folder of videos")

    def find(self, name: str) -> Path:
        """The file that a name refers to; if there is none, the path where it is expected.

        The file with exactly this name comes first, then one in the same folder with another extension, or an
        extension where the name has none. A name without a folder also matches files in subfolders. A name with a
        video extension never matches an image, nor the reverse; a name without an extension prefers the video. Raises
        ValueError if it matches several files.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        ending = exact.suffix.lower()
        other_kind = IMAGE_EXTENSIONS if ending in VIDEO_EXTENSIONS else VIDEO_EXTENSIONS
        has_extension = ending in MEDIA_EXTENSIONS
        matches: defaultdict[tuple[bool, ...], list[Path]] = defaultdict(list)  # by how far they are from the name
        for stem in {exact.name, exact.stem} if has_extension else {exact.name}:
            for path in map(Path, self.by_stem.get(stem, [])):
                beside, own = path.parent == exact.parent, path.suffix.lower()
                if (beside or exact.parent == self.folder) and not (has_extension and own in other_kind):
                    far = not beside, path.name != exact.name, stem != exact.name, own in IMAGE_EXTENSIONS
                    matches[far].append(path)
        if not matches:
            return exact if has_extension else exact.with_name(f"{exact.name}.mp4")
        found = sorted(matches[min(matches)])
        if found[0].parent != found[-1].parent:
            raise ValueError(f"the name could mean {' or '.join(str(p.relative_to(self.folder)) for p in found[:2])}")
        return found[0]


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
