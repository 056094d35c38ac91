"""Streams the records of a file: JSON Lines, a JSON list or object, CSV, TSV, Parquet, or a list of
names (.txt).

Reading continues after an invalid record: the reason is yielded instead, with the line or row
number. The whole file is invalid if the start of the next record is unknown: after an unclosed
quote in CSV, or in a JSON list. The readers of pyarrow are not used for text: after an unclosed
quote its CSV reader takes the next rows for one text, in silence, and its JSON reader refuses a
whole file for one line.

TSV has no quoting: every line is a record. CSV is strict: quotation marks inside a quoted text are
doubled.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, count, zip_longest
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from alpro.errors import InputError
from alpro.files import UTF16_MARKS
from alpro.shards.schema import MAX_JSON_BYTES, MEDIA_EXTENSIONS
from alpro.shards.sources.cells import folded
from alpro.shards.sources.columns import (
    FOLDED,
    NAME_COLUMNS,
    TEXT_COLUMNS,
    with_usual_names,
)
from alpro.shards.sources.documents import entries
from alpro.shards.sources.nested import records_of
from alpro.shards.sources.windows import parts_of
from alpro.shards.storage import Location, local_copy
from alpro.shards.tar import GZIP

Record = dict[str, Any]
PARQUET_BATCH_ROWS = 1024  # rows of a Parquet file that are read at a time
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, by `surrogateescape`
csv.field_size_limit(MAX_JSON_BYTES // 2)  # by default 131,072 characters
BETWEEN_OBJECTS = re.compile(r"[\s,]*")
TABLES = (".csv", ".tsv", ".txt")
# A line of Charades-STA.
MOMENT = re.compile(r"(?P<video>\S+) (?P<start>[\d.]+) (?P<end>[\d.]+)##(?P<caption>.+)")
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON: after an even number of backslashes


def read_records(path: Location) -> Iterator[tuple[str, Record | str]]:
    """Yields the records of a file with their line or row; for an invalid record, the reason.

    Raises InputError if the file is missing, corrupt, in another format, or not UTF-8.
    """
    name = str(path)[:-3] if str(path).lower().endswith(".gz") else str(path)
    ending = PurePosixPath(name).suffix.lower()
    try:
        with local_copy(path) as local:
            # Programs write both under other names, too.
            with open(local, "rb") as file:
                first_bytes = file.read(4)
            is_compressed = name != str(path) or first_bytes.startswith(GZIP)
            if ending == ".parquet" or (ending in READERS and first_bytes == b"PAR1"):
                yield from _parquet(local)
                return

            with gzip.open(local) if is_compressed else open(local, "rb") as file:
                start = file.peek(1 << 16)
                encoding = "utf-16" if start.startswith(UTF16_MARKS) else "utf-8-sig"
                # In UTF-16, one of the two bytes of an ASCII character is 0. A single NUL is a
                # hole: it spoils its own record alone.
                head = start[:1024]
                if encoding != "utf-16" and head.count(0) * 8 > len(head):
                    raise ValueError("it is UTF-16 or not text; save it as UTF-8")

                read = READERS.get(ending)
                if not read:
                    raise InputError(
                        f"{path}: unsupported format; a manifest is a .jsonl, .csv, .tsv or "
                        ".parquet file (also .gz), or a folder of videos"
                    )

                # Lines end with \r in files of old programs only; otherwise it is a part of a text.
                newline = "\r" if b"\r" in start and b"\n" not in start else "\n"
                # surrogateescape: bytes that are not UTF-8 spoil their own record alone.
                errors = "strict" if encoding == "utf-16" else "surrogateescape"
                text = io.TextIOWrapper(file, encoding, errors, newline=newline)
                if ending in TABLES and start.lstrip(b"\xef\xbb\xbf \r\n").startswith(
                    (b"{", b"[{")
                ):
                    read = _json  # under the name of a table
                yield from read(text)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def named_records(path: Location) -> Iterator[tuple[str, Record | str]]:
    """The records of a file, as `read_records`, with the usual names of their columns."""
    split_columns: set[str] = set()
    for where, record in read_records(path):
        if isinstance(record, str):
            yield where, record
            continue
        for each in records_of(record):
            for part in parts_of(with_usual_names(each, split_columns)):
                yield where, part


def _names(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    """The names of a list; the rows of a table if the first line names the columns of one."""
    first = text.readline()
    columns = set()
    for cell in re.split(r"[,;|\t]", first):
        columns.add(FOLDED.get(folded(cell.strip(' "\r\n'))))

    has_names = not columns.isdisjoint(NAME_COLUMNS)
    has_texts = not columns.isdisjoint({*TEXT_COLUMNS, "question"})
    if has_names and has_texts:
        yield from _table(chain([first], text), strict=True)
        return

    for number, line in enumerate(chain([first], text), 1):
        moment = MOMENT.fullmatch(line.strip())
        if moment:
            yield f"line {number}", moment.groupdict()
        elif line.strip():
            is_utf8 = not NOT_UTF8.search(line)
            yield f"line {number}", {"video_id": line.strip()} if is_utf8 else "not UTF-8"


def _json_lines(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    first = text.readline()
    if first.lstrip().startswith("["):  # a JSON list in a file of another name
        content = first + text.read()
        with suppress(ValueError, RecursionError):
            value = json.loads(content)
            if _are_objects(value):
                yield from _entries(content, value)
                return

        text = io.StringIO(content)
        first = text.readline()

    for number, line in enumerate(chain([first], text), 1):
        if line.strip():
            yield f"line {number}", _object(line)


def _are_objects(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) for each in value)


def _object(line: str) -> Record | str:
    """The object of a line, or the reason why it is not one."""
    if NOT_UTF8.search(line):
        return "not UTF-8"
    try:
        # A line of a list, without its brackets, ends with a comma.
        record = json.loads(line.rstrip().removesuffix(","))
    except RecursionError:
        return "not JSON: nested too deeply"
    except ValueError as error:  # also raised for numbers with too many digits
        return f"not JSON: {getattr(error, 'msg', error)}"
    return record if isinstance(record, dict) else "not a JSON object"


def _json(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    """The entries of a document (`documents.py`), or the records of JSON Lines."""
    content = text.read()
    value = None
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        # Objects one after another are JSON Lines in a file of another name.
        if not content.lstrip().startswith("{"):
            raise ValueError(f"not JSON: {error}") from None
        # Of JSON Lines, a reason for a reject names its line.
        has_lines = isinstance(_object(content.lstrip().partition("\n")[0]), dict)
        value = None if has_lines else _objects_in(content)
    yield from _entries(content, value)


def _objects_in(content: str) -> list[Any] | None:
    """Objects one after another, each on any number of lines; None if one of them is broken, so
    that lines are read one by one."""
    decoder = json.JSONDecoder()
    objects = []
    position = 0
    with suppress(ValueError, RecursionError):
        while position < len(content):
            value, end = decoder.raw_decode(content, position)
            objects.append(value)
            position = BETWEEN_OBJECTS.match(content, end).end()  # type: ignore[union-attr]
        return objects if _are_objects(objects) else None
    return None


def _entries(content: str, value: Any) -> Iterator[tuple[str, Record | str]]:
    """The entries of a parsed document. Raises ValueError if it is not UTF-8."""
    if NOT_UTF8.search(content):
        raise ValueError("not UTF-8")

    found = entries(value)
    if found is not None:
        yield from found
    elif isinstance(value, dict) and len(content.strip().splitlines()) > 1:
        yield "line 1", value  # one record on several lines
    else:
        yield from _json_lines(io.StringIO(content))


def _table(lines: Iterable[str], **dialect: Any) -> Iterator[tuple[str, Record | str]]:
    text = iter(lines)
    skipped, header = _header(text)
    separator = _separator(header, dialect.get("delimiter", ","))
    is_quoted = header.startswith('"') and header.rstrip().endswith('"')
    if separator == "\t" and "strict" not in dialect and not is_quoted:
        dialect["quoting"] = csv.QUOTE_NONE
    else:
        dialect.pop("quoting", None)
    # Spaces after the separators, as people write them; a quotation mark after one opens a text.
    has_spaces = separator != "\t" and f"{separator} " in header
    dialect |= {"delimiter": separator, "skipinitialspace": has_spaces}

    reader = csv.reader(chain([header] if header else [], text), **dialect)
    columns = list[str]()
    while True:
        first = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The end of this text is unknown: continuing could lose rows.
            if skipped + reader.line_num > first:
                raise ValueError(
                    f"line {first}: unclosed quotation mark at the start of a text ({error}); "
                    "double the quotation marks that are part of a text"
                ) from None
            if not columns:
                raise ValueError(f"line {first}: {error}") from None
            yield f"line {first}", str(error)
            continue

        if not columns:
            columns = _checked(cells)
        elif cells:
            yield f"line {first}", _in_columns(columns, cells, "quoting" not in dialect)


def _header(text: Iterator[str]) -> tuple[int, str]:
    """The number of lines before the header of a table, and the header. Such lines are blank, a
    comment, or Excel's `sep=;`."""
    for skipped, line in enumerate(text):
        is_comment = line.startswith("#") and not re.search(r"[,;|\t]", line)
        is_separator = re.fullmatch(r"(?i)\"?sep=.\"?", line.rstrip("\r\n"))
        if line.strip() and not is_comment and not is_separator:
            return skipped, line
    return 0, ""


def _checked(columns: list[str]) -> list[str]:
    """The column names of a table, without spaces around them; columns without a name are kept as
    empty.

    Raises ValueError for duplicates, and for a first line that is a row.
    """
    if any(map(NOT_UTF8.search, columns)):
        raise ValueError("line 1: not UTF-8")
    # Two programs may each have written a byte order mark.
    columns = [name.strip().strip("\ufeff") for name in columns]
    data = [name for name in columns if PurePosixPath(name).suffix.lower() in MEDIA_EXTENSIONS]
    if data:
        raise ValueError(
            f"line 1 is a row ({data[0]!r}), not the names of the columns; add a first line such "
            "as path,caption"
        )

    repeated = [name for name in columns if name and columns.count(name) > 1]
    if repeated:
        raise ValueError(
            f"the column {repeated[0]!r} appears twice; if line 1 is a row, add one with the names "
            "of the columns above it"
        )
    return columns


def _separator(header: str, usual: str) -> str:
    """What separates the cells of a table: the usual one of its extension, unless another is more
    frequent in the header."""
    # What is quoted is a part of a name.
    text = re.sub('"[^"]*"', "", header)
    return max((usual, ",", "\t", ";", "|"), key=text.count)


def _in_columns(columns: list[str], cells: list[str], quoted: bool) -> Record | str:
    """The record of a line. quoted: whether quotation marks around a text have been removed."""
    if len(cells) > len(columns):
        further = cells[len(columns) :]
        if any(cell.strip() for cell in further):
            return "more cells than columns; quote texts with commas"
    if any(map(NOT_UTF8.search, cells)):
        return "not UTF-8"
    if not quoted and any(cell.startswith('"') and cell.count('"') % 2 for cell in cells):
        return (
            "an unclosed quotation mark at the start of a text; save a table with quoted texts "
            "as CSV"
        )

    # Columns that a short row lacks are empty: its form is that of the table.
    record = dict(zip_longest(columns, cells[: len(columns)], fillvalue=""))
    record.pop("", None)
    return record


def _parquet(path: Path) -> Iterator[tuple[str, Record | str]]:
    with pq.ParquetFile(path) as table:
        _checked(table.schema_arrow.names)
        numbers = count(1)
        for batch in table.iter_batches(PARQUET_BATCH_ROWS):
            for record in batch.to_pylist():
                yield f"row {next(numbers)}", record


READERS: dict[str, Callable[[IO[str]], Iterator[tuple[str, Record | str]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_table, strict=True),
    ".tsv": partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".txt": _names,
}


def plain(record: Record) -> Record:
    """Converts a record to JSON values: bytes and dates become strings, a lone surrogate becomes a
    question mark.

    Raises ValueError if the record cannot be stored as JSON and read again: if it is nested too
    deeply or too large, or has bytes that are not UTF-8, or a NUL, as a hole in a file has.
    """

    def as_text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    try:
        text = json.dumps(record, default=as_text, ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None

    encoded = text.encode("utf-8", "replace")
    size = len(encoded)
    if size > MAX_JSON_BYTES // 2:
        raise ValueError(f"{size:,} bytes; a column holds texts and numbers, not media")
    if NUL.search(text):
        raise ValueError("a NUL character")
    # Readers have a limit of 200 levels; in a sample a record is one level deeper.
    [[value]] = from_json(b"[[%s]]" % encoded)
    return value
