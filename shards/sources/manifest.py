"""Reads manifests (JSON Lines, CSV, TSV, Parquet) and folders of videos with texts into rows."""

import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.shards.database import database
from alpro.shards.schema import IMAGE_EXTENSIONS, MAX_SECONDS, VIDEO_EXTENSIONS, Reject, Row
from alpro.shards.sources.adapters import hint, question_type, split_name
from alpro.shards.sources.records import plain, read_records
from alpro.shards.storage import Location, exists, is_url, parent, resolve, suffix

MAX_COLUMNS = 20  # that an error lists
TEXTS = {"caption", "captions", "questions"}
COLUMNS = {"id", "path", "kind", "start", "end", "split", "group", *TEXTS}


def scan_manifest(source: Location, group_pattern: str = "", require_texts: bool = True) -> Iterator[Row | Reject]:
    """Yields the rows of a manifest or of a folder of videos, and a reject for each invalid row, in order.

    A file (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions` or `questions`;
    optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image), `group` (items of the same source). A
    folder has videos or images, each with its captions, one per line, in a .txt of the same name. Rows are streamed;
    only their ids are kept, in a temporary file.

    group_pattern: a regular expression that takes the group of rows without one from the file's path, see `Groups`.
    require_texts: whether a column of texts is required.

    Raises InputError if the whole manifest is unusable: it is missing or unreadable, lacks a required column, repeats
    an id or has a path outside its folder. Also if the pattern matches no path.
    """
    source = source.absolute() if isinstance(source, Path) else source
    try:
        source_exists = exists(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    if not source_exists:
        raise InputError(
            f"{source}: no such file or folder; use a manifest (.jsonl, .csv, .parquet) or a folder of videos"
        )
    folder = isinstance(source, Path) and source.is_dir()
    root = source if folder else parent(source)
    groups = Groups(group_pattern)
    columns: set[str] = set()
    empty = True
    with database() as db:
        ids = Ids(source, db)
        for where, record in _folder(Path(source)) if folder else read_records(source):
            empty = False
            if isinstance(record, str):  # the reason why the record cannot be read
                yield Reject(id=where, path="", reason="bad row", detail=record)
                continue
            columns |= record.keys()
            row = _row(where, record, root, groups)
            if isinstance(row, Row):
                ids.add(row.id, where)
            yield row
    if empty:
        raise InputError(f"{source}: no video or image in this folder" if folder else f"{source}: no rows")
    groups.check(source)
    if columns and "path" not in columns:
        shown = ", ".join(sorted(columns)[:MAX_COLUMNS]) + (", ..." if len(columns) > MAX_COLUMNS else "")
        advice = hint(columns) or "; name the column of the files path, or video, and that of the texts caption"
        raise InputError(f"{source}: no column 'path' (it has {shown}){advice}")
    if require_texts and columns and not columns & {"caption", "captions", "questions"}:
        raise InputError(
            f"{source}: no column 'captions', 'caption' or 'questions' (it has {', '.join(sorted(columns))})"
        )


class Groups:
    """Groups for rows without a group: the match of a pattern in the file's path, or the path itself.

    The group is the first parenthesized group of the pattern, or the whole match if it has none. The pattern is
    searched in the path relative to the manifest's folder, such as `tv/star_ABC_0.mp4`, or in a URL.
    """

    def __init__(self, pattern: str):
        self.pattern = re.compile(pattern) if pattern else None
        self.matches, self.example = 0, ""

    def of(self, path: str) -> str:
        match = self.pattern.search(path) if self.pattern else None
        if match:
            self.matches += 1
            return match[1] or match[0] if match.re.groups else match[0]
        self.example = self.example or path
        return path

    def check(self, source: Location) -> None:
        """Raises InputError if the pattern matches no path: every file would be its own group."""
        if self.pattern and self.example and not self.matches:
            raise InputError(
                f"{source}: group_pattern = {self.pattern.pattern!r} matches no file's path, such as {self.example!r}"
            )


class Ids:
    """Checks that the ids of a manifest are unique. They are on disk: a million take 0.1 GB of memory."""

    def __init__(self, source: Location, db: sqlite3.Connection):
        self.source, self.db = source, db
        self.db.execute("create table ids (id text primary key, place text) without rowid")

    def add(self, name: str, where: str) -> None:
        try:
            self.db.execute("insert into ids values (?, ?)", (name, where))
        except sqlite3.IntegrityError:
            (other,) = self.db.execute("select place from ids where id = ?", (name,)).fetchone()
            raise InputError(
                f"{self.source}: {where}: id {name!r} is also used in {other}; ids must be unique (put the captions "
                "of one file into one row, or name it in a column `video`)"
            ) from None


def _folder(folder: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    extensions = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    media = sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and not p.is_dir())
    shared = Counter(path.with_suffix("") for path in media)
    for path in media:
        text = path.with_suffix(".txt")
        name = path.relative_to(folder)
        try:
            captions = text.read_text("utf-8-sig").splitlines() if text.is_file() else []
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
            yield str(name), f"{text.name}: not UTF-8: {byte}; save it as UTF-8"
            continue
        unique = shared[path.with_suffix("")] == 1  # False for a video and an image of the same name
        yield str(path), {"id": str(name.with_suffix("") if unique else name), "path": str(name), "captions": captions}


def _row(where: str, record: dict[str, Any], root: Location, groups: Groups) -> Row | Reject:
    """The row of a manifest record in the folder `root`, or a reject if the record is invalid."""
    try:
        record = plain(record, COLUMNS)
    except ValueError as error:
        return Reject(id=where, path="", reason="bad row", detail=str(error))
    record = {key: value for key, value in record.items() if value is not None and value != ""}
    for key in record.keys() - TEXTS:
        refuse_credentials(f"{where}: {key}", record[key])
    names = {key: str(record.get(key, "")) for key in ("id", "group")}
    name = names["id"] or where
    file = record.get("path")
    if not isinstance(file, str):
        return Reject(id=name, path="", reason="bad row", detail="no path")
    if "\0" in file:
        return Reject(id=name, path="", reason="bad row", detail=f"path {file!r} is not a file name")
    try:
        path = resolve(root, file)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        start, end = (_seconds(name, record.get(name)) for name in ("start", "end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        return Row(
            id=names["id"] or _without_suffix(file) + window,
            path=path,
            kind=_kind(record.get("kind"), path),
            captions=tuple(_captions(record.get("captions", []), record.get("caption", []))),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=split_name(record.get("split", "")),
            group=names["group"] or groups.of(_file_key(path, root)),
            meta={k: value for k, value in record.items() if k not in COLUMNS},
        )
    except ValidationError as error:
        first = error.errors()[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return Reject(id=name, path=file, reason="bad row", detail=detail)
    except ValueError as error:
        return Reject(id=name, path=file, reason="bad row", detail=str(error))


def _without_suffix(path: str) -> str:
    """A path, or a URL without its protocol, without the extension. Raises ValueError if it is not a file name."""
    if not is_url(path):
        return str(Path(path).with_suffix(""))
    name = re.split("[?#]", path)[0].partition("://")[2]
    return name[: len(name) - len(suffix(path))]


def _file_key(path: Location, root: Location) -> str:
    """A key that is equal for all rows of a file, however they spell its path."""
    if isinstance(path, str):
        return path
    text, folder = str(path), f"{root}/"
    if isinstance(root, Path) and not text.startswith(folder):
        return os.path.relpath(path, root)
    return text.removeprefix(folder) if isinstance(root, Path) else text


def _kind(value: Any, path: Location) -> Any:
    """The kind in the row, in lower case, or the kind of the file's extension."""
    if value is None:
        return "image" if suffix(path) in IMAGE_EXTENSIONS else "video"
    return value.strip().lower() if isinstance(value, str) else value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a number with hundreds of digits
        raise ValueError(f"{name} {str(value)[:40]!r} is not a time in seconds") from None
    if not 0 <= seconds <= MAX_SECONDS:  # also true for NaN
        raise ValueError(f"{name} {seconds:g} is not a time in seconds between 0 and {MAX_SECONDS:,}")
    return seconds


def _captions(*values: Any) -> Iterable[str]:
    """The captions of one or more columns, with normalized whitespace, without blank captions and duplicates."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            items = _json_list(value)
            value = [value] if items is None else items
        if not isinstance(value, list) or not all(isinstance(c, str) for c in value):
            raise ValueError("captions are not a list of strings")
        captions += value
    return dict.fromkeys(" ".join(c.split()) for c in captions if c.strip())


def _json_list(text: str) -> list[Any] | None:
    """Parses a JSON list, as in a CSV cell; None if the text is not a JSON list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _questions(value: Any) -> Iterator[dict[str, str]]:
    value = _json_list(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(q, dict) for q in value):
        raise ValueError("questions are not a list of {question, answer}")
    for item in value:
        question, answer = (" ".join(str(item.get(key) or "").split()) for key in ("question", "answer"))
        if not question or not answer:
            raise ValueError("empty question or answer")
        kind = question_type(str(item.get("type") or question.split()[0]))
        yield {"question": question, "answer": answer, "type": kind}
