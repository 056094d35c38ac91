"""What a source is: a table, the tables of a folder, texts beside videos, or shards of a download,
and its rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.log import log, printable
from alpro.shards.file_type import MEDIA_EXTENSIONS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.cells import read_text
from alpro.shards.sources.downloads import is_downloads, scan_downloads
from alpro.shards.sources.folder_tables import choose_tables, open_tables
from alpro.shards.sources.form import TABLE, Columns, Record, user_form
from alpro.shards.sources.media import Folder, Notes
from alpro.shards.sources.propose import hides_options, unknown_columns
from alpro.shards.sources.rows import TEXTS, Items, Origin, Rows
from alpro.shards.sources.sidecars import BESIDE, Sidecars
from alpro.shards.sources.tables import Table
from alpro.shards.storage import Location, parent, suffix

DOWNLOADS = "shards of video2dataset or img2dataset"
Tables = list[tuple[Table, list[Origin]]]  # with what each is read for


def scan_source(
    data: Location, require_texts: bool = True, notes: Notes | None = None
) -> tuple[str, Rows]:
    """Return what a source is, and its rows; without `notes`, the notes are logged."""
    source = Source(data, require_texts=require_texts)
    what, rows = source.scan()
    return what, log_notes(rows, source.notes)


def log_notes(rows: Rows, notes: Notes) -> Rows:
    yield from rows
    for line in notes.lines():
        log.info(f"note: {printable(line)}")


def is_folder(path: Path) -> bool:
    """Raises InputError if a folder above may not be read."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


class Source:
    """A source of items, read once: a table, whose files lie beside it or below, a folder of videos,
    the tables of `annotations`, or shards of video2dataset or img2dataset."""

    def __init__(
        self,
        data: Location,
        annotations: Mapping[str, Sequence[Path]] | None = None,
        root: Path | None = None,
        columns: Columns | None = None,
        require_texts: bool = True,
    ):
        """annotations: tables by split; with the key "texts", the texts of the files that the others
        only list. root: the folder that corresponds to `data` in the names of the tables. columns:
        what the columns of the tables mean, if they have no published form. require_texts: whether
        a table needs texts. Raises InputError if a folder above may not be read."""
        self.data = data
        self.annotations = annotations or {}
        self.require_texts = require_texts
        self.form = user_form(columns) if columns else None
        self.notes = Notes()
        self.folder = None
        if isinstance(data, Path):
            self.folder = Folder(data if is_folder(data) else data.parent, self.notes)
        base = self.folder.path if self.folder else parent(data)
        self.items = Items(base, self.notes, self.folder, root)

    @cached_property
    def is_folder(self) -> bool:
        return self.folder is not None and self.folder.path == self.data

    def scan(self) -> tuple[str, Rows]:
        """Return what the source is, and its rows, with a reject for each invalid record. Raises
        InputError if it is unusable as a whole."""
        if self.annotations:
            return self.scan_tables(self.open_annotations())
        # First: the folder of a path that does not exist may be large.
        if isinstance(self.data, Path) and not self.data.exists():
            raise InputError(f"{self.data}: no such table (.csv, .jsonl, ...) or folder of videos")
        if self.folder is None or self.is_folder:
            has_tars = not self.folder or any(name.endswith(".tar") for name in self.folder.others)
            if has_tars and is_downloads(self.data):
                return DOWNLOADS, scan_downloads(self.data, self.items)
        if self.folder and self.is_folder:
            return self.scan_folder(self.folder)
        if suffix(self.data) in MEDIA_EXTENSIONS:
            raise InputError(f"{self.data}: a single file; name its folder")
        return self.scan_tables([(Table(self.data, self.form), [Origin()])])

    def open_annotations(self) -> Tables:
        if not self.is_folder:
            raise InputError(f"{self.data}: no such folder of videos")
        origins: defaultdict[Path, list[Origin]] = defaultdict(list)
        for split, files in self.annotations.items():
            for file in files:
                if not file.is_file():
                    raise InputError(f"{file}: no such annotation file ({split})")
                origins[file].append(Origin(split, "", len(origins), selects=split != TEXTS))
        return [(Table(file, self.form), each) for file, each in origins.items()]

    def scan_folder(self, folder: Folder) -> tuple[str, Rows]:
        sidecars = Sidecars(folder, self.form.texts if self.form else ())
        is_told = self.form is not None and not self.form.texts
        if is_told or not any(map(sidecars.find, folder.media)):
            opened = open_tables(folder, self.form)
            tables = choose_tables(folder, opened)
            if self.form and not tables:  # None has the columns that the user has told.
                tables = [(table, [Origin()]) for table in opened.values()]
            if tables:
                return self.scan_tables(tables)
            lists = [opened[name] for name in ("videos.txt", "prompts.txt") if name in opened]
            if len(lists) == 2:
                return "videos.txt and prompts.txt", self.read_lists(*lists)
            for table in opened.values():
                error = unknown_columns(table, self.items)
                if error.is_complete:
                    raise error
        return BESIDE.title, sidecars.scan(self.items)

    def scan_tables(self, tables: Tables) -> tuple[str, Rows]:
        """The rows of tables. Raises InputError if columns are not known."""
        has_texts = any(origin.split == TEXTS for _, (origin, *_) in tables)
        for table, _ in tables:
            may_list = table.bound.file and (has_texts or not self.require_texts)
            is_unknown = not (table.has_texts or may_list) or hides_options(table)
            # Columns that a user has told, and that the first records lack, may come later.
            has_told = table.columns and (not self.form or self.form.meanings <= {*table.columns})
            if is_unknown and has_told:
                raise unknown_columns(table, self.items)
        titles = dict.fromkeys(table.bound.title for table, _ in tables)
        names = ", ".join(table.name for table, _ in tables)
        return f"{', '.join(titles)} ({names})", self.read_tables(tables)

    def read_tables(self, tables: Tables) -> Rows:
        # Records that complete those of other tables, as answers do questions, by split and id.
        partners: dict[tuple[str, str], Record] = {}
        is_empty = True
        for table, origins in sorted(tables, key=reading_order):
            form = table.form or table.bound
            prefix = f"{table.name} " if len(tables) > 1 else ""
            columns: set[str] = set()
            for where, record in table.records():
                is_empty = False
                if isinstance(record, str):
                    yield Reject(id=f"{prefix}{where}", path="", reason="bad row", detail=record)
                    continue
                columns.update(record)
                for origin in origins:
                    if table.is_partner:
                        partners[origin.split, read_text(record[form.id])] = record
                        continue
                    if form.join and not form.join.list:
                        key = read_text(record[form.join.on])
                        record = partners.get((origin.split, key), {}) | record
                    yield from self.items.add(f"{prefix}{where}", record, form, origin)
            self.check_columns(table, columns)
        if is_empty:
            raise InputError(f"{tables[0][0].path}: no rows")
        yield from self.items.rows()

    def read_lists(self, names: Table, texts: Table) -> Rows:
        """The rows of names and captions in two texts, line by line."""
        for name, text in zip_longest(names.records(), texts.records()):
            if name is None or text is None:
                raise InputError(f"{names.path}: not as many lines as {texts.name}")
            pair: Any = name[1], text[1]
            record = {"file": pair[0]["$value"], "caption": pair[1]["$value"]}
            yield from self.items.add(name[0], record, TABLE)
        yield from self.items.rows()

    def check_columns(self, table: Table, columns: set[str]) -> None:
        """Note what the columns of a table may mean. Raises InputError if no record has a column
        that the user has named."""
        stored = columns - table.bound.meanings
        if table.bound.usual and stored:
            reason = (
                "tables have columns that are only stored: `columns` tells times, languages, ..."
            )
            self.notes.add(reason, f"{table.name} ({', '.join(sorted(stored))})")
        if self.form is None:
            return
        keys = table.document if isinstance(table.document, dict) else {}
        if self.form.records and not columns:
            raise InputError(
                f"{table.path}: columns.records = {self.form.records!r} leads to no record; the keys "
                f"are {', '.join([*keys][:20])}"
            )
        for name in sorted(self.form.meanings):
            if columns and name.split(".")[0] not in columns:
                raise InputError(
                    f"{table.path}: no record has the column {name!r} of `columns`; there are "
                    f"{', '.join(sorted(columns)[:20])}"
                )


def reading_order(pair: tuple[Table, list[Origin]]) -> tuple[bool, bool]:
    """Answers are read before their questions, and texts before the lists of their files."""
    table, origins = pair
    return not table.is_partner, origins[0].split != TEXTS


def scan_media(folder: Path) -> Rows:
    """A row for each video and image of a folder, also for those that its tables do not name, with
    its captions."""
    source = Source(folder, require_texts=False)
    assert source.folder is not None
    texts: dict[str, Row] = {}
    try:
        for row in source.scan()[1]:
            if isinstance(row, Row) and row.end is None:
                texts[row.name] = row
    except InputError as error:
        if not source.folder.media:
            raise
        # The videos are there without their captions.
        log.info(f"note: {printable(str(error))}")
    items = Items(folder, source.notes, source.folder, None)
    for path in source.folder.media:
        if path in texts:
            yield texts[path]
        else:
            yield from items.add(path, {"$file": path}, BESIDE)
    yield from log_notes(items.rows(), source.notes)
