"""The official annotation files of the data sets, as rows: one a video, with everything that was said of it.

    MSRVTT, DiDeMo, MSVD retrieval   {"caption", "clip_name"}; a list of captions is one paragraph (DiDeMo)
    MSRVTT-QA, MSVD-QA               {"question", "answer", "video_id", "answer_type"}
    WebVid                           a table with videoid and name (the caption), page_dir or not
    CC3M                             a list of {"image", "caption"}; a list of captions is so many captions

Which form a file has is seen from its columns. What a file names is looked for in the folder of videos, with or without
an extension; a name without a folder also below it. Names that are absolute paths, or begin in a folder above, count
from `root`.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.database import database
from alpro.shards.manifest import Groups, Ids, question_type, scan_manifest
from alpro.shards.records import plain, read_records
from alpro.shards.schema import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, Question, Reject, Row
from alpro.shards.storage import Location

NAMES = ("clip_name", "video_id", "videoid", "gif_name", "image", "video")  # columns that name a video or image
TEXTS = ("caption", "sentence", "name")  # columns that hold what was said of it


def scan_source(
    data: Location, annotations: Mapping[str, Path] | None = None, root: Path | None = None, group_pattern: str = ""
) -> Iterator[Row | Reject]:
    """The rows of a manifest or folder with its texts, or, if there are annotation files (by split), of these."""
    if annotations:
        return scan_annotations(Path(data), annotations, root, group_pattern)
    return scan_manifest(data, group_pattern)


def scan_annotations(
    videos: Path, files: Mapping[str, Path], root: Path | None = None, group_pattern: str = ""
) -> Iterator[Row | Reject]:
    """Rows in the order of the files, one a video and split; and the lines that are no annotation.

    files: an annotation file for each split. root: the folder from which the names in the files count, here or on the
    machine where the files were written; default: `videos`. group_pattern: as in `scan_manifest`, searched in a video's
    name. A video that is named and not there is a row all the same,
    so that it ends among the rejects and is counted. What the files say is held in a temporary file, the names of the
    folder's media in memory. Raises InputError if a file or the folder is missing or has no known form, and if most
    names in a file are absolute paths outside.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    with database() as db:
        found, ids, names = Said(db), Ids(videos, db), Names(videos, root)
        for split, file in files.items():
            if not file.is_file():
                raise InputError(f"{file}: no such annotation file ({split})")
            for where, record in read_records(file):
                told = record if isinstance(record, str) else collect(record, split, found, names, file)
                if told:
                    yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=told)
            names.check(file)
        places, groups = Places(videos), Groups(group_pattern)
        empty = True
        for split, name, alone, captions, questions in found:
            empty = False
            identity = name if alone else f"{split}/{name}"
            try:
                path = places.find(name)
                str(path).encode()  # a folder's name may be none
            except ValueError as error:
                yield Reject(id=identity, path="", reason="bad row", detail=str(error))
                continue
            ids.add(identity, f"{name} ({split})")
            yield Row(
                id=identity,
                path=path,
                kind="image" if path.suffix.lower() in IMAGE_EXTENSIONS else "video",
                captions=tuple(captions),
                questions=tuple(Question(**asked) for asked in questions),
                split=split,
                group=groups.of(name),
            )
        groups.check(videos)
    if empty:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations")


class Said:
    """Everything that annotation files say of each video, in a database."""

    def __init__(self, db: sqlite3.Connection):
        self.db = db
        self.db.execute("create table videos (n integer primary key, name, split, unique (name, split))")
        self.db.execute("create table said (video, kind, text)")

    def add(self, split: str, name: str, kind: str, texts: Iterable[Any]) -> None:
        """Something said of a video: captions, or questions; or nothing, so that the video is known."""
        self.db.execute("insert or ignore into videos (name, split) values (?, ?)", (name, split))
        (video,) = self.db.execute("select n from videos where name = ? and split = ?", (name, split)).fetchone()
        self.db.executemany("insert into said values (?, ?, ?)", ((video, kind, json.dumps(text)) for text in texts))

    def __iter__(self) -> Iterator[tuple[Any, str, bool, list[str], list[dict[str, str]]]]:
        """Each video as they came: split, name, whether it is in no other split, captions, questions."""
        self.db.execute("create index of_video on said (video)")
        for video, name, split in self.db.execute("select n, name, split from videos order by n"):
            (splits,) = self.db.execute("select count(*) from videos where name = ?", (name,)).fetchone()
            said: dict[str, list[Any]] = {"caption": [], "question": []}
            for kind, text in self.db.execute("select kind, text from said where video = ? order by rowid", (video,)):
                said[kind].append(json.loads(text))
            yield split, name, splits == 1, said["caption"], said["question"]


class Names:
    """Resolves names in annotation files to paths in the folder of videos, and counts absolute paths outside of it."""

    def __init__(self, videos: Path, root: Path | None):
        self.videos = videos
        self.root = Path(os.path.normpath(root.absolute())) if root else videos
        self.total, self.outside, self.example = 0, 0, ""

    def inside(self, name: str) -> str:
        """The path of a name, relative to the folder of videos. Raises ValueError if it is outside."""
        if "\0" in name or not Path(name).name:
            raise ValueError("names no file in the folder of videos")
        self.total += 1
        path = Path(os.path.normpath(self.root / name))
        for place in (path, _real_folder(path.parent) / path.name):
            for folder in (self.videos, self.root):
                if place.is_relative_to(folder) and place != folder:
                    return str(place.relative_to(folder))
            if not Path(name).is_absolute():
                raise ValueError("names no file in the folder of videos")
        self.outside += 1
        self.example = name
        raise ValueError(f"is an absolute path outside {self.root}")

    def check(self, file: Path) -> None:
        """Raises InputError if most names of a file are absolute paths outside: one setting fixes all of them."""
        if 2 * self.outside > self.total:
            raise InputError(
                f"{file}: {self.outside} of {self.total} names are absolute paths outside {self.root}, such as "
                f"{self.example!r}; set `root` of the corpus to the folder in them that corresponds to {self.videos}"
            )
        self.total = self.outside = 0


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> Path:
    """A folder with symbolic links resolved: lists may name the videos through a link."""
    return Path(os.path.realpath(folder))


def collect(record: dict[str, Any], split: str, found: Said, names: Names, file: Path) -> str:
    """Adds one line to what is said of its video; returns why it cannot be, or nothing."""
    key = next((key for key in NAMES if key in record), None)
    text = next((key for key in TEXTS if key in record), None)
    asked = "question" in record and "answer" in record
    if key is None or not (text or asked):
        raise InputError(
            f"{file}: columns {', '.join(sorted(record))} are those of no known annotation file; known are caption "
            "with clip_name, question and answer with video_id, name with videoid, caption with image"
        )
    try:
        record = plain(record, (*NAMES, *TEXTS, "question", "answer"))
    except ValueError as error:
        return str(error)
    name = "" if record[key] is None else str(record[key])
    try:
        name = names.inside(name)
    except ValueError as error:
        return f"{key} {name!r} {error}"
    if asked:
        question, answer = (" ".join(str(record[part] or "").split()) for part in ("question", "answer"))
        whole = question and answer
        kind = question_type(str(record.get("answer_type") or question.split()[0])) if whole else ""
        found.add(split, name, "question", [{"question": question, "answer": answer, "type": kind}] if whole else [])
        return "" if whole else "a question without a text or an answer"
    given = record[text] if text else None
    texts = given if isinstance(given, list) else [given]
    clean = [" ".join(str(one).split()) for one in texts if one and str(one).strip()]
    found.add(split, name, "caption", clean if key == "image" or not clean else [" ".join(clean)])
    return "" if clean else "no caption"


class Places:
    """The media files of a folder, to be found by what annotations call them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.by_stem: dict[str, list[Path]] = {}
        for path in sorted(walk(folder)):
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, name: str) -> Path:
        """The file that a name means; where there is none, where it should be.

        The file of this name comes first, then this name with an extension, in the folder that it names. A name
        without a folder may also mean a file below. A name with a video's extension is never an image's, nor the other
        way round; one without means the video rather than the image. Raises ValueError where it could mean several.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        ended = exact.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
        longer = self.by_stem.get(exact.name, [])
        candidates = [[path for path in longer if path.parent == exact.parent]]
        if exact.parent == self.folder:
            alike = self.by_stem.get(exact.stem, []) if ended else []  # with another extension, where it has one
            candidates += [[path for path in alike if path.name == exact.name], longer, alike]
        for paths in candidates:
            if found := self.one_of(paths, exact.suffix.lower()):
                return found
        return exact if ended else exact.with_name(f"{exact.name}.mp4")

    def one_of(self, paths: list[Path], extension: str) -> Path | None:
        """The first video, or else the first image, that a name with this extension can mean."""
        for same, other in ((VIDEO_EXTENSIONS, IMAGE_EXTENSIONS), (IMAGE_EXTENSIONS, VIDEO_EXTENSIONS)):
            found = [path for path in paths if path.suffix.lower() in same and extension not in other]
            if len({path.parent for path in found}) > 1:
                first, second = (path.relative_to(self.folder) for path in found[:2])
                raise ValueError(f"the name could mean {first} or {second}")
            if found:
                return found[0]
        return None


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def walk(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                yield path
