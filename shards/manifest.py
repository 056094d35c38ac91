"""Reads what people have (JSON Lines, CSV, Parquet, or a folder of videos with texts) into rows, and makes splits."""

import csv
import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from shards.schema import IMAGE_EXTENSIONS, SPLITS, VIDEO_EXTENSIONS, InputError, Reject, Row

COLUMNS = {"id", "path", "kind", "caption", "captions", "questions", "start", "end", "split", "group"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validation": "validation", "test": "test", "testing": "test", "": ""}


def read_manifest(source: Path) -> tuple[list[Row], list[Reject]]:
    """The rows of a manifest file or of a folder of videos, and the rows that are bad in themselves.

    A file has the columns `path` (relative to it) and `caption` or `captions` or `questions`; optionally `id`,
    `start` and `end` (seconds), `split`, `kind` (video, image), `group` (items of one source). A folder has videos
    or images, each with its captions, one a line, in a .txt beside it.

    Raises InputError for what makes the whole manifest unusable: missing, unreadable, without a needed column, one
    id twice, a path outside its folder.
    """
    source = source.absolute()
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give a manifest (.jsonl, .csv, .parquet) or a folder of videos"
        )
    records = _folder(source) if source.is_dir() else read_records(source)
    rows: list[Row] = []
    rejects: list[Reject] = []
    seen: dict[str, str] = {}
    columns: set[str] = set()
    for where, record in records:
        if isinstance(record, str):  # the record could not be read; this is why
            rejects.append(Reject(id=where, path="", reason=record))
            continue
        columns |= record.keys()
        row = _row(where, record, source if source.is_dir() else source.parent)
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        if row.id in seen:
            raise InputError(
                f"{source}: {where}: id {row.id!r} is also that of {seen[row.id]}; every id must be its own"
            )
        seen[row.id] = where
        rows.append(row)
    if not rows and not rejects:
        raise InputError(f"{source}: no rows" if source.is_file() else f"{source}: no video or image in this folder")
    if columns and "path" not in columns:
        raise InputError(f"{source}: no column 'path' (it has {', '.join(sorted(columns))})")
    if columns and not columns & {"caption", "captions", "questions"}:
        raise InputError(
            f"{source}: no column 'captions', 'caption' or 'questions' (it has {', '.join(sorted(columns))})"
        )
    return rows, rejects


def assign_splits(rows: list[Row], validation: float, test: float, seed: int) -> list[Row]:
    """Rows with every split filled in. Where no row names one, they are made: whole groups, seeded.

    Rows without a group are grouped by file, so that clips of one video stay together. Where some rows name a
    split, the others are for training.
    """
    if any(row.split for row in rows):
        return [row if row.split else row.model_copy(update={"split": "train"}) for row in rows]

    def order(group: str) -> bytes:
        return hashlib.sha256(f"{seed}/{group}".encode()).digest()

    groups = sorted({row.group for row in rows}, key=order)
    least = 1 if len(groups) >= 3 else 0  # a share above 0 is at least one group
    tested, validated = (max(least, round(len(groups) * share)) if share else 0 for share in (test, validation))
    ends = [tested, tested + validated]
    split_of = {g: "test" if i < ends[0] else "validation" if i < ends[1] else "train" for i, g in enumerate(groups)}
    return [row.model_copy(update={"split": split_of[row.group]}) for row in rows]


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The records of a file and where each stands; for one that cannot be read, why. A bad file: InputError."""
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".json", ".ndjson")):
            yield from _json_lines(path)
        elif name.endswith((".csv", ".tsv")):
            with _open(path) as file:
                table = csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ",")
                for number, record in enumerate(table, 2):
                    yield f"line {number}", {k: v for k, v in record.items() if k is not None}
        elif name.endswith(".parquet"):
            for number, record in enumerate(pq.read_table(path).to_pylist(), 1):
                yield f"row {number}", record
        else:
            raise InputError(
                f"{path}: a manifest is a .jsonl, .csv, .tsv or .parquet file (.gz too), or a folder of videos"
            )
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    with _open(path) as file:
        if file.read(1) == "[":  # one list instead of lines
            file.seek(0)
            for number, record in enumerate(json.load(file), 1):
                yield f"entry {number}", record if isinstance(record, dict) else "bad row: not a JSON object"
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield f"line {number}", f"bad row: not JSON: {getattr(error, 'msg', 'nested too deeply')}"
                continue
            yield f"line {number}", record if isinstance(record, dict) else "bad row: not a JSON object"


def _open(path: Path):
    # utf-8-sig: a byte-order mark, as spreadsheets write it, is no part of the first column's name.
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


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


def _row(where: str, record: dict[str, Any], root: Path) -> Row | Reject:
    """The row of a record of a manifest in the folder `root`, or why it is none."""
    record = {key: value for key, value in sound(record).items() if value is not None and value != ""}
    name = str(record.get("id", where))
    given = record.get("path")
    if not isinstance(given, str):
        return Reject(id=name, path="", reason="bad row: no path")
    if "\0" in given:
        return Reject(id=name, path="", reason=f"bad row: path {given!r} names no file")
    path = Path(os.path.normpath(root / given))
    if not path.is_relative_to(os.path.normpath(root)):
        raise InputError(f"{where}: path {given!r} leaves the data folder {root}; put the file inside it")
    try:
        start, end = _seconds(record.get("start")), _seconds(record.get("end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        split = str(record.get("split", "")).strip().lower()
        if split not in SPLIT_NAMES:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        return Row(
            id=str(record.get("id", "")) or str(Path(given).with_suffix("")) + window,
            path=path,
            kind=record.get("kind") or ("image" if path.suffix.lower() in IMAGE_EXTENSIONS else "video"),
            captions=tuple(_captions(record.get("captions", record.get("caption", [])))),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=SPLIT_NAMES[split],
            group=str(record.get("group", "")) or given,
            meta={key: value for key, value in record.items() if key not in COLUMNS},
        )
    except ValidationError as error:
        first = error.errors()[0]
        return Reject(id=name, path=given, reason=f"bad row: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    except ValueError as error:
        return Reject(id=name, path=given, reason=f"bad row: {error}")


def sound(value: Any) -> Any:
    """A value as JSON can hold it: dates and bytes as text, half a surrogate pair as a question mark."""
    return json.loads(json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace"))


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
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a time in seconds") from None


def _captions(value: Any) -> Iterable[str]:
    """The captions, white space folded, blank ones and exact repeats dropped."""
    if isinstance(value, str):
        value = _list_in(value) or [value]
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
