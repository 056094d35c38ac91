"""Reads the official annotation files of the data sets into rows: one row per video and split, with all its texts.

    MSRVTT, DiDeMo, MSVD retrieval   {"caption", "clip_name"}; a list of captions is one paragraph (DiDeMo)
    MSRVTT-QA, MSVD-QA               {"question", "answer", "video_id", "answer_type"}
    WebVid                           a table with videoid, name (the caption) and optionally page_dir
    CC3M                             a list of {"image", "caption"}; a list of captions is several captions

The columns of a file determine its format. Each name is looked up in the folder of videos, with or without an
extension; a name without a folder is also looked up in subfolders. Absolute paths, and paths that start in a parent
folder, are relative to `root`.
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

NAME_COLUMNS = (
    "clip_name",
    "video_id",
    "videoid",
    "gif_name",
    "image",
    "video",
)  # columns that contain the name of a video or image
TEXT_COLUMNS = ("caption", "sentence", "name")  # columns that contain captions


def scan_source(
    data: Location, annotations: Mapping[str, Path] | None = None, root: Path | None = None, group_pattern: str = ""
) -> Iterator[Row | Reject]:
    """Yields the rows of the annotation files (by split) if there are any, otherwise of the manifest or folder."""
    if annotations:
        return scan_annotations(Path(data), annotations, root, group_pattern)
    return scan_manifest(data, group_pattern)


def scan_annotations(
    videos: Path, files: Mapping[str, Path], root: Path | None = None, group_pattern: str = ""
) -> Iterator[Row | Reject]:
    """Yields a row per video and split, in the order of the files, and a reject for each invalid line.

    files: an annotation file for each split. root: the folder that the names in the files are relative to, here or on
    the machine where the files were written; default: `videos`. group_pattern: as in `scan_manifest`, applied to a
    video's name. A missing video is also a row, so that it becomes a reject and is counted. Annotations are kept in a
    temporary file, the names of the media files in memory.

    Raises InputError if a file or the folder is missing or has an unknown format, and if most names in a file are
    absolute paths outside the folder.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    with database() as db:
        annotations, ids, names = Annotations(db), Ids(videos, db), NameResolver(videos, root)
        for split, file in files.items():
            if not file.is_file():
                raise InputError(f"{file}: no such annotation file ({split})")
            for where, record in read_records(file):
                problem = record if isinstance(record, str) else add_record(record, split, annotations, names, file)
                if problem:
                    yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=problem)
            names.check(file)
        media, groups = MediaFiles(videos), Groups(group_pattern)
        empty = True
        for split, name, only_split, captions, questions in annotations:
            empty = False
            row_id = name if only_split else f"{split}/{name}"
            try:
                path = media.find(name)
                str(path).encode()  # a folder name may not be valid UTF-8
            except ValueError as error:
                yield Reject(id=row_id, path="", reason="bad row", detail=str(error))
                continue
            ids.add(row_id, f"{name} ({split})")
            yield Row(
                id=row_id,
                path=path,
                kind="image" if path.suffix.lower() in IMAGE_EXTENSIONS else "video",
                captions=tuple(captions),
                questions=tuple(Question(**question) for question in questions),
                split=split,
                group=groups.of(name),
            )
        groups.check(videos)
    if empty:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations")


class Annotations:
    """The captions and questions of each video, in a database."""

    def __init__(self, db: sqlite3.Connection):
        self.db = db
        self.db.execute("create table videos (n integer primary key, name, split, unique (name, split))")
        self.db.execute("create table texts (video, kind, text)")

    def add(self, split: str, name: str, kind: str, texts: Iterable[Any]) -> None:
        """Adds captions or questions of a video. Without texts, only the video itself is added."""
        self.db.execute("insert or ignore into videos (name, split) values (?, ?)", (name, split))
        (video,) = self.db.execute("select n from videos where name = ? and split = ?", (name, split)).fetchone()
        self.db.executemany("insert into texts values (?, ?, ?)", ((video, kind, json.dumps(text)) for text in texts))

    def __iter__(self) -> Iterator[tuple[Any, str, bool, list[str], list[dict[str, str]]]]:
        """Yields the videos in insertion order: split, name, whether it is the only split, captions, questions."""
        self.db.execute("create index of_video on texts (video)")
        for video, name, split in self.db.execute("select n, name, split from videos order by n"):
            (splits,) = self.db.execute("select count(*) from videos where name = ?", (name,)).fetchone()
            texts: dict[str, list[Any]] = {"caption": [], "question": []}
            for kind, text in self.db.execute("select kind, text from texts where video = ? order by rowid", (video,)):
                texts[kind].append(json.loads(text))
            yield split, name, splits == 1, texts["caption"], texts["question"]


class NameResolver:
    """Resolves names in annotation files to paths in the folder of videos, and counts absolute paths outside it."""

    def __init__(self, videos: Path, root: Path | None):
        self.videos = videos
        self.root = Path(os.path.normpath(root.absolute())) if root else videos
        self.total, self.outside, self.example = 0, 0, ""

    def relative(self, name: str) -> str:
        """The path of a name relative to the folder of videos. Raises ValueError if it is outside."""
        if "\0" in name or not Path(name).name:
            raise ValueError("names no file in the folder of videos")
        self.total += 1
        path = Path(os.path.normpath(self.root / name))
        for candidate in (path, _real_folder(path.parent) / path.name):
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


def add_record(record: dict[str, Any], split: str, annotations: Annotations, names: NameResolver, file: Path) -> str:
    """Adds a record to the annotations of its video. Returns why it is invalid, or an empty string."""
    key = next((key for key in NAME_COLUMNS if key in record), None)
    text = next((key for key in TEXT_COLUMNS if key in record), None)
    is_question = "question" in record and "answer" in record
    if key is None or not (text or is_question):
        raise InputError(
            f"{file}: unknown annotation format with columns {', '.join(sorted(record))}; supported are caption with "
            "clip_name, question and answer with video_id, name with videoid, caption with image"
        )
    try:
        record = plain(record, (*NAME_COLUMNS, *TEXT_COLUMNS, "question", "answer"))
    except ValueError as error:
        return str(error)
    name = "" if record[key] is None else str(record[key])
    try:
        name = names.relative(name)
    except ValueError as error:
        return f"{key} {name!r} {error}"
    if is_question:
        question, answer = (" ".join(str(record[column] or "").split()) for column in ("question", "answer"))
        complete = question and answer
        kind = question_type(str(record.get("answer_type") or question.split()[0])) if complete else ""
        annotations.add(
            split, name, "question", [{"question": question, "answer": answer, "type": kind}] if complete else []
        )
        return "" if complete else "empty question or answer"
    value = record[text] if text else None
    texts = value if isinstance(value, list) else [value]
    clean = [" ".join(str(item).split()) for item in texts if item and str(item).strip()]
    annotations.add(split, name, "caption", clean if key == "image" or not clean else [" ".join(clean)])
    return "" if clean else "no caption"


class MediaFiles:
    """The media files of a folder, looked up by the names in annotation files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.by_stem: dict[str, list[Path]] = {}
        for path in sorted(walk_media(folder)):
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, name: str) -> Path:
        """The file that a name refers to; if there is none, the path where it is expected.

        The file with exactly this name comes first, then the name with an extension, in the same folder. A name
        without a folder also matches files in subfolders. A name with a video extension never matches an image, nor
        the reverse; a name without an extension prefers the video. Raises ValueError if it matches several files.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        has_extension = exact.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
        with_extension = self.by_stem.get(exact.name, [])
        candidates = [[path for path in with_extension if path.parent == exact.parent]]
        if exact.parent == self.folder:
            other_extension = self.by_stem.get(exact.stem, []) if has_extension else []
            same_name = [path for path in other_extension if path.name == exact.name]
            candidates += [same_name, with_extension, other_extension]
        for paths in candidates:
            if match := self._select(paths, exact.suffix.lower()):
                return match
        return exact if has_extension else exact.with_name(f"{exact.name}.mp4")

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


def walk_media(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                yield path
