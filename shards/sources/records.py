"""Streams the records of a file: JSON Lines, a JSON list or object, CSV, TSV or Parquet.

Reading continues after an invalid record: the reason is yielded instead, with the line or row number. The whole file is
invalid if the start of the next record is unknown: after an unclosed quote in CSV, or in a JSON list. The readers of
pyarrow are not used for text: after an unclosed quote its CSV reader takes the next rows for one text, in silence, and
its JSON reader refuses a whole file for one line.

TSV has no quoting: every line is a record. CSV is strict: quotation marks inside a quoted text are doubled.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.storage import Location, open_binary

Record = dict[str, Any]
MAX_LINE = MAX_JSON_BYTES  # characters
MAX_DOCUMENT = 1 << 30  # characters of a .json file, which is read as a whole
MAX_DEPTH = 64  # of nested lists and objects; pydantic reads the JSON of a sample with a limit of about 200
PARQUET_BATCH_ROWS = 1024  # rows of a Parquet file that are read at a time
NOT_TEXT = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as `surrogateescape` decodes it
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


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
            head = cast(io.BufferedReader, unpacked).peek(4096)[:4096]
            if head.startswith(UTF_16) or b"\0" in head[:1024]:
                raise ValueError("it is UTF-16 or not text; save it as UTF-8")
            text = io.TextIOWrapper(cast(IO[bytes], unpacked), "utf-8-sig", "surrogateescape", newline="\n")
            if not (read := READERS.get(PurePosixPath(name).suffix)):
                raise InputError(
                    f"{path}: unsupported format; a manifest is a .jsonl, .csv, .tsv or .parquet file (also .gz), "
                    "or a folder of videos"
                )
            yield from read(text)
    except (OSError, EOFError, zlib.error, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _lines(text: IO[str]) -> Iterator[tuple[str, str | BadRecord]]:
    """The lines that are not blank, with their numbers. At most MAX_LINE characters of a line are in memory."""
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while line and not line.endswith("\n"):
                line = text.readline(MAX_LINE)
            yield f"line {number}", BadRecord(f"a line of more than {MAX_LINE:,} characters")
        elif found := NOT_TEXT.search(line):
            yield f"line {number}", BadRecord(_not_utf8(found))
        elif line.strip():
            yield f"line {number}", line.rstrip("\r\n")


def _not_utf8(found: re.Match[str]) -> str:
    return f"not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x} at position {found.start() + 1}"


def _names(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    for where, line in _lines(text):
        yield where, str(line) if isinstance(line, BadRecord) else {"video_id": line.strip()}


def _json_lines(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    for where, line in _lines(text):
        try:
            if isinstance(line, BadRecord):
                raise line
            record = json.loads(line)
            yield where, record if isinstance(record, dict) else "not a JSON object"
        except BadRecord as error:
            yield where, str(error)
        except RecursionError:
            yield where, "not JSON: nested too deeply"
        except ValueError as error:  # also raised for numbers with too many digits
            yield where, f"not JSON: {getattr(error, 'msg', error)}"


def _json(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    """The entries of a list; those of an object, each with its key as `video`; or the records of JSON Lines."""
    content, value = text.read(MAX_DOCUMENT), None
    if text.read(1):
        raise ValueError(f"JSON of more than {MAX_DOCUMENT:,} characters; write it as JSON Lines (.jsonl)")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        if not content.lstrip().startswith("{"):
            raise ValueError(f"not JSON: {error}") from None
    if NOT_TEXT.search(content):
        raise ValueError("not UTF-8")
    if isinstance(value, list):
        for number, entry in enumerate(value, 1):
            yield f"entry {number}", entry if isinstance(entry, dict) else "not a JSON object"
    elif not isinstance(value, dict) or not all(isinstance(part, dict | list) for part in value.values()):
        yield from _json_lines(io.StringIO(content))
    elif isinstance(value.get("sentences"), list):
        yield from _videos_with_sentences(value)
    else:
        for key, entry in value.items():
            yield f"entry {key!r}", {**entry, "video": key} if isinstance(entry, dict) else "not a JSON object"


def _videos_with_sentences(value: Record) -> Iterator[tuple[str, Record | str]]:
    """The videos of MSR-VTT, each with its captions as `sen_ids`."""
    captions: dict[str, list[Any]] = {}
    for sentence in value["sentences"]:
        if isinstance(sentence, dict):
            captions.setdefault(str(sentence.get("video_id")), []).append(sentence.get("caption"))
    about = {str(video.get("video_id")): video for video in value.get("videos") or [] if isinstance(video, dict)}
    for name in {**about, **captions}:
        yield f"video {name!r}", {**about.get(name, {}), "video_id": name, "sen_ids": captions.get(name, [])}


def _tsv(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    columns: list[str] = []
    for where, line in _lines(text):
        cells = line if isinstance(line, BadRecord) else line.split("\t")
        if not columns:
            columns = _columns(cells)
        elif isinstance(cells, list) and any(cell.startswith('"') and cell.count('"') % 2 for cell in cells):
            yield where, "an unclosed quotation mark at the start of a text; save a table with quoted texts as CSV"
        else:
            yield where, _in_columns(columns, cells)


def _csv(text: IO[str]) -> Iterator[tuple[str, Record | str]]:
    reader = csv.reader(text, strict=True)
    columns: list[str] = []
    while True:
        first = reader.line_num + 1
        try:
            cells: list[str] | BadRecord = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > first:  # the end of this text is unknown: continuing could lose rows
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
    if found := next(filter(None, map(NOT_TEXT.search, cells)), None):
        return _not_utf8(found)
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


READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _names}


def plain(record: Record, texts: Collection[str]) -> Record:
    """Converts a record to JSON values: bytes and dates become strings, a lone surrogate becomes a question mark.

    Raises BadRecord if the record is nested too deeply or too large, contains a NUL, as a hole in a file does, or if a
    column in `texts` has bytes that are not UTF-8.
    """

    def text_of(value: Any) -> str:
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            binary.append(value)
            return value.hex()

    if _nested(record, MAX_DEPTH):
        raise BadRecord(f"lists and objects nested more than {MAX_DEPTH} deep")
    binary: list[bytes] = []
    for name in sorted(record.keys() & set(texts)):
        json.dumps(record[name], default=text_of)
        if binary:
            raise BadRecord(f"{name}: bytes that are not UTF-8")
    text = json.dumps(record, default=text_of, ensure_ascii=False)
    if len(text) > MAX_JSON_BYTES // 2:
        raise BadRecord(f"{len(text):,} characters; a column holds texts and numbers, not media")
    if "\\u0000" in text:
        raise BadRecord("a NUL character")
    return json.loads(text.encode("utf-8", "replace"))


def _nested(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return depth < 0 or any(_nested(item, depth - 1) for item in value if isinstance(item, dict | list))
