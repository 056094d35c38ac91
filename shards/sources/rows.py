"""The rows of a source: what its records say of a file, or of a part of it, in a split.

The records are not held in memory: SQLite groups them in a temporary file.
"""

import errno
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from posixpath import dirname
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from alpro.errors import InputError, first_fault
from alpro.shards.clip import Reason
from alpro.shards.credentials import redact, refuse_credentials
from alpro.shards.file_type import IMAGE_EXTENSIONS, is_animated_file
from alpro.shards.schema import KINDS, MAX_JSON_BYTES, MissingItem, Reject, Row
from alpro.shards.sources.form import (
    BESIDE,
    TEMPLATE_COLUMN,
    WORDS,
    FilePart,
    Form,
    Record,
    fold,
    has_words,
    read_captions,
    read_cell,
    read_parts,
    read_questions,
    read_text,
    split_in,
    unwrap,
)
from alpro.shards.sources.media import (
    Folder,
    Notes,
    compose,
    cut_extension,
    read_suffix,
    show,
)
from alpro.shards.sources.tables import NO_ORIGIN, Origin
from alpro.shards.storage import Location, is_url, resolve, suffix

TEXTS = "texts"  # In place of a split: the texts of files that other tables only list.
MAX_WORDLESS_SHARE = 0.2
MAX_NAME_LENGTH = 1024  # A longer name of a file is rather its bytes in base64.
MAX_COMPARED = 50  # Names without a file that are compared with the names of all files.
# The records of an item have one split and one place: the file and its times. Texts are those of
# files that other tables list.
TABLES = """
    CREATE TABLE records (split TEXT, place TEXT, id TEXT, part BLOB);
    CREATE VIEW parts AS SELECT rowid, * FROM records WHERE split <> 'texts';
    CREATE VIEW texts AS SELECT place, part FROM records WHERE split = 'texts';
"""
# The parts of each item in their order; the items in the order of their first parts.
ITEMS = """
    SELECT min(rowid) OVER (PARTITION BY split, place) AS first, place, part
    FROM parts ORDER BY first, rowid
"""
# Places and ids.
OF_SEVERAL_SPLITS = """
    SELECT place FROM parts GROUP BY place HAVING count(DISTINCT split) > 1
    UNION SELECT id FROM parts GROUP BY id HAVING count(DISTINCT split) > 1
"""
NAMED_SPLITS = "SELECT DISTINCT split FROM parts WHERE split <> ''"
UNLISTED = """
    SELECT DISTINCT json_extract(place, '$[1]') FROM texts
    WHERE place NOT IN (SELECT place FROM parts)
"""
IDS_OF_SEVERAL_ITEMS = """
    SELECT id FROM (SELECT id, min(rowid) FROM parts GROUP BY split, place)
    GROUP BY id HAVING count(*) > 1
"""
# In JSON: after an even number of backslashes.
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
MAYBE_ANIMATED = {".png", ".webp", ".avif"}
# Notes.
NO_FILE = (
    "names have no file: correct them, or pass the folder above the table and its files, or set, in the "
    "`columns` of the corpus, `anywhere = true` to find them in subfolders, or `file`"
)
WORDLESS = "texts have no word (boxes, codes) or are subtitles, and are no captions"

TEXT_KEYS = ("captions", "paragraphs", "questions")
Rows = Iterator[Row | Reject]
Part = dict[str, Any]  # The fields of a row, and `where` and `paragraphs`.


@dataclass
class Items:
    """The records of a source, joined by split, file, start and end.

    An item has the id, the group and the other columns of its first record, and the texts of all.

    Args:
        root: The folder that names are relative to.
        folder: Its files; None at a URL.
        names_root: The folder that corresponds to `root` in the names.

    Attributes:
        count: The number of parts and rejects that were added.
    """

    root: Location
    notes: Notes
    folder: Folder | None
    names_root: Path | None = None
    count: int = field(default=0, init=False)
    _text_count: int = field(default=0, init=False)
    _folder_splits: set[str] = field(default_factory=set, init=False)
    _parts: sqlite3.Connection = field(
        default_factory=lambda: sqlite3.connect("").executescript(TABLES).connection,
        init=False,
    )

    def add(
        self,
        where: str,
        record: Record | str,
        form: Form,
        origin: Origin = NO_ORIGIN,
        media: Part | None = None,
    ) -> Iterator[Reject]:
        """Add a record, or the reason why it could not be read. Yield the reject of an invalid one.

        Args:
            media: The file, if the record does not name it.

        Raises:
            InputError: If it has a URL with a secret.
        """
        try:
            if isinstance(record, str):
                raise ValueError(record)
            record = check_record(record)
            form = form.bind(record)
            part = {"where": where} | (media or {})
            for each in self._read(part, record, form, origin):
                self._write(each, form.paragraph, origin.number)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            self.count += 1
            refuse_credentials(where, str(error))
            yield reject_row(where, str(error))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def add_file(
        self,
        where: str,
        path: str,
        record: Record,
        form: Form = BESIDE,
        origin: Origin = NO_ORIGIN,
    ) -> Iterator[Reject]:
        """Add a file of the folder with the record of its text. `$reason` in it says why there is no
        text. Yield the reject of an invalid one."""
        reason = record.get("$reason")
        if show(path) != path:
            reason = "the name of the file is not UTF-8; rename it"
        if reason:
            yield reject_row(path, reason, show(path))
        else:
            # The file is known, whatever column the user's form has for it.
            media = {"name": path, "path": f"{self.root}/{path}"}
            yield from self.add(where, record, form, origin, media)

    def _read(
        self,
        part: Part,
        record: Record,
        form: Form,
        origin: Origin,
    ) -> Iterator[Part]:
        """Yield the parts of its file that a record is about, with their cells of captions."""
        for column, value in form.where.items():
            if read_text(read_cell(record, column)) != value:
                self.notes.add("rows are left out by `where`", part["where"])
                return
        cells = {
            key: read_text(read_cell(record, getattr(form, key)))
            for key in ("id", "group", "split", "kind")
        }
        split = split_in(cells["split"])
        if split is None:
            raise ValueError(
                f"unknown split {cells['split']!r}; use train, validation, test, or set `split` in `columns` "
                'to another column, or to ""'
            )
        if origin.selects and split not in ("", origin.split):
            reason = f"rows are of another split than {origin.split}"
            self.notes.add(reason, part["where"])
            return

        meta = {
            key: cell
            for key, cell in record.items()
            if key not in form.meanings and cell not in (None, "")
        }
        for key, cell in (*cells.items(), *meta.items()):
            refuse_credentials(key, cell)
        # Media have their kind.
        questions = [*read_questions(record, form)]
        part = {**cells, "meta": meta, "questions": questions, **part}
        part["split"] = origin.split if origin.split == TEXTS else split or origin.split
        captions = [read_cell(record, column) for column in form.captions]
        are_whole = form.paragraph == "file"
        whole: FilePart = (None, None), captions
        parts = [whole] if are_whole else read_parts(record, form, captions)

        if "path" not in part:
            # With the names of another table: the first of a file that there is.
            places = [
                self._find(name, record, form, origin)
                for name in read_file_names(record, form)
            ]
            found = min(places, key=lambda place: "missing" in place)
            part |= found
            if "missing" in part and part["split"] == TEXTS:
                return
        part["kind"] = part["kind"].lower() or find_kind(part["path"])
        if part["kind"] not in KINDS:
            raise ValueError(
                f'kind: {part["kind"]!r}; use video or image, or set `kind = ""` in `columns`'
            )
        for (start, end), texts in parts:
            yield part | {"start": start, "end": end, "captions": texts}

    def _write(self, part: Part, paragraph: str, table_number: int) -> None:
        """Write a part with the captions in its cells."""
        texts = []
        for text in chain.from_iterable(map(read_captions, part["captions"])):
            self._text_count += 1
            if has_words(text):
                texts.append(text)
            else:
                self.notes.add(WORDLESS, f"{redact(text)[:60]!r} ({part['where']})")
        part |= {"captions": list(dict.fromkeys(texts)), "paragraphs": {}}
        if paragraph == "file":
            # All rows of a table that have this file are one.
            part |= {"captions": [], "paragraphs": {str(table_number): texts}}
        elif paragraph and texts:
            part["captions"] = [" ".join(texts)]

        self.count += 1
        place = json.dumps([part["path"], part["name"], part["start"], part["end"]])
        self._folder_splits.add(split_of_path(part["name"]))
        part["id"] = part["id"] or default_id(part)
        values = (part["split"], place, part["id"], to_json(part))
        self._execute("INSERT INTO records VALUES (?, ?, ?, ?)", values)

    def _find(
        self,
        text: str,
        record: Record,
        form: Form,
        origin: Origin,
    ) -> Part:
        """Return the name of a record's file, relative to the data, and its path, with `missing` if
        there is no such file; of a URL, both are the URL."""
        if self.folder is None or is_url(text):
            location = str(resolve(self.root, text))
            if self.folder is None or is_url(location):
                return {"name": location, "path": location}

        if len(text) > MAX_NAME_LENGTH:
            raise ValueError(
                f"{text[:20]!r}... of {len(text):,} characters names no file"
            )
        base = f"{self.folder.path}/"
        if "\\" in text and not os.path.isfile(f"{base}{text}"):  # noqa: PTH113 - as in `find`
            text = text.replace("\\", "/")  # as Windows writes it
        if self.names_root:
            whole = os.path.normpath(self.names_root / text)
            text = whole.removeprefix(f"{self.names_root}/")
        path = str(resolve(self.root, os.path.join(origin.inside, text)))  # noqa: PTH118 - much faster
        name = path.removeprefix(base)
        if name == path:
            raise ValueError(f"{text!r} names no file")
        found = self.folder.find(name, form.prefixes, form.anywhere)
        if form.anywhere and not found:
            # A published folder may lie in another one.
            below = self.folder.find(text, form.prefixes, form.anywhere) or ""
            found = below if below.startswith(origin.inside) else None
        if found:
            # Not where it is found: a proposal also looks names up.
            if dirname(compose(found)) != dirname(compose(name)):
                self.notes.add("names were found in a subfolder", f"{name} ({found})")
            return {"name": found, "path": f"{base}{found}"}
        url = read_text(read_cell(record, form.url))
        if url and not self.folder.media:
            url = str(resolve(self.root, url))
            return {"name": url, "path": url}
        return {"name": name, "path": path, "missing": True}

    def _reject_missing(self, item: Part) -> MissingItem:
        similar: list[str] = []
        if self.folder and self.notes.counts[NO_FILE] < MAX_COMPARED:
            similar = self.folder.similar(item["name"])
        self.notes.add(NO_FILE, item["name"])
        item |= {
            "path": item["name"],
            "detail": f"similar files: {show(', '.join(similar))}" if similar else "",
            "captions": len(item["captions"]),
            "questions": len(item["questions"]),
        }
        return MissingItem.model_validate(item)

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._parts.execute(statement, values)
        except sqlite3.OperationalError as error:
            # The disk of its temporary file is full.
            raise OSError(errno.ENOSPC, str(error), tempfile.gettempdir()) from error

    def rows(self) -> Rows:
        """Yield a row for each item, in the order of their first records.

        Raises:
            InputError: If an id is used twice, or if many texts have no word: they are boxes, times
                or measurements.
        """
        if self.notes.counts[WORDLESS] > MAX_WORDLESS_SHARE * self._text_count:
            raise InputError(
                f"{self.root}: {self.notes.line(WORDLESS)}, of {self._text_count}; write captions in their "
                "place, or a table with the columns video, start, end and caption"
            )
        # Whether no record names a split, and files are in folders of training and of another.
        has_splits = self._execute(NAMED_SPLITS).fetchone()
        has_split_folders = {"train"} < self._folder_splits - {""} and not has_splits

        self._execute("CREATE INDEX places ON records (place) WHERE split = 'texts'")
        for name in chain.from_iterable(self._execute(UNLISTED)):
            self.notes.add("files are left out, as no list of a split names them", name)
        in_several_splits = {*chain.from_iterable(self._execute(OF_SEVERAL_SPLITS))}
        repeated_ids = {*chain.from_iterable(self._execute(IDS_OF_SEVERAL_ITEMS))}
        used_ids: dict[str, str] = {}
        parts_by_item = groupby(self._execute(ITEMS), lambda values: values[:2])
        for (_, place), parts in parts_by_item:
            records = [part for _, _, part in parts]
            item = join_parts(records)
            if not any(item[key] for key in TEXT_KEYS):
                texts = self._execute(
                    "SELECT part FROM texts WHERE place = ?", (place,)
                )
                item = join_parts([*records, *chain.from_iterable(texts)])
            if item["id"] in repeated_ids:
                # Numbers may begin again in each split. A default id is the file's.
                is_default = item["id"] == default_id(item)
                key = place if is_default else item["id"]
                if key in in_several_splits:
                    item["id"] = f"{item['split'] or 'train'}/{item['id']}"
                elif is_default:
                    item["id"] = default_id(item, is_short=False)
                where = f"{item['path']} ({item['where']})"
                other = used_ids.setdefault(item["id"], where)
                if other is not where:
                    raise InputError(
                        f"{where}: the id {item['id']!r} is also the id of {other}; give each its own "
                        'in a column `id`, or set `id = ""` in `columns`'
                    )
            if has_split_folders:
                item["split"] = split_of_path(item["name"])
            item["captions"] += filter(None, map(" ".join, item["paragraphs"].values()))
            if "missing" in item:
                yield self._reject_missing(item)
                continue
            try:
                yield Row.model_validate(item)
            except ValidationError as error:
                yield reject_row(item["where"], first_fault(error), item["name"])


def reject_row(
    where: str,
    detail: str,
    path: str = "",
    reason: Reason = "bad row",
) -> Reject:
    return Reject(
        id=show(where),
        path=path,
        reason=reason,
        detail=detail,
    )


def check_record(record: Record) -> Record:
    """Return a record as JSON has it: dates become texts, a lone surrogate a question mark.

    Raises:
        ValueError: If it cannot be stored and read again: it is nested deeply or too large, or has a
            NUL, as a hole in a file has.
        RecursionError: If it is nested too deeply.
    """
    text = json.dumps(record, default=str, ensure_ascii=False)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > MAX_JSON_BYTES // 2:
        raise ValueError(
            f"{len(encoded):,} bytes; a column holds texts and numbers, not media"
        )
    if NUL.search(text):
        raise ValueError("a NUL character")
    # Readers have a limit of 200 levels; in a sample a record is one level deeper.
    [[value]] = from_json(b"[[%s]]" % encoded)
    return value


def read_file_names(record: Record, form: Form) -> list[str]:
    """Return the file that a record names, by the first template whose columns it has; with a join of
    tables, which may name it in their own ways, by each.

    Raises:
        ValueError: If it names none.
    """
    # A number that joins two lists is a key, and no name.
    key = form.join.on if form.join and form.join.list else ""

    def fill(match: re.Match[str]) -> str:
        column = match[1] or match[0]
        cell = unwrap(read_cell(record, column))
        # Hugging Face's datasets have an object with the path.
        if isinstance(cell, dict):
            cell = cell.get("path")
        text = read_text(cell)
        if not text or (column == key and isinstance(cell, int)):
            raise LookupError
        return text.zfill(int(match[2] or 0))

    names = []
    for template in filter(None, form.file):
        with suppress(LookupError):
            names.append(TEMPLATE_COLUMN.sub(fill, template))
    if names:
        return names if form.partner_column else names[:1]
    columns = ", ".join(form.file) or "a column of a usual name"
    raise ValueError(
        f"no name of a file in {columns}; the record has {', '.join([*record][:20])}: set `file` in "
        "`columns`"
    )


def split_of_path(path: str) -> str:
    """Return the split that the first folder of a path with a split's name names, or an empty
    string."""
    for folder in path.split("/")[:-1]:
        for split, words in WORDS["splits"].items():
            if fold(folder) in words:
                return split
    return ""


def find_kind(path: str) -> str:
    """Return the kind of a file by its extension; an animated image is a video."""
    extension = suffix(path) if is_url(path) else read_suffix(path)
    is_moving = extension in MAYBE_ANIMATED and is_animated_file(Path(path))
    return "image" if extension in IMAGE_EXTENSIONS and not is_moving else "video"


def default_id(item: Part, is_short: bool = True) -> str:
    """Return the name of an item's file, with the times of a part.

    Args:
        is_short: Whether the name is without its extension, and a URL without its protocol.
    """
    name = item["name"]
    if is_short and is_url(name):
        address, mark, query = name.partition("://")[2].partition("?")
        name = f"{address.removesuffix(suffix(name))}{mark}{query}"
    elif is_short:
        stem = cut_extension(name)
        # a.mp4.jpg, the picture of a.mp4.
        name = name if cut_extension(stem) != stem else stem
    start = item["start"]
    end = item["end"]
    if start is end is None:
        return name
    return f"{name}@{start or 0:g}-{'' if end is None else f'{end:g}'}"


def join_parts(parts: list[bytes]) -> Part:
    """Return an item of its records: the first one, with the texts of all."""
    item, *others = map(from_json, parts)
    for part in others:
        # Each record of a question may have the captions of its video.
        known = item["captions"] if part["questions"] else ()
        item["captions"] += [
            caption for caption in part["captions"] if caption not in known
        ]
        item["questions"] += part["questions"]
        for number, sentences in part["paragraphs"].items():
            item["paragraphs"].setdefault(number, []).extend(sentences)
        item["meta"] = part["meta"] | item["meta"]
        item["group"] = item["group"] or part["group"]
    return item
