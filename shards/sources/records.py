"""Streams the records of a file: JSON Lines, a JSON list, CSV, TSV or Parquet.

Reading continues after an invalid record: the reason is yielded instead, with the line or row number. The whole file is
invalid if the start of the next record is unknown: after an unclosed quote in CSV, or an entry of a JSON list that is
not JSON.

TSV has no quoting: every line is a record, and a quotation mark is part of the text; a text that was quoted around a
newline is invalid. CSV is strict: a quoted text ends with a quotation mark, and quotation marks inside it are doubled.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.storage import Location, open_binary

Record = dict[str, Any]
MAX_LINE_BYTES = MAX_JSON_BYTES  # also the limit of an entry of a JSON list
MAX_DEPTH = 64  # of nested lists and objects; pydantic reads the JSON of a sample with a limit of about 200
CHUNK = 1 << 20  # characters of a JSON list that are read at a time
PARQUET_BATCH_ROWS = 1024  # rows of a Parquet file that are read at a time
LIST = re.compile(rb"(\xef\xbb\xbf)?\s*\[")  # start of a JSON list, with or without a byte order mark
FIRST = re.compile(r"\s*\[\s*(\S)")  # up to the first entry
SEPARATOR = re.compile(r"\s*([,\]])\s*")  # after an entry of a JSON list
QUOTED = "a text quoted around a newline, which TSV cannot have; save it as CSV"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # written by spreadsheets; not part of the first column's name


class BadRecord(ValueError):
    """An invalid record, with the reason. Reading continues with the next record."""


def read_records(path: Location) -> Iterator[tuple[str, Record | str]]:
    """Yields the records of a file with their line or row; for an invalid record, the reason.

    Raises InputError if the file is missing, corrupt, in another format, or not UTF-8.
    """
    name = str(path).removesuffix(".gz")
    try:
        with open_binary(path) as file:
            if name.endswith(".parquet"):
                yield from _parquet(file)
                return
            unpacked = gzip.open(file) if str(path).endswith(".gz") else io.BufferedReader(cast(io.RawIOBase, file))
            text = cast(io.BufferedReader, unpacked)
            if name.endswith((".jsonl", ".json", ".ndjson")):
                yield from _json_list(text) if LIST.match(text.peek(1024)) else _json_lines(text)
            elif name.endswith(".csv"):
                yield from _csv(text)
            elif name.endswith(".tsv"):
                yield from _tsv(text)
            else:
                raise InputError(
                    f"{path}: unsupported format; a manifest is a .jsonl, .csv, .tsv or .parquet file (also .gz), "
                    "or a folder of videos"
                )
    except (OSError, EOFError, zlib.error, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str | BadRecord]]:
    """The lines of a file as text, numbered from 1. At most MAX_LINE_BYTES of a line are in memory.

    Raises ValueError if the file is UTF-16 or binary.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:1024]:
                raise ValueError("it is UTF-16 or not text; save it as UTF-8")
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield number, BadRecord(f"a line of more than {MAX_LINE_BYTES:,} bytes")
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            yield number, BadRecord(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")


def _json_lines(file: IO[bytes]) -> Iterator[tuple[str, Record | str]]:
    for number, line in _lines(file):
        where = f"line {number}"
        if isinstance(line, BadRecord):
            yield where, str(line)
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except RecursionError:
            yield where, "not JSON: nested too deeply"
        except ValueError as error:  # also raised for numbers with too many digits
            yield where, f"not JSON: {getattr(error, 'msg', error)}"
        else:
            yield where, record if isinstance(record, dict) else "not a JSON object"


def _json_list(file: IO[bytes]) -> Iterator[tuple[str, Record | str]]:
    """The entries of a JSON list, read in chunks: at most a chunk and an entry are in memory."""
    reader, decoder = io.TextIOWrapper(file, "utf-8-sig"), json.JSONDecoder()
    text = ""
    while not (start := FIRST.match(text)):
        if not (more := reader.read(CHUNK)):
            raise ValueError("the list has no end")
        text += more
    closed = start[1] == "]"
    at, number = start.start(1) + closed, 0
    while not closed:
        number += 1
        while True:
            try:
                record, end = decoder.raw_decode(text, at)
                if separator := SEPARATOR.match(text, end):
                    break
                problem = "no comma or bracket after it"
            except RecursionError:
                raise ValueError(f"entry {number}: not JSON: nested too deeply") from None
            except ValueError as error:  # also raised if the chunk ends inside the entry
                problem = f"not JSON: {getattr(error, 'msg', error)}"
            if len(text) - at > MAX_LINE_BYTES:
                raise ValueError(f"entry {number}: more than {MAX_LINE_BYTES:,} characters")
            if not (more := reader.read(max(CHUNK, len(text) - at))):
                raise ValueError(f"entry {number}: {problem}")
            text, at = (text[at:] + more).lstrip(), 0
        yield f"entry {number}", record if isinstance(record, dict) else "not a JSON object"
        at, closed = separator.end(), separator[1] == "]"
    if text[at:].strip() or reader.read(CHUNK).strip():
        raise ValueError("text after the end of the list")


def _tsv(file: IO[bytes]) -> Iterator[tuple[str, Record | str]]:
    columns: list[str] = []
    held: tuple[int, list[str]] | None = None  # a line that may end inside a quoted text: the next one shows it
    is_quoted = False
    for number, line in _lines(file):
        cells = line if isinstance(line, BadRecord) else line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        if not columns:
            columns = _columns(cells)
            continue
        first, last, count = (
            ("", "", len(columns)) if isinstance(cells, BadRecord) else (cells[0], cells[-1], len(cells))
        )
        ends = first.count('"') % 2 == 1
        is_rest = is_quoted and (ends or count < len(columns))
        if held:
            yield f"line {held[0]}", QUOTED if is_rest else _in_columns(columns, held[1])
        starts = last.startswith('"') and last.count('"') % 2 == 1
        is_quoted = (is_rest and not ends) or (starts and not (is_rest and count == 1))
        held = (number, cells) if starts and not is_rest and not isinstance(cells, BadRecord) else None
        if not held:
            yield f"line {number}", QUOTED if is_rest else _in_columns(columns, cells)
    if held:
        yield f"line {held[0]}", _in_columns(columns, held[1])


class _LinesOfCsv:
    """The lines of a file for csv.reader, which can continue after a line that raises BadRecord."""

    def __init__(self, file: IO[bytes]):
        self.lines, self.number, self.ended = _lines(file), 0, False

    def __iter__(self) -> "_LinesOfCsv":
        return self

    def __next__(self) -> str:
        try:
            self.number, line = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        if isinstance(line, BadRecord):
            raise line
        return line


def _csv(file: IO[bytes]) -> Iterator[tuple[str, Record | str]]:
    lines = _LinesOfCsv(file)
    reader = csv.reader(lines, strict=True)
    columns: list[str] = []
    while True:
        first = lines.number + 1
        try:
            cells: list[str] | BadRecord = next(reader)
        except StopIteration:
            return
        except (csv.Error, BadRecord) as error:
            if lines.ended or lines.number > first:
                # The end of this text is unknown: continuing could lose rows.
                raise ValueError(
                    f"line {first}: unclosed quotation mark at the start of a text ({error}); "
                    "double the quotation marks that are part of a text"
                ) from None
            cells = BadRecord(str(error))
        if not columns:
            columns = _columns(cells)
        elif cells:
            yield f"line {first}", _in_columns(columns, cells)


def _columns(cells: list[str] | BadRecord) -> list[str]:
    """The column names of a table. Raises ValueError for duplicates."""
    if isinstance(cells, BadRecord):
        raise ValueError(f"line 1: {cells}")
    if repeated := [name for name in cells if cells.count(name) > 1]:
        raise ValueError(f"the column {repeated[0]!r} appears twice")
    return cells


def _in_columns(columns: list[str], cells: list[str] | BadRecord) -> Record | str:
    if isinstance(cells, BadRecord):
        return str(cells)
    if len(cells) > len(columns):
        return "more cells than columns; quote texts with commas"
    return dict(zip(columns, cells, strict=False))


def _parquet(file: IO[bytes]) -> Iterator[tuple[str, Record | str]]:
    table = pq.ParquetFile(file)
    _columns(table.schema_arrow.names)
    number = 0
    for batch in table.iter_batches(PARQUET_BATCH_ROWS):
        for record in _rows(batch):
            number += 1
            yield f"row {number}", record


def _rows(batch: pa.RecordBatch) -> Iterator[Record | str]:
    """The rows of a batch: together, or one by one if Python cannot represent a value, such as a year after 9999."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if batch.num_rows == 1:
            yield f"{type(error).__name__}: {error}"
        else:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1))


def plain(record: Record, texts: Collection[str]) -> Record:
    """Converts a record to JSON values: bytes and dates become strings, a lone surrogate becomes a question mark.

    Raises BadRecord if the record is nested too deeply or too large, or if a column in `texts` has bytes that are not
    UTF-8.
    """
    if _nested(record, MAX_DEPTH):
        raise BadRecord(f"lists and objects nested more than {MAX_DEPTH} deep")
    binary: list[bytes] = []

    def as_text(value: Any) -> str:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                binary.append(value)
                return value.hex()
        return str(value)

    text = json.dumps(record, default=as_text, ensure_ascii=False).encode("utf-8", "replace")
    if len(text) > MAX_JSON_BYTES // 2:
        raise BadRecord(f"{len(text):,} bytes; a column holds texts and numbers, not media")
    if binary:
        for name in sorted(texts):
            binary.clear()
            json.dumps(record.get(name), default=as_text)
            if binary:
                raise BadRecord(f"{name}: bytes that are not UTF-8")
    return json.loads(text)


def _nested(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return depth < 0 or any(_nested(item, depth - 1) for item in value if isinstance(item, dict | list))
