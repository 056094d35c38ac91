"""Reads what people have (JSON Lines, CSV, Parquet, or a folder of videos with texts) into rows, and makes splits."""

import csv
import gzip
import io
import json
import math
import os
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pyarrow.parquet as pq
from pydantic import ValidationError

from shards.database import database
from shards.schema import IMAGE_EXTENSIONS, MOST_JSON, SPLITS, VIDEO_EXTENSIONS, InputError, Reject, Row
from shards.storage import Location, exists, is_url, open_binary, parent, resolve, suffix

COLUMNS = {"id", "path", "kind", "caption", "captions", "questions", "start", "end", "split", "group"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validation": "validation", "test": "test", "testing": "test", "": ""}
BATCH = 1024  # rows of a Parquet file that are read at a time


def read_manifest(source: Location) -> tuple[list[Row], list[Reject]]:
    """All that `scan_manifest` yields, in lists."""
    found = list(scan_manifest(source))
    return [one for one in found if isinstance(one, Row)], [one for one in found if isinstance(one, Reject)]


def scan_manifest(source: Location) -> Iterator[Row | Reject]:
    """The rows of a manifest file or of a folder of videos, and the rows that are bad in themselves, in order.

    A file (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions` or `questions`;
    optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image), `group` (items of one source). A
    folder has videos or images, each with its captions, one a line, in a .txt beside it. Rows are read one after the
    other; what is kept of them, their ids, is in a temporary file.

    Raises InputError for what makes the whole manifest unusable: missing, unreadable, without a needed column, one
    id twice, a path outside its folder.
    """
    source = source.absolute() if isinstance(source, Path) else source
    if not exists(source):
        raise InputError(
            f"{source}: no such file or folder; give a manifest (.jsonl, .csv, .parquet) or a folder of videos"
        )
    folder = isinstance(source, Path) and source.is_dir()
    root = source if folder else parent(source)
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
            row = _row(where, record, root)
            if isinstance(row, Row):
                ids.add(row.id, where)
            yield row
    if empty:
        raise InputError(f"{source}: no video or image in this folder" if folder else f"{source}: no rows")
    if columns and "path" not in columns:
        raise InputError(f"{source}: no column 'path' (it has {', '.join(sorted(columns))})")
    if columns and not columns & {"caption", "captions", "questions"}:
        raise InputError(
            f"{source}: no column 'captions', 'caption' or 'questions' (it has {', '.join(sorted(columns))})"
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


def read_records(path: Location) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The records of a file and where each stands; for one that cannot be read, why. A bad file: InputError."""
    name = str(path).removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".json", ".ndjson")):
            yield from _json_lines(path)
        elif name.endswith((".csv", ".tsv")):
            with _open(path) as file:
                table = csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ",")
                for number, record in enumerate(table, 2):
                    more = None in record  # the csv module's name for cells without a column
                    yield f"line {number}", "more cells than columns; quote texts with commas" if more else record
        elif name.endswith(".parquet"):
            with open_binary(path) as file:
                batches = pq.ParquetFile(file).iter_batches(BATCH)
                records = (record for batch in batches for record in batch.to_pylist())
                for number, record in enumerate(records, 1):
                    yield f"row {number}", record
        else:
            raise InputError(
                f"{path}: a manifest is a .jsonl, .csv, .tsv or .parquet file (.gz too), or a folder of videos"
            )
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _json_lines(path: Location) -> Iterator[tuple[str, dict[str, Any] | str]]:
    with _open(path) as file:
        if file.read(1) == "[":  # one list instead of lines
            file.seek(0)
            for number, record in enumerate(json.load(file), 1):
                yield f"entry {number}", record if isinstance(record, dict) else "not a JSON object"
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield f"line {number}", f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"
                continue
            yield f"line {number}", record if isinstance(record, dict) else "not a JSON object"


def _open(path: Location) -> IO[str]:
    file = open_binary(path)
    # utf-8-sig: a byte-order mark, as spreadsheets write it, is no part of the first column's name.
    unpacked = gzip.open(file) if str(path).endswith(".gz") else file
    return io.TextIOWrapper(cast(BinaryIO, unpacked), encoding="utf-8-sig", newline="")


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


def _row(where: str, record: dict[str, Any], root: Location) -> Row | Reject:
    """The row of a record of a manifest in the folder `root`, or why it is none."""
    text = as_json(record)
    if len(text) > MOST_JSON // 2:
        return Reject(id=where, path="", reason="bad row", detail=f"{len(text)} bytes; what is no text is no column")
    record = {key: value for key, value in json.loads(text).items() if value is not None and value != ""}
    name = str(record.get("id", where))
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
        start, end = _seconds(record.get("start")), _seconds(record.get("end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        split = str(record.get("split", "")).strip().lower()
        if split not in SPLIT_NAMES:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        return Row(
            id=str(record.get("id", "")) or _without_suffix(given) + window,
            path=path,
            kind=record.get("kind") or ("image" if suffix(path) in IMAGE_EXTENSIONS else "video"),
            captions=tuple(_captions(record.get("captions", record.get("caption", [])))),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=SPLIT_NAMES[split],
            group=str(record.get("group", "")) or _same_file(path, root),
            meta={key: value for key, value in record.items() if key not in COLUMNS},
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
    name = _without_query(given).partition("://")[2]
    return name[: len(name) - len(suffix(given))]


def _without_query(url: str) -> str:
    """A URL without what follows a question mark: a signature, say, which changes and is nobody's business."""
    return url.partition("?")[0]


def _same_file(path: Location, root: Location) -> str:
    """What rows of one file have in common, however each names it."""
    if isinstance(path, str):
        return _without_query(path)
    return os.path.relpath(path, root) if isinstance(root, Path) else str(path)


def sound(value: Any) -> Any:
    """A value as JSON can hold it."""
    return json.loads(as_json(value))


def as_json(value: Any) -> bytes:
    """A value in JSON: dates and bytes as text, half a surrogate pair as a question mark."""
    return json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace")


def question_type(text: str) -> str:
    """A question's type, its first word or what the file gives, as it can stand in a metric's name: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        if math.isfinite(seconds := float(value)):
            return seconds
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{value!r} is not a time in seconds")


def _captions(value: Any) -> Iterable[str]:
    """The captions, white space folded, blank ones and exact repeats dropped."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = [value] if listed is None else listed
    if not isinstance(value, list) or not all(isinstance(c, str) for c in value):
        raise ValueError("captions are not a list of texts")
    return dict.fromkeys(" ".join(c.split()) for c in value if c.strip())


def _list_in(text: str) -> list[Any] | None:
    """The list that a text is in JSON, as CSV files hold one; None where it is just a text."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
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
