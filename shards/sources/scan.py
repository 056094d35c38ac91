"""What a source is: a table, the tables of a folder, texts beside videos, or shards of a download,
and its rows."""

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from posixpath import splitext

from alpro.errors import InputError
from alpro.log import log, printable
from alpro.shards.schema import Row
from alpro.shards.sources.downloads import is_downloads, scan_downloads
from alpro.shards.sources.form import (
    BESIDE,
    LIST,
    TABLE,
    UNKNOWN,
    Columns,
    Form,
    Record,
    has_any,
    read_cell,
    read_text,
    split_in,
)
from alpro.shards.sources.media import (
    NOT_TEXTS,
    TEXT_SUFFIXES,
    Folder,
    Notes,
    Sidecars,
    cut_extension,
)
from alpro.shards.sources.propose import UnknownColumns, hides_meanings, unknown_columns
from alpro.shards.sources.rows import (
    TEXTS,
    Items,
    Rows,
    reject_row,
    split_of_path,
)
from alpro.shards.sources.tables import (
    LINES,
    TABLES,
    Origin,
    Table,
    UnreadableTable,
)
from alpro.shards.storage import Location, parent

DOWNLOADS = "shards of video2dataset or img2dataset"
MAX_TABLES = 500  # Tables of a folder that are opened.
NOT_READ = "tables are not read (`annotations` names the tables of a split)"


def scan_source(data: Location, require_texts: bool = True) -> tuple[str, Rows]:
    """Return what a source is, and its rows, after which its notes are logged. No configuration says
    what its columns mean."""
    source = Source(data, require_texts=require_texts)
    try:
        what, rows = source.scan()
    except UnknownColumns as error:
        raise InputError(error.without_lines) from None
    return what, log_notes(rows, source.notes)


def log_notes(rows: Rows, notes: Notes) -> Rows:
    """Yield rows, then log the notes."""
    yield from rows
    for line in notes.lines():
        log.info(f"note: {printable(line)}")


class Source:
    """A source of items, read once: a table, whose files lie beside it or below, a folder of videos,
    the tables of `annotations`, or shards of video2dataset or img2dataset.

    Args:
        annotations: Tables by split; with the key "texts", the texts of the files that the others
            only list.
        root: The folder that corresponds to `data` in the names of the tables.
        columns: The meaning of the tables' columns, if they have no published form.
        require_texts: Whether a table needs texts.
    """

    def __init__(
        self,
        data: Location,
        annotations: Mapping[str, Sequence[Path]] | None = None,
        root: Path | None = None,
        columns: Columns | None = None,
        require_texts: bool = True,
    ):
        self.data = data
        self.annotations = annotations or {}
        self.require_texts = require_texts
        self.form = TABLE
        if columns:
            keys = columns.model_dump(exclude_unset=True)
            if columns.join and not columns.join.list:
                raise InputError(
                    "columns.join: set `list`, the place of the other records in the same JSON document; "
                    "of several tables, write one"
                )
            self.form = Form.model_validate({"usual": True} | keys)
        self.notes = Notes()
        self.folder = None
        if isinstance(data, Path):
            # Without an error for a folder that may not be read, which its table will raise.
            is_folder = os.path.isdir(data)  # noqa: PTH112
            self.folder = Folder(data if is_folder else data.parent, self.notes)
        self.is_folder = self.folder is not None and self.folder.path == data
        base = self.folder.path if self.folder else parent(data)
        self.items = Items(
            base,
            self.notes,
            self.folder,
            names_root=root,
        )

    def scan(self) -> tuple[str, Rows]:
        """Return what the source is, and its rows, with a reject for each invalid record.

        Raises:
            InputError: If it is unusable as a whole.
        """
        if self.annotations:
            return self.scan_tables(self.open_annotations())
        folder = self.folder if self.is_folder else None
        files = folder.others if folder else ()
        has_tars = any(name.endswith(".tar") for name in files)
        if (has_tars or not self.folder) and is_downloads(self.data):
            return DOWNLOADS, scan_downloads(self.data, self.items)
        if not folder:
            return self.scan_tables([Table(self.data, self.form)])

        # The texts beside the videos, if most videos have one.
        sidecars = Sidecars(folder, self.form)
        are_most = 2 * len(sidecars.texts) > len(folder.media)
        if self.form.texts or (are_most and self.form is TABLE):
            return BESIDE.title, self.read_texts(sidecars)

        opened = self.open_tables(folder)
        tables = choose_tables(folder, opened)
        if self.form is not TABLE and not tables:
            # None has the columns of the user.
            tables = opened
        if tables:
            for text in sidecars.texts.values():
                folder.notes.add(
                    "texts beside videos are not read, as a table has captions (`texts` in "
                    "`columns`)",
                    text,
                )
            return self.scan_tables(tables)

        # Not the lines of a text without its video.
        errors = [
            unknown_columns(table, self.items)
            for table in opened
            if table.form is not LIST
        ]
        error = max(errors, key=attrgetter("score"), default=None)
        may_have_texts = error and (error.score[0] or not folder.media)
        if error and may_have_texts and not sidecars.texts:
            raise error
        return BESIDE.title, self.read_texts(sidecars)

    def open_annotations(self) -> list[Table]:
        if not self.is_folder:
            raise InputError(f"{self.data}: no such folder of videos")
        tables: list[Table] = []
        for split, files in self.annotations.items():
            for file in files:
                origin = Origin(
                    split,
                    number=len(tables),
                    selects=split != TEXTS,
                )
                tables.append(Table(file, self.form, origin))
        return tables

    def read_texts(self, sidecars: Sidecars) -> Rows:
        """Yield a row for each video or image, with the captions in its text, and a reject for each
        text whose video is missing.

        Raises:
            InputError: If there is no video or image.
        """
        folder = sidecars.folder
        # Lines and lists have no columns that a user could name.
        list_form = Form(captions=("$value",), paragraph=self.form.paragraph)
        for path in folder.media:
            text = sidecars.texts.get(path)
            record = sidecars.read(text) if text else {}
            form = list_form if "$value" in record else sidecars.form
            yield from self.items.add_file(text or path, path, record, form)
            if not text:
                folder.notes.add(
                    "videos and images have no caption; name each text like it (a.mp4, a.txt), or "
                    "pass the table of the captions",
                    path,
                )
        for path in sidecars.find_alone():
            yield reject_row(path, "a text without its video", path, "missing")
        yield from self.items.rows()
        if not folder.media:
            raise self.notes.error(f"{folder.path}: no video or image in this folder")

    def open_tables(self, folder: Folder) -> list[Table]:
        """Return the tables of a folder. What cannot be read may be settings or logs.

        Raises:
            InputError: For a placeholder, for a table with the bytes of videos, and for too many.
        """
        stems = {splitext(path)[0] for path in folder.media}
        names = {*map(cut_extension, folder.media)}
        paths: list[tuple[bool, bool, str]] = []
        for path in folder.others:
            name = path.lower().removesuffix(".gz")
            stem = splitext(path)[0]
            # What is named as a video describes that one: a.json, a.info.json.
            is_beside = stem in stems or splitext(stem)[0] in stems
            # A CSV file that is named as a split is a table, even beside test.mp4.
            is_beside &= path.endswith(TEXT_SUFFIXES) or not split_in(stem)
            if name.endswith(TABLES) and not (is_beside or NOT_TEXTS.fullmatch(path)):
                is_inside = "/" in path
                paths.append((is_inside and name.endswith(LINES), is_inside, path))

        tables: list[Table] = []
        has_texts_at_root = False
        for number, (is_text, is_inside, path) in enumerate(sorted(paths)):
            if number == MAX_TABLES:
                # In a subfolder, they may describe a video each.
                if is_text or (is_inside and has_texts_at_root):
                    folder.notes.add(NOT_READ, path)
                    break
                raise InputError(
                    f"{folder.path}: more than {MAX_TABLES} tables, such as {path}; `annotations` names "
                    "those of each split"
                )
            try:
                table = Table(folder.path / path, self.form)
                stem = splitext(table.name.removesuffix(".gz"))[0]
                table.split = split_in(stem) or split_of_path(path)
                if table.head and not table.head_records:
                    where, problem = table.head[0]
                    raise InputError(f"{table.path}: {where}: {problem}")
            except UnreadableTable:
                raise
            except InputError as error:
                folder.notes.add("files are damaged or no tables", str(error))
                continue
            # A text in a subfolder is ignored, unless it lists files of a split, which a log does not,
            # or has a published form.
            is_known = table.form not in (UNKNOWN, LIST)
            if table.form is LIST and split_in(stem):
                lines = (read_text(record["$value"]) for record in table.head_records)
                is_known = not names.isdisjoint(map(cut_extension, lines))
            if not is_text or is_known:
                tables.append(table)
                has_texts_at_root |= table.has_texts and not is_inside
        return tables

    def scan_tables(self, tables: list[Table]) -> tuple[str, Rows]:
        """Return what tables are, and their rows. Raises InputError if columns are not known."""
        has_texts = any(table.origin.split == TEXTS for table in tables)
        for table in tables:
            form = table.bound
            may_list = form.file and (has_texts or not self.require_texts)
            is_unknown = not (table.has_texts or may_list)
            is_unknown |= self.require_texts and hides_meanings(table)
            # Columns that a user has named, and that the first records lack, may come later.
            has_named = self.form.meanings <= {*table.columns}
            if is_unknown and table.columns and has_named:
                raise unknown_columns(table, self.items)
        titles = dict.fromkeys(table.bound.title for table in tables)
        names = dict.fromkeys(table.name for table in tables)
        return f"{', '.join(titles)} ({', '.join(names)})", self.read_tables(tables)

    def read_tables(self, tables: list[Table]) -> Rows:
        # By split and id: records that complete records of other tables, as answers do questions.
        partners: dict[tuple[str, str], Record] = {}
        naming: Form | None = None  # how the table of the texts names their files
        # Answers are read before their questions, and texts before the lists of their files.
        for table in sorted(
            tables,
            key=lambda table: (not table.is_partner, table.origin.split != TEXTS),
        ):
            form = table.form
            if table.origin.split == TEXTS:
                naming = Form(prefixes=form.prefixes, anywhere=form.anywhere)
            elif naming and not table.has_texts:
                # A list of the files names them in the same way.
                form = form.override(naming)
            prefix = f"{table.name} " if len(tables) > 1 else ""
            columns: set[str] = set()
            for where, record in table.records:
                where = f"{prefix}{where}"
                if isinstance(record, str):
                    yield from self.items.add(where, record, form)
                    continue
                columns.update(record)
                if table.is_partner:
                    key = read_text(read_cell(record, form.id))
                    partners[table.origin.split, key] = record
                    continue
                if form.partner_column:
                    key = read_text(read_cell(record, form.partner_column))
                    # A table of partners belongs to this split or to all splits.
                    of_all = partners.get(("", key), {})
                    of_split = partners.get((table.origin.split, key), {})
                    record = of_all | of_split | record
                yield from self.items.add(where, record, form, table.origin)
            check_columns(table, columns, table.user_form)
        if not self.items.count:
            raise self.notes.error(f"{tables[0].path}: no rows")
        yield from self.items.rows()


def check_columns(table: Table, columns: set[str], form: Form) -> None:
    """Raise InputError if no record of a table has a column that the user has named."""
    named = sorted(form.meanings | form.where.keys())
    missing = [name for name in named if not has_any([name], columns)]
    present = sorted(columns)
    if columns and missing:
        problem = f"no record has the column {missing[0]!r} of `columns`"
    elif form.records and not columns:
        problem = f"columns.records = {form.records!r} leads to no record"
        present = [*table.document] if isinstance(table.document, dict) else []
    else:
        return
    raise InputError(f"{table.path}: {problem}; there are {', '.join(present[:20])}")


def choose_tables(folder: Folder, opened: list[Table]) -> list[Table]:
    """Return the tables that are read, with their origin; none if none has texts.

    Several must each name their split: by their own name, as `val_1.json`, by their folder's, as
    `train/metadata.csv`, or in a column.

    Raises:
        InputError: If it is not clear which are meant.
    """
    paths = {table: str(table.path).removeprefix(f"{folder.path}/") for table in opened}
    partners = [table for table in opened if table.is_partner and not table.split]
    chosen = [table for table in opened if table.has_texts and table not in partners]
    if not chosen:
        return []
    chosen = keep_outermost(chosen, paths)
    unnamed = [table for table in chosen if not table.split]

    # Tables that only list the videos of a split, or the split of each video.
    has_splits = any(table.names_splits for table in chosen)
    forms = [table.bound for table in chosen]
    is_told = has_splits or any(form.start or form.span for form in forms)
    lists = [
        table
        for table in opened
        if table.lists_files
        and (table.split or (table.names_splits and not has_splits))
        # A split in a row takes precedence over a list in a subfolder, which names no parts.
        and not (is_told and table.form is LIST and "/" in paths[table])
    ]
    lists = keep_outermost(lists, paths)
    are_of_each = len({table.split for table in lists}) == len(lists) > 1
    if len(chosen) == len(unnamed) == 1 and are_of_each:
        chosen[0].split = TEXTS
        chosen += lists
        unnamed = []
        lists = []

    # The folders of videos that tables lie in; an older table may lie in another folder.
    insides: dict[Table, str] = {}
    for table in [*chosen, *partners]:
        inside = paths[table].removesuffix(table.name)
        has_media = any(media.startswith(inside) for media in folder.media)
        insides[table] = inside if has_media else ""
    apart = {insides[table] for table in chosen} - {""}
    are_apart = len(chosen) in (1, len(apart))
    # The captions of a split that lie beside those of all, as of MSR-VTT 1k-A, are another split.
    of_all = unnamed and [
        *unnamed,
        *(table for table in chosen if table.bound.captions),
    ]
    are_told = are_apart or all(table.names_splits for table in of_all)
    if (unnamed and lists) or not are_told:
        examples = ", ".join(map(paths.__getitem__, [*chosen, *lists][:5]))
        raise InputError(
            f"{folder.path}: several tables ({examples}): name those of each split, and the `texts` of "
            "lists, in [corpora.data.annotations] of a configuration, or pass one of them"
        )
    if len(chosen) == 1 and {table.split for table in opened} <= {"", chosen[0].split}:
        # Alone, its name says nothing about the splits of its rows.
        chosen[0].split = ""

    # These tables complete the records of all splits.
    chosen += partners
    names_by_start: dict[tuple[str, ...], str] = {}
    for number, table in enumerate(chosen):
        table.origin = Origin(table.split, insides[table], number)
        # A number in JSON is a text in CSV.
        cells = map(read_text, chain(*map(dict.values, table.head_records[:1])))
        start = (table.split, insides[table], *cells)
        if start in names_by_start:
            raise InputError(
                f"{table.path} begins as {names_by_start[start]} does; if it is a copy, move it away, "
                "otherwise name the tables of each split in [corpora.data.annotations]"
            )
        names_by_start[start] = table.name
    for table in opened:
        if table not in chosen:
            folder.notes.add(NOT_READ, paths[table])
    return chosen


def keep_outermost(tables: list[Table], paths: dict[Table, str]) -> list[Table]:
    """Return the tables at the root of a folder, and those in subfolders of which it has none of the
    same split: the others may be older, or results."""
    at_root = [table for table in tables if "/" not in paths[table]]
    kinds = {(table.split, table.is_partner) for table in at_root}
    return [
        table
        for table in tables
        if table in at_root or (table.split, table.is_partner) not in kinds
    ]


def scan_media(folder: Path) -> Rows:
    """Yield a row for each video and image of a folder, also for those that its tables do not name,
    with its captions."""
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
        problem = getattr(error, "without_lines", str(error))
        log.info(f"note: {printable(problem)}")
    items = Items(folder, source.notes, source.folder)
    for path in source.folder.media:
        if path in texts:
            yield texts[path]
        else:
            yield from items.add_file(path, path, {})
    yield from log_notes(items.rows(), source.notes)
