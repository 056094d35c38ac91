"""Reads what people have (JSON Lines, CSV, Parquet, or a folder of videos with texts) into rows."""

import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alpro.credentials import clean_values, without_credentials
from alpro.errors import InputError
from alpro.shards.database import database
from alpro.shards.records import plain, read_records
from alpro.shards.schema import (
    IMAGE_EXTENSIONS,
    MAX_SECONDS,
    SPLITS,
    VIDEO_EXTENSIONS,
    Reject,
    Row,
)
from alpro.shards.storage import Location, exists, is_url, parent, resolve, suffix

COLUMNS = {"id", "path", "kind", "caption", "captions", "questions", "start", "end", "split", "group"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validation": "validation", "test": "test", "testing": "test", "": ""}


def read_manifest(source: Location) -> tuple[list[Row], list[Reject]]:
    """All that `scan_manifest` yields, in lists."""
    found = list(scan_manifest(source))
    return [one for one in found if isinstance(one, Row)], [one for one in found if isinstance(one, Reject)]


def scan_manifest(source: Location, group_pattern: str = "") -> Iterator[Row | Reject]:
    """The rows of a manifest file or of a folder of videos, and the rows that are bad in themselves, in order.

    A file (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions` or `questions`;
    optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image), `group` (items of one source). A
    folder has videos or images, each with its captions, one a line, in a .txt beside it. Rows are read one after the
    other; what is kept of them, their ids, is in a temporary file.

    group_pattern: a regular expression that gives rows without a group one by the path of their file, see `Groups`.

    Raises InputError for what makes the whole manifest unusable: missing, unreadable, without a needed column, one
    id twice, a path outside its folder; and for a pattern that matches no path.
    """
    source = source.absolute() if isinstance(source, Path) else source
    try:
        there = exists(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    if not there:
        raise InputError(
            f"{source}: no such file or folder; give a manifest (.jsonl, .csv, .parquet) or a folder of videos"
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
            if isinstance(record, str):  # the record could not be read; this is why
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
        raise InputError(f"{source}: no column 'path' (it has {', '.join(sorted(columns))})")
    if columns and not columns & {"caption", "captions", "questions"}:
        raise InputError(
            f"{source}: no column 'captions', 'caption' or 'questions' (it has {', '.join(sorted(columns))})"
        )


class Groups:
    """Groups of rows that have none in the manifest: what a pattern matches in the file's path, or the path itself.

    The group is the first parenthesized group of the pattern, or the whole match if it has none. The pattern is
    searched in the path relative to the manifest's folder, such as `tv/star_ABC_0.mp4`, or in a URL.
    """

    def __init__(self, pattern: str):
        self.pattern = re.compile(pattern) if pattern else None
        self.found, self.example = 0, ""

    def of(self, path: str) -> str:
        match = self.pattern.search(path) if self.pattern else None
        if match:
            self.found += 1
            return match[1] or match[0] if match.re.groups else match[0]
        self.example = self.example or path
        return path

    def check(self, source: Location) -> None:
        """Raises InputError if the pattern matched no path: every file would be a group of its own."""
        if self.pattern and self.example and not self.found:
            raise InputError(
                f"{source}: group_pattern = {self.pattern.pattern!r} matches no file's path, such as {self.example!r}"
            )


class Ids:
    """The ids of a manifest's rows and where each stands: a million would take 0.1 GB of memory."""

    def __init__(self, source: Location, db: sqlite3.Connection):
        self.source, self.db = source, db
        self.db.execute("create table ids (id text primary key, place text) without rowid")

    def add(self, name: str, where: str) -> None:
        try:
            self.db.execute("insert into ids values (?, ?)", (name, where))
        except sqlite3.IntegrityError:
            (other,) = self.db.execute("select place from ids where id = ?", (name,)).fetchone()
            raise InputError(
                f"{self.source}: {where}: id {name!r} is also that of {other}; every id must be its own"
            ) from None


def _folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    extensions = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    media = sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and not p.is_dir())
    shared = Counter(path.with_suffix("") for path in media)
    for path in media:
        text = path.with_suffix(".txt")
        captions = text.read_text("utf-8", errors="replace").splitlines() if text.is_file() else []
        name = path.relative_to(folder)
        alone = shared[path.with_suffix("")] == 1  # two files of one name, such as a video and its picture
        yield str(path), {"id": str(name.with_suffix("") if alone else name), "path": str(name), "captions": captions}


def _row(where: str, record: dict[str, Any], root: Location, groups: Groups) -> Row | Reject:
    """The row of a record of a manifest in the folder `root`, or why it is none."""
    try:
        record = plain(record, COLUMNS)
    except ValueError as error:
        return Reject(id=where, path="", reason="bad row", detail=str(error))
    record = {key: value for key, value in record.items() if value is not None and value != ""}
    names = {key: without_credentials(str(record.get(key, "")), keep_query=True) for key in ("id", "group")}
    name = names["id"] or where
    given = record.get("path")
    if not isinstance(given, str):
        return Reject(id=name, path="", reason="bad row", detail="no path")
    if "\0" in given:
        return Reject(id=name, path="", reason="bad row", detail=f"path {given!r} names no file")
    try:
        path = resolve(root, given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        start, end = (_seconds(name, record.get(name)) for name in ("start", "end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        split = str(record.get("split", "")).strip().lower()
        if split not in SPLIT_NAMES:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        return Row(
            id=names["id"] or _without_suffix(given) + window,
            path=path,
            kind=_kind(record.get("kind"), path),
            captions=tuple(_captions(record.get("captions", []), record.get("caption", []))),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=SPLIT_NAMES[split],
            group=names["group"] or groups.of(_same_file(path, root)),
            meta=clean_values({k: value for k, value in record.items() if k not in COLUMNS}, keep_query=True),
        )
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return Reject(id=name, path=given, reason="bad row", detail=told)
    except ValueError as error:
        return Reject(id=name, path=given, reason="bad row", detail=str(error))


def _without_suffix(given: str) -> str:
    """What a path or URL is called. Raises ValueError where it names no file."""
    if not is_url(given):
        return str(Path(given).with_suffix(""))
    name = without_credentials(given).partition("://")[2]
    return name[: len(name) - len(suffix(given))]


def _same_file(path: Location, root: Location) -> str:
    """What rows of one file have in common, however each names it."""
    if isinstance(path, str):
        return without_credentials(path)
    return os.path.relpath(path, root) if isinstance(root, Path) else str(path)


def question_type(text: str) -> str:
    """A question's type, its first word or what the file gives, as it can stand in a metric's name: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"


def _kind(value: Any, path: Location) -> Any:
    """The kind that the row states, in any case, or that of the file's extension."""
    if value is None:
        return "image" if suffix(path) in IMAGE_EXTENSIONS else "video"
    return value.strip().lower() if isinstance(value, str) else value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a number of hundreds of digits
        raise ValueError(f"{name} {str(value)[:40]!r} is not a time in seconds") from None
    if not 0 <= seconds <= MAX_SECONDS:  # this is also true of NaN
        raise ValueError(f"{name} {seconds:g} is not a time in seconds between 0 and {MAX_SECONDS:,}")
    return seconds


def _captions(*values: Any) -> Iterable[str]:
    """The captions of one or more columns, with white space folded, without blank ones and exact repeats."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            listed = _list_in(value)
            value = [value] if listed is None else listed
        if not isinstance(value, list) or not all(isinstance(c, str) for c in value):
            raise ValueError("captions are not a list of texts")
        captions += value
    return dict.fromkeys(" ".join(c.split()) for c in captions if c.strip())


def _list_in(text: str) -> list[Any] | None:
    """The list that a text is in JSON, as CSV files hold one; None where it is just a text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _questions(value: Any) -> Iterator[dict[str, str]]:
    value = _list_in(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(q, dict) for q in value):
        raise ValueError("questions are not a list of {question, answer}")
    for item in value:
        question, answer = (" ".join(str(item.get(key) or "").split()) for key in ("question", "answer"))
        if not question or not answer:
            raise ValueError("a question without a text or an answer")
        kind = question_type(str(item.get("type") or question.split()[0]))
        yield {"question": question, "answer": answer, "type": kind}
