"""Streams the records of a table with their lines: CSV, TSV, JSON Lines, JSON, Parquet, or the lines
of a text.

Reading continues after an invalid record: the reason is yielded in its place. The whole table is
invalid if the start of the next record is unknown: after an unclosed quote in CSV, or in a JSON
document. pyarrow does not read texts: after an unclosed quote, its CSV reader silently merges the
following rows into one field, and its JSON reader fails on a whole file because of one line.

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
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.file_type import HEAD_BYTES, MEDIA_EXTENSIONS, find_placeholder
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.sources.form import (
    FORMS,
    LIST,
    TABLE,
    UNKNOWN,
    Columns,
    Form,
    Record,
    has_any,
    read_text,
    split_in,
    unwrap,
)
from alpro.shards.storage import Location, local_copy
from alpro.shards.tar import GZIP

Records = Iterator[tuple[str, Record | str]]
LINES = (".txt", ".token")  # .token: Flickr8k's and Flickr30k's captions
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", *LINES)
HEAD = 200  # records whose columns decide the form
FILE_LISTS = ("video", "videos", "image", "images")  # around conversations
PARQUET_BATCH_ROWS = 1024  # rows of a Parquet file that are read at a time
# Bytes that are not UTF-8, by `surrogateescape`.
NOT_UTF8 = re.compile("[\udc80-\udcff]")
# The first line of JSON. A template such as `{id}` may be the name of a column.
JSON_START = re.compile(r"""\s*(?:[\[{]\s*$|\{\s*"|\[\s*[\["{])""")
SAVE_AS_UTF8 = "not UTF-8; save it as UTF-8"
READING_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    RecursionError,
    csv.Error,
    pa.ArrowException,
)
csv.field_size_limit(MAX_JSON_BYTES // 2)  # by default 131,072 characters


@dataclass(frozen=True)
class Origin:
    """Where records come from.

    Args:
        split: The split of their table.
        inside: The folder that its names are relative to.
        number: Its number among the tables.
        selects: Whether only rows of this split are read.
    """

    split: str = ""
    inside: str = ""
    number: int = 0
    selects: bool = False


NO_ORIGIN = Origin()


class UnreadableTable(InputError):
    """Raised if a table is a pointer file (Git LFS, git-annex), or has the bytes of media in it."""


class Table:
    """A table with its form (UNKNOWN if the columns are), and its records with their lines or
    entries. The file is opened once; the constructor reads the first records.

    Args:
        user_form: Form with the keys that the user has set. They also override a published form.
            TABLE if none are.

    Raises:
        InputError: If the table is missing, corrupt, in another format or not UTF-8, or if it is a
            placeholder.
    """

    def __init__(
        self,
        path: Location,
        user_form: Form = TABLE,
        origin: Origin = NO_ORIGIN,
    ):
        self.path = path
        self.origin = origin
        self.split = ""  # the split that its name or its folder names
        self.name = PurePosixPath(str(path)).name
        self.place = self.name  # its path in a folder
        self.extension = PurePosixPath(self.name.lower().removesuffix(".gz")).suffix
        self.user_form = user_form
        # Until the columns show that it is a published one.
        self.form = user_form
        self.document: Any = None  # parsed JSON
        self._start = b""
        records = self._read()
        self.head = list(islice(records, HEAD))
        self.records = chain(self.head, records)
        self.head_records = [
            record for _, record in self.head if isinstance(record, dict)
        ]
        # The form of the first records together.
        self.columns = [*dict.fromkeys(chain.from_iterable(self.head_records))]
        self._find_published(
            lambda form: (
                not (form.records or form.line)
                and form.fits(self.columns, self.extension)
            )
        )
        usual = LIST if self.columns == ["$value"] else TABLE
        bound = usual.bind(self.columns)
        # A list of files has no column of the user's form.
        names = {*self.columns} - {"$value"}
        fits_user = has_any(user_form.meanings, names) or bound.has_texts(names)
        if bound.file and self.form is user_form and not fits_user:
            self.form = usual
            self.user_form = TABLE
        # The form with the columns of the first records.
        self.bound = self.form.bind(self.columns)
        if self.form is TABLE and not self.bound.file:
            self.refuse_placeholder()
            self.form = self.bound = UNKNOWN
        # Whether its records only complete the records of another table.
        self.is_partner = not (self.bound.file or self.bound.usual)
        self.has_texts = self.is_partner or self.bound.has_texts(self.columns)

    def _find_published(self, fits: Callable[[Form], bool]) -> None:
        """Set the first published form that fits, unless one is set or the user has set where records
        are."""
        user = self.user_form
        if self.form is user and not (user.records or user.line):
            published = next(filter(fits, FORMS), None)
            if published:
                self.form = published.override(user)

    def _find_form_of_document(self, document: Any) -> None:
        """Set the published form whose columns the records inside of a document have."""

        def fits(form: Form) -> bool:
            _, first = next(records_in(document, form), ("", ""))
            # A reason in place of a record has no columns.
            return bool(form.records) and form.fits(first, self.extension)

        self._find_published(fits)

    @property
    def lists_files(self) -> bool:
        """Whether it has no texts, but the column of the files, or the object that has it."""
        return has_any(self.bound.file_columns, self.columns) and not self.has_texts

    @property
    def named_splits(self) -> set[Any]:
        """The splits that its first records name."""
        cells = (record.get(self.bound.split) for record in self.head_records)
        return {*map(split_in, map(read_text, cells))} - {""}

    def refuse_placeholder(self) -> None:
        """Raise UnreadableTable if the contents are stored elsewhere."""
        placeholder = find_placeholder(self._start)
        if placeholder:
            raise UnreadableTable(f"{self.path}: {placeholder}")

    def _read(self) -> Records:
        try:
            # To open one that nobody writes would wait for ever.
            if isinstance(self.path, Path) and self.path.is_fifo():
                raise ValueError("it is a pipe; name a file")
            with local_copy(self.path) as local, open(local, "rb") as raw:
                self._start = raw.read(HEAD_BYTES)
                raw.seek(0)
                if self.extension == ".parquet":
                    yield from self._read_parquet(raw)
                    return
                if self.extension not in TABLES:
                    raise ValueError(
                        "unsupported format; name the folder of the videos, or a table: .csv, .tsv, .jsonl, "
                        ".json, .parquet or .txt"
                    )
                file: Any = gzip.open(raw) if self._start.startswith(GZIP) else raw
                head = file.peek(1024)[:1024]
                # In UTF-16, one of the two bytes of an ASCII character is 0. A single NUL is a hole
                # and invalidates only its own record.
                if head.count(0) * 8 > len(head):
                    raise ValueError("it is UTF-16 or not text; save it as UTF-8")
                # One line would have all captions. The last byte may be half of an end of a line.
                if b"\r" in head[:-1] and b"\n" not in head:
                    raise ValueError("its lines end with \\r alone; save it with \\n")
                # Bytes that are not UTF-8 invalidate only their own record.
                text = io.TextIOWrapper(
                    file,
                    "utf-8-sig",
                    "surrogateescape",
                    newline="\n",
                )
                if self.extension == ".json":
                    yield from self._read_document(text.read())
                elif self.extension in (".jsonl", ".ndjson"):
                    yield from self._read_json_lines(text)
                else:
                    yield from self._read_lines(text)
        except READING_ERRORS as error:
            self.refuse_placeholder()
            # The message of an OSError repeats the path.
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path}: cannot be read: {reason}") from error

    def _read_document(self, content: str) -> Records:
        """Return the records of a JSON document, where its form says."""
        if NOT_UTF8.search(content):
            raise ValueError(SAVE_AS_UTF8)
        try:
            self.document = parse_json(content)
        except ValueError as error:
            if isinstance(parse_object(content.lstrip().partition("\n")[0]), str):
                raise ValueError(f"not JSON: {error}") from None
            return self._read_json_lines(io.StringIO(content))  # under another name

        self._find_form_of_document(self.document)
        return records_in(self.document, self.form)

    def _read_json_lines(self, text: Iterable[str]) -> Records:
        """Yield the objects of JSON Lines, or the records inside of them."""
        form: Form | None = None
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            record = parse_object(line)
            if isinstance(record, str):
                yield f"line {number}", record
                continue
            # Each line is an entry of a list.
            if form is None:
                self._find_form_of_document([record])
                form = self.form
            for where, found in records_in([record], form):
                yield where.replace("entry 1", f"line {number}", 1), found

    def _read_lines(self, text: IO[str]) -> Records:
        """Yield the lines of a text: by the pattern of a form, as rows below a header, or as values.

        It may begin with comments, which are blank or begin with `#`.
        """
        for skipped, first in enumerate(text):  # noqa: B007 - used below
            # Beside other columns, # is the name of one.
            if not re.match(r"\s*#(?!\s*[,;|\t])|[\s,;|]*$", first):
                break
        else:
            return
        self._find_published(
            lambda form: bool(form.line and form.line.fullmatch(first.strip()))
        )
        form = self.form
        pattern = form.line
        if pattern is None and JSON_START.match(first):
            raise ValueError("it is JSON; name it .json")
        is_table = self.extension not in LINES
        names = re.split(r'[\s"]*[,;|\t][\s"]*', first.strip('" \n'))
        if pattern is None and not is_table and len(names) > 1:
            # The first line of a text may have the names of columns.
            check_columns(names)
            is_table = "\t" in first.strip() or bool(form.bind(names).file)
        if pattern is None and is_table:
            yield from read_cells(first, text, self.extension, skipped)
            return

        lines = map(str.strip, chain([first], text))
        for number, line in enumerate(lines, skipped + 1):
            where = f"line {number}"
            match = re.fullmatch(pattern or ".*", line)
            if NOT_UTF8.search(line):
                yield where, SAVE_AS_UTF8
            elif line and match:
                yield where, match.groupdict() or {"$value": line}
            elif line:
                yield where, f"not a line of {form.title}"

    def _read_parquet(self, file: IO[bytes]) -> Records:
        with pq.ParquetFile(file) as table:
            check_columns(table.schema_arrow.names)
            for field in table.schema_arrow:
                # `push_to_hub`, and video2dataset with the output `parquet`, write media into them.
                if "binary" in str(field.type):
                    raise UnreadableTable(
                        f"{self.path}: the column {field.name!r} has bytes; write the videos or images "
                        "inside of the table into files, and a table of texts with the columns `video` "
                        "and `caption`"
                    )
            batches = table.iter_batches(PARQUET_BATCH_ROWS)
            records = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, record in enumerate(records, 1):
                yield f"row {number}", record


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError if a key appears twice: the first value would be lost."""

    def make_object(pairs: list[tuple[str, Any]]) -> Record:
        record: Record = {}
        for key, value in pairs:
            if key in record:
                raise ValueError(f"the key {key!r} appears twice")
            record[key] = value
        return record

    return json.loads(text, object_pairs_hook=make_object)


def parse_object(line: str) -> Record | str:
    """Return the object of a line, or the reason why the line is invalid."""
    if NOT_UTF8.search(line):
        return SAVE_AS_UTF8
    try:
        record = parse_json(line)
    except (ValueError, RecursionError) as error:
        # A number with too many digits is a ValueError, too.
        return f"not JSON: {getattr(error, 'msg', error)}"
    return record if isinstance(record, dict) else "not a JSON object"


def read_cells(
    header: str,
    lines: Iterable[str],
    extension: str,
    skipped: int,
) -> Records:
    """Yield the rows below the names of the columns. skipped: the number of lines above."""
    usual = "\t" if extension == ".tsv" else ","
    # Quoted separators are parts of names.
    separator = max((usual, *",\t;|"), key=re.sub('"[^"]*"', "", header).count)
    is_quoted = extension != ".tsv" or separator != "\t" or header.startswith('"')
    reader = csv.reader(
        chain([header], lines),
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
        # People write spaces after commas; a quotation mark after one opens a text.
        skipinitialspace=f"{separator} " in header,
    )
    columns = check_columns(next(reader, []))
    while True:
        line = skipped + reader.line_num + 1
        where = f"line {line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # The end of this text is unknown: continuing could lose rows.
            if skipped + reader.line_num > line:
                raise ValueError(
                    f"{where}: unclosed quotation mark at the start of a text ({error}); "
                    "double the quotation marks that are part of a text"
                ) from None
            yield where, str(error)
            continue
        if cells is None:
            return
        # Without quoting, a text that begins with a quotation mark should end with one.
        is_unclosed = not is_quoted and any(
            cell.startswith('"') and cell.count('"') % 2 for cell in cells
        )
        if any(map(str.strip, cells[len(columns) :])):
            yield where, "more cells than columns; quote texts with commas"
        elif any(map(NOT_UTF8.search, cells)):
            yield where, SAVE_AS_UTF8
        elif is_unclosed:
            reason = "an unclosed quotation mark; save a table with quoted texts as CSV"
            yield where, reason
        elif any(map(str.strip, cells)):
            # Columns that a short row lacks are empty, so that all rows have the table's form.
            record = dict(zip_longest(columns, cells[: len(columns)], fillvalue=""))
            record.pop("", None)
            yield where, record


def check_columns(columns: list[str]) -> list[str]:
    """Return the names of the columns without spaces around them. Raises ValueError for duplicates,
    and for a first line that is a row."""
    if any(map(NOT_UTF8.search, columns)):
        raise ValueError(f"line 1: {SAVE_AS_UTF8}")
    columns = [name.strip() for name in columns]
    for name in columns:
        # The line may also be a path and a number, or Excel's `sep=;`. pandas writes columns such
        # as `segment.ts`.
        word = name.partition(" ")[0]
        extension = PurePosixPath(word).suffix.lower()
        is_media = extension in MEDIA_EXTENSIONS and extension != ".ts"
        if is_media or word.startswith("sep=") or (name and columns.count(name) > 1):
            raise ValueError(
                f"line 1 is a row, or the column {name!r} appears twice; the first line has the "
                "names of the columns, such as path,caption"
            )
    return columns


def records_in(document: Any, form: Columns) -> Records:
    """Yield the records of a JSON document with their places, joined with the records of its other
    list; a reason in place of an invalid record."""
    records = walk(document, form.records.split(".") if form.records else [], "entry")
    join = form.join
    if not (join and join.list):
        yield from records
        return

    partners: dict[str, Record | str] = {}
    for _, partner in walk(document, join.list.split("."), ""):
        key = str(partner.get(join.key))
        if partners.setdefault(key, partner) != partner:
            partners[key] = f"two entries of `{join.list}` have the {join.key} {key}"
    for where, record in records:
        key = str(record.get(join.on))
        reason = f"no entry of `{join.list}` has the {join.key} {key}"
        found = partners.get(key, reason)
        yield where, found if isinstance(found, str) else found | record


def walk(
    value: Any,
    path: list[str],
    where: str,
    outer: Record | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield the records at a path of keys, where `*` is each key, and each entry of a list is one.

    Args:
        outer: The texts, numbers, objects and lists of one video around, which the record has too, with
            the innermost key as `$key`, and the one around it as `$outer`; None at the top of a
            document, whose own texts describe the document.
    """
    around = outer or {}
    has_records = isinstance(value, list) and any(
        isinstance(each, dict) for each in value
    )
    # A list of texts in an object is a cell.
    if isinstance(value, list) and (path or has_records or not around):
        rest = path[1:] if path[:1] == ["*"] else path
        for number, each in enumerate(value, 1):
            yield from walk(each, rest, f"{where} {number}", around)
        return

    if not path:
        columns = value if isinstance(value, dict) else {"$value": value}
        yield where, around | columns
    elif isinstance(value, dict):
        key, *rest = path
        if outer is not None:
            # Beside one key, objects describe its records; beside `*`, they are others of its kind.
            kinds = str | int | float if key == "*" else str | int | float | dict
            # Other lists may be texts, which are no texts of the records.
            cells = {
                name: cell
                for name, cell in value.items()
                if isinstance(unwrap(cell) if name in FILE_LISTS else cell, kinds)
            }
            around = around | cells
            around.pop(key, None)
        if key == "*" and "$key" in around:
            around = around | {"$outer": around["$key"]}
        for name in value if key == "*" else value.keys() & {key}:
            inner = around | {"$key": name} if key == "*" else around
            yield from walk(value[name], rest, f"{where} {name!r}", inner)
