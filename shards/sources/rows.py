"""The rows of a source: what the records of its tables say of a file, or of a part of it, in a
split, joined to one row.

The records are not held in memory: each is written to a temporary file, with hashes of what it is
about. If no two are about the same, as in a table with a row for each video, each is a row;
otherwise those that are about the same are joined.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.shards.file_type import media_kind, read_head
from alpro.shards.schema import KINDS, MAX_JSON_BYTES, Reject, Row
from alpro.shards.sources.cells import (
    has_words,
    read_captions,
    read_parts,
    read_questions,
    read_text,
)
from alpro.shards.sources.form import Form, Record, fold, places, read_cell, read_words, split_in
from alpro.shards.sources.media import Folder, Notes, cut_extension, is_file
from alpro.shards.storage import Location, is_url, resolve, suffix

TEXTS = "texts"  # in place of a split: the texts of files that other tables only list
MEMORY_BYTES = 1 << 26  # of records, beyond which they are in a file on the disk
MAX_WORDLESS_SHARE = 0.2  # of the texts
MAX_COMPARED = 50  # names without a file that are compared with those of all files
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON: after an even number of backslashes
MAYBE_ANIMATED = {".png", ".webp", ".avif"}
# Notes.
NO_FILE = (
    "names have no file: correct them, or set `file` or `anywhere` in `columns`, or pass the folder "
    "above the table and its files"
)
WORDLESS = "texts have no word, only numbers, times or codes, and are no captions"

Rows = Iterator[Row | Reject]
Part = dict[str, Any]  # The fields of a row, and `where` and `paragraphs`.


@dataclass(frozen=True)
class Origin:
    """Where records come from: the split of their table, the folder that its names are relative to,
    its number among the tables, and whether only rows of its split are read."""

    split: str = ""
    inside: str = ""
    number: int = 0
    selects: bool = False


class Items:
    """The records of a source, joined by split, file, start and end. An item has the id, the group
    and the other columns of its first record, and the texts of all."""

    def __init__(
        self, root: Location, notes: Notes, folder: Folder | None, names_root: Path | None
    ):
        """root: what names are relative to. folder: its files; None at a URL. names_root: the
        folder that corresponds to it in the names."""
        self.root = root
        self.notes = notes
        self.folder = folder
        self.names_root = names_root
        self.text_count = 0
        self._splits: Counter[str] = Counter()  # that records name
        self._folder_splits: Counter[str] = Counter()
        self._missing: set[int] = set()
        self._texts: dict[str, Part] = {}  # of files that other tables list
        self._parts = SpooledTemporaryFile(MEMORY_BYTES)
        # For each part: the hashes of its file and times, with its split, and of its id.
        self._hashes = array("q")

    def add(
        self,
        where: str,
        record: Record,
        form: Form,
        origin: Origin = Origin(),
        media: Part | None = None,
    ) -> Iterator[Reject]:
        """Add a record; yields the reject of an invalid one, or of the first whose file is missing.
        media: the file, if the record does not name it. Raises InputError for a URL with a
        secret."""
        try:
            part = {"where": where} | (media or {})
            yield from self._add(part, check_record(record), form.bind(record), origin)
        except (ValueError, TypeError, OverflowError) as error:
            shown = where.encode("utf-8", "replace").decode()
            yield Reject(id=shown, path="", reason="bad row", detail=str(error))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def _add(self, part: Part, record: Record, form: Form, origin: Origin) -> Iterator[Reject]:
        def read(column: str) -> str:
            return read_text(read_cell(record, column)).strip() if column else ""

        if any(read(column) != value for column, value in form.where.items()):
            self.notes.add("rows are left out by `where`", part["where"])
            return
        split = split_in(read(form.split))
        if split is None:
            raise ValueError(f"unknown split {read(form.split)!r}; use train, validation, test")
        if origin.selects and split not in ("", origin.split):
            self.notes.add(f"rows are of another split than {origin.split}", part["where"])
            return
        part |= {"split": (origin.split != TEXTS and split) or origin.split}
        part |= {"id": read(form.id), "group": read(form.group)}
        part["meta"] = {
            key: cell
            for key, cell in record.items()
            if key not in form.meanings and read_text(cell) != ""
        }
        for key, cell in ({"id": part["id"], "group": part["group"]} | part["meta"]).items():
            refuse_credentials(key, cell)
        part["questions"] = [asked.model_dump() for asked in read_questions(record, form)]
        times = read_parts(record, form)

        if "path" not in part:
            name, path = self._find(read_file_name(record, form), form, origin, read(form.url))
            key = hash((part["split"], name, times[0][0]))
            if not path and part["split"] != TEXTS and key not in self._missing:
                self._missing.add(key)
                yield self._reject_missing(part["id"] or cut_extension(name), name)
            if not path:
                return
            part |= {"name": name, "path": path, "kind": read(form.kind).lower() or find_kind(path)}
            if part["kind"] not in KINDS:
                raise ValueError(f"kind: {part['kind']!r}; use video or image")
        for (start, end), cells in times:
            texts = [text for cell in cells for text in self._read_captions(cell, part["where"])]
            part |= {"start": start, "end": end, "captions": [], "paragraphs": {}}
            if form.paragraph:
                # Each row is one, or all rows of a table that have this file.
                number = len(self._hashes) if form.paragraph == "row" else -origin.number
                part["paragraphs"][str(number)] = texts
            else:
                part["captions"] = list(dict.fromkeys(texts))
            self._write(part)

    def _find(self, text: str, form: Form, origin: Origin, url: str) -> tuple[str, str]:
        """Return the name of a file, relative to the data, and its path, which is empty if the file
        is missing; of a URL, both are the URL."""
        location = self._resolve(text) if self.folder is None or is_url(text) else Path(text)
        if self.folder is None or isinstance(location, str):
            return str(location), str(location)
        name = str(location).replace("\\", "/")  # as Windows writes it
        if self.names_root:
            whole = os.path.normpath(self.names_root / name)
            name = whole.removeprefix(f"{self.names_root}/")
        whole = str(self._resolve(os.path.join(origin.inside, name)))  # noqa: PTH118 - much faster
        name = whole.removeprefix(f"{self.folder.path}/")
        if name == whole:
            raise ValueError(f"{text!r} names no file")
        found = self.folder.find(name, form.prefixes, form.anywhere)
        if not found and url and not self.folder.media:
            url = str(self._resolve(url))
            return url, url
        return found or name, f"{self.folder.path}/{found}" if found else ""

    def _resolve(self, name: str) -> Location:
        try:
            return resolve(self.root, name)
        except InputError as error:
            refuse_credentials("path", name)
            raise ValueError(
                f"{name!r} is outside the data folder {self.root}; put the table above its files, "
                "or set `root` of the corpus to the folder that corresponds to it"
            ) from error

    def _reject_missing(self, row_id: str, name: str) -> Reject:
        assert self.folder is not None
        similar = self.folder.similar(name) if len(self._missing) <= MAX_COMPARED else []
        # Names of files may have bytes that are not UTF-8.
        shown = ", ".join(similar).encode("utf-8", "replace").decode()
        detail = f"similar files: {shown}" if similar else ""
        self.notes.add(NO_FILE, f"{name} ({detail})" if detail else name)
        return Reject(id=row_id, path=name, reason="missing", detail=detail)

    def _read_captions(self, cell: Any, where: str) -> Iterator[str]:
        for text in read_captions(cell):
            self.text_count += 1
            if has_words(text):
                yield text
            else:
                self.notes.add(WORDLESS, f"{text[:60]!r} ({where})")

    def _write(self, part: Part) -> None:
        place = place_of(part)
        if part["split"] == TEXTS:
            join_part(self._texts.setdefault(place, {}), part)
            return
        self._splits[part["split"]] += 1
        self._folder_splits[split_of_path(part["name"])] += 1
        part["name_id"] = default_id(part)
        self._parts.write(to_json(part) + b"\n")
        row_id = part["id"] or part["name_id"]
        self._hashes.extend(map(hash, (place, part["split"] + place, row_id)))

    def _read_parts(self) -> Iterator[tuple[int, Part]]:
        """The records in their order, each with the hash of what is joined."""
        self._parts.seek(0)
        for key, line in zip(self._hashes[1::3], self._parts, strict=True):
            yield key, from_json(line)

    def rows(self) -> Rows:
        """Yields a row for each item, in the order of their first records. Raises InputError if an
        id is used twice, or if many texts have no word."""
        self.check_words()
        hashes = np.array(self._hashes, np.int64).reshape(-1, 3)
        first = hashes[np.unique(hashes[:, 1], return_index=True)[1]]
        places, _, ids = map(find_repeated, first.T)
        repeated = find_repeated(hashes[:, 1])
        joined: dict[str, Part] = {}
        for key, part in self._read_parts() if repeated else ():
            if key in repeated:
                join_part(joined.setdefault(part["split"] + place_of(part), {}), part)

        used: dict[str, str] = {}  # where ids were used that several items would have
        for key, part in self._read_parts():
            if key in repeated:
                # Without one, it was joined to an earlier record.
                part = joined.pop(part["split"] + place_of(part), {})
            if not part:
                continue
            row_id = part["id"] or part["name_id"]
            if hash(row_id) in ids:
                # The split of a file in several comes first, or else the name has its extension.
                if hash(place_of(part)) in places:
                    row_id = f"{part['split'] or 'train'}/{row_id}"
                elif not part["id"]:
                    row_id = row_id.replace(cut_extension(part["name"]), part["name"])
                place = f"{part['path']} ({part['where']})"
                if row_id in used:
                    raise InputError(
                        f"{place}: the id {row_id!r} is also that of {used[row_id]}; ids must be unique"
                    )
                used[row_id] = place
            yield self._row(part | {"id": row_id})
        self._note_folders()

    def _note_folders(self) -> None:
        """Note whether folders that are named as splits are splits."""
        for split in self._folder_splits.keys() - {""} if self._splits.keys() <= {""} else ():
            reason = "folders named as splits are splits"
            if not self.has_split_folders:
                reason = (
                    "folders are named as splits and are none, without one of train and another: "
                    "name the splits in a column `split`"
                )
            self.notes.add(reason, f"{split} ({self._folder_splits[split]} rows)")

    def check_words(self) -> None:
        """Raises InputError if many texts have no word: they are boxes, times or measurements."""
        if self.notes.counts[WORDLESS] > MAX_WORDLESS_SHARE * self.text_count:
            raise InputError(f"{self.root}: of {self.text_count}, {self.notes.line(WORDLESS)}")

    def _row(self, part: Part) -> Row | Reject:
        if not (part["captions"] or part["paragraphs"] or part["questions"]):
            texts = self._texts.get(place_of(part), part)
            part |= {key: texts[key] for key in ("captions", "paragraphs", "questions")}
        if self.has_split_folders:
            part["split"] = split_of_path(part["name"])
        part["captions"] += filter(None, map(" ".join, part["paragraphs"].values()))
        try:
            return Row.model_validate(part)
        except ValidationError as error:
            first = error.errors()[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            return Reject(id=part["where"], path=part["name"], reason="bad row", detail=detail)

    @property
    def has_split_folders(self) -> bool:
        """Whether no record names a split, and files are in folders of training and of another."""
        folders = self._folder_splits.keys() - {""}
        return self._splits.keys() <= {""} and "train" in folders and len(folders) > 1


def check_record(record: Record) -> Record:
    """Return a record as JSON has it: bytes and dates become texts, a lone surrogate a question
    mark.

    Raises ValueError if it cannot be stored and read again: it is nested too deeply or too large,
    or has bytes that are not UTF-8, or a NUL, as a hole in a file has.
    """

    def convert(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    try:
        text = json.dumps(record, default=convert, ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > MAX_JSON_BYTES // 2:
        raise ValueError(f"{len(encoded):,} bytes; a column holds texts and numbers, not media")
    if NUL.search(text):
        raise ValueError("a NUL character")
    # Readers have a limit of 200 levels; in a sample a record is one level deeper.
    [[value]] = from_json(b"[[%s]]" % encoded)
    return value


def read_file_name(record: Record, form: Form) -> str:
    """Return the file that a record names: that of the first template whose columns it has. Raises
    ValueError if it names none."""
    for template in form.file:
        name = template
        for column in places(template):
            cell = read_cell(record, column)
            # Hugging Face's datasets have an object with the path.
            text = read_text(cell.get("path") if isinstance(cell, dict) else cell).strip()
            # A number that joins two lists is a key, and no name.
            if not text or (form.join and column == form.join.on and isinstance(cell, int)):
                break
            name = name.replace(f"{{{column}}}" if "{" in template else column, text)
        else:
            return name
    raise ValueError("no name of a file")


def split_of_path(path: str) -> str:
    """Return the split that the first folder of a path with a split's name names, or an empty
    string."""
    for folder in path.split("/")[:-1]:
        for split, words in read_words("splits").items():
            if fold(folder) in words:
                return split
    return ""


def find_kind(path: str) -> str:
    """Return the kind of a file: that of its extension, unless it is animated."""
    extension = suffix(path if is_url(path) else Path(path))
    is_read = extension in MAYBE_ANIMATED and is_file(Path(path))
    return media_kind(PurePosixPath(f"a{extension}"), read_head(Path(path)) if is_read else b"")


def default_id(part: Part) -> str:
    """Return the name of an item's file without its extension, and of a URL without its protocol,
    with the times of a part."""
    name = cut_extension(part["name"])
    if cut_extension(name) != name:  # a.mp4.jpg, the picture of a.mp4
        name = part["name"]
    if is_url(name):
        address, mark, query = name.partition("://")[2].partition("?")
        name = f"{address.removesuffix(suffix(part['name']))}{mark}{query}"
    start, end = part["start"], part["end"]
    if start is end is None:
        return name
    return f"{name}@{start or 0:g}-{'' if end is None else f'{end:g}'}"


def place_of(part: Part) -> str:
    return f"{part['path']}\0{part['name']}\0{part['start']}\0{part['end']}"


def join_part(item: Part, part: Part) -> None:
    """Adds to an item what a record says of it."""
    # Each record of a question may have the captions of its video.
    known = item["captions"] if item and part["questions"] else ()
    texts = [text for text in part["captions"] if text not in known]
    item.setdefault("captions", []).extend(texts)
    item.setdefault("questions", []).extend(part["questions"])
    for number, sentences in part["paragraphs"].items():
        item.setdefault("paragraphs", {}).setdefault(number, []).extend(sentences)
    item["meta"] = part["meta"] | item.get("meta", {})
    for key, value in part.items():
        item.setdefault(key, value)


def find_repeated(values: np.ndarray) -> set[int]:
    """Return the values that occur more than once."""
    unique, counts = np.unique(values, return_counts=True)
    return set(unique[counts > 1].tolist())
