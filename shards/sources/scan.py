"""What a source is: a table, the tables of a folder, texts beside videos, or shards of a download,
and its rows."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, product
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
    SAMPLE,
    TABLE,
    UNKNOWN,
    WHOLE_FILES,
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
    NO_ORIGIN,
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
        # Without an error for a folder that may not be read, which its table will raise.
        self.is_folder = isinstance(data, Path) and os.path.isdir(data)  # noqa: PTH112
        base = data if self.is_folder else parent(data)
        self.folder = Folder(base, self.notes) if isinstance(base, Path) else None
        self.items = Items(base, self.notes, self.folder, names_root=root)

    def scan(self) -> tuple[str, Rows]:
        """Return what the source is, and its rows, with a reject for each invalid record.

        Raises:
            InputError: If it is unusable as a whole.
        """
        if self.annotations:
            return self.scan_tables(self.open_annotations())
        folder = self.folder if self.is_folder else None
        may_have_tars = not folder or any(
            name.endswith(".tar") for name in folder.others
        )
        if may_have_tars and is_downloads(self.data):
            return DOWNLOADS, scan_downloads(
                self.data, self.items, SAMPLE.override(self.form)
            )
        if not folder:
            return self.scan_tables([Table(self.data, self.form)])

        # The texts beside the videos, if most videos have one.
        sidecars = Sidecars(folder, self.form)
        are_most = 2 * len(sidecars.texts) > len(folder.media)
        is_beside = bool(self.form.texts) or (are_most and self.form is TABLE)
        opened = self.open_tables(sidecars, is_beside)
        if is_beside:
            return BESIDE.title, self.read_texts(sidecars, opened)
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
        best = max(errors, key=attrgetter("score"), default=None)
        if best and not sidecars.texts and (best.score[0] or not folder.media):
            raise best
        return BESIDE.title, self.read_texts(sidecars, opened)

    def open_annotations(self) -> list[Table]:
        if not self.is_folder:
            raise InputError(f"{self.data}: no such folder of videos")
        tables: list[Table] = []
        for split, files in self.annotations.items():
            for file in files:
                origin = Origin(split, number=len(tables), selects=split != TEXTS)
                tables.append(Table(file, self.form, origin))
        return tables

    def read_texts(self, sidecars: Sidecars, opened: list[Table]) -> Rows:
        """Yield a row for each video or image, with the captions in its text, and a reject for each
        text whose video is missing. Lists of the videos of each split, among the tables, choose them.

        Raises:
            InputError: If there is no video or image.
        """
        folder = sidecars.folder
        # An index has no splits.
        lists = choose_tables(folder, opened, True) if self.require_texts else []
        origin = Origin(TEXTS) if lists else NO_ORIGIN
        # Lines and lists have no columns that a user could name.
        list_form = Form(captions=("$value",), paragraph=self.form.paragraph)
        for path in folder.media:
            text = sidecars.texts.get(path)
            record = sidecars.read(text) if text else {}
            form = list_form if "$value" in record else sidecars.form
            yield from self.items.add_file(text or path, path, record, form, origin)
            if self.require_texts and not text:
                folder.notes.add(
                    "videos and images have no caption; name each text like it (a.mp4, a.txt), or "
                    "pass the table of the captions",
                    path,
                )
        for path in sidecars.find_alone({table.place for table in lists}):
            yield reject_row(path, "a text without its video", path, "missing")
        yield from (
            self.read_tables(lists, WHOLE_FILES) if lists else self.items.rows()
        )
        if not folder.media:
            raise self.notes.error(f"{folder.path}: no video or image in this folder")

    def open_tables(self, sidecars: Sidecars, are_texts_beside: bool) -> list[Table]:
        """Return the tables of a folder. What cannot be read may be settings or logs; beside texts, only
        lists of splits are wanted.

        Raises:
            InputError: For a placeholder, for a table with the bytes of videos, and for too many.
        """
        folder = sidecars.folder
        notes = Notes() if are_texts_beside else folder.notes
        tables: list[Table] = []
        for number, (is_text, is_inside, path) in enumerate(find_tables(sidecars)):
            if number == MAX_TABLES:
                # In a subfolder, they may describe a video each.
                are_enough = are_texts_beside or any(
                    table.has_texts and table.place == table.name for table in tables
                )
                if is_text or (is_inside and are_enough):
                    notes.add(NOT_READ, path)
                    break
                raise InputError(
                    f"{folder.path}: more than {MAX_TABLES} tables, such as {path}; `annotations` names "
                    "those of each split"
                )
            try:
                table = Table(folder.path / path, self.form)
                table.place = path
                stem = splitext(table.name.removesuffix(".gz"))[0]
                table.split = split_in(stem) or split_of_path(path)
                if table.head and not table.head_records:
                    where, problem = table.head[0]
                    raise InputError(f"{table.path}: {where}: {problem}")
            except InputError as error:
                if isinstance(error, UnreadableTable) and not are_texts_beside:
                    raise
                notes.add("files are damaged or no tables", str(error))
                continue
            # A text in a subfolder is ignored, unless it lists files of a split, which a log does not,
            # or has a published form.
            is_known = table.form is not UNKNOWN
            if table.form is LIST:
                is_known = bool(split_in(stem)) and names_media(table, folder, True)
            if not is_text or is_known:
                tables.append(table)
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

    def read_tables(self, tables: list[Table], naming: Form | None = None) -> Rows:
        """Yield the rows of tables. naming: how the texts of the files that they list name them."""
        # By split and id: records that complete records of other tables, as answers do questions.
        partners: dict[tuple[str, str], Record] = {}
        # Answers are read before their questions, and texts before the lists of their files.
        for table in sorted(
            tables,
            key=lambda table: (not table.is_partner, table.origin.split != TEXTS),
        ):
            form = table.form
            if table.origin.split == TEXTS:
                keys = {"prefixes", "anywhere", "start", "end", "span"}
                naming = Form.model_validate(table.bound.model_dump(include=keys))
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
                    for split in (table.origin.split, ""):
                        record = partners.get((split, key), {}) | record
                yield from self.items.add(where, record, form, table.origin)
            check_columns(table, columns, table.user_form)
        if not self.items.count:
            raise self.notes.error(f"{tables[0].path}: no rows")
        yield from self.items.rows()


def find_tables(sidecars: Sidecars) -> list[tuple[bool, bool, str]]:
    """Return the paths of the tables of a folder, in the order in which they are opened, without the
    texts of its videos. Before each, whether it is a text in a subfolder, and whether it is in one.
    """
    folder = sidecars.folder
    texts = {*sidecars.texts.values()}
    stems = {splitext(path)[0] for path in folder.media}
    tables: list[tuple[bool, bool, str]] = []
    for path in folder.others:
        name = path.lower().removesuffix(".gz")
        if not name.endswith(TABLES) or NOT_TEXTS.fullmatch(path):
            continue
        stem = splitext(path)[0]
        # What is named as a video describes that one: a.json, a.info.json.
        is_beside = stem in stems or splitext(stem)[0] in stems
        # A CSV file that is named as a split is a table, even beside test.mp4.
        is_beside &= path.endswith(TEXT_SUFFIXES) or not split_in(stem)
        if not (is_beside or path in texts):
            is_inside = "/" in path
            tables.append((is_inside and name.endswith(LINES), is_inside, path))
    return sorted(tables)


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


def choose_tables(
    folder: Folder, opened: list[Table], are_texts_beside: bool = False
) -> list[Table]:
    """Return the tables that are read, with their origin; none if none has texts. Beside texts of the
    videos, only the lists of the videos of each split are.

    Several must each name their split: by their own name, as `val_1.json`, by their folder's, as
    `train/metadata.csv`, or in a column.

    Raises:
        InputError: If it is not clear which are meant.
    """
    tables = [] if are_texts_beside else opened
    partners = [table for table in tables if table.is_partner and not table.split]
    chosen = [table for table in tables if table.has_texts and table not in partners]
    if tables and not chosen:
        return []
    chosen = keep_outermost(chosen)
    unnamed = [table for table in chosen if not table.split]

    lists, are_of_each = find_lists(folder, opened, chosen, are_texts_beside)
    if len(chosen) == len(unnamed) <= 1 and are_of_each:
        for table in chosen:
            table.split = TEXTS
        chosen += lists
        unnamed = []

    if len(chosen) == 1 and {table.split for table in opened} <= {"", chosen[0].split}:
        # Alone, its name says nothing about the splits of its rows.
        chosen[0].split = ""
    # The folders of videos that tables lie in; an older table may lie in another folder.
    for number, table in enumerate([*chosen, *partners]):
        inside = table.place.removesuffix(table.name)
        has_media = any(media.startswith(inside) for media in folder.media)
        table.origin = Origin(table.split, inside if has_media else "", number)
    apart = {table.origin.inside for table in chosen} - {""}
    # The captions of a split that lie beside those of all, as of MSR-VTT 1k-A, are another split.
    of_all = [table for table in chosen if table in unnamed or table.bound.captions]
    are_told = len(chosen) in (1, len(apart)) or all(
        table.named_splits for table in of_all
    )
    if unnamed and (lists or not are_told):
        examples = ", ".join(table.place for table in [*chosen, *lists][:5])
        raise InputError(
            f"{folder.path}: several tables ({examples}): name those of each split, and the `texts` of "
            "lists, in [corpora.data.annotations] of a configuration, or pass one of them"
        )
    # These tables complete the records of all splits.
    chosen += partners
    refuse_copies(chosen)
    for table in opened:
        if tables and table not in chosen:
            folder.notes.add(NOT_READ, table.place)
    return chosen


def find_lists(
    folder: Folder, opened: list[Table], chosen: list[Table], are_texts_beside: bool
) -> tuple[list[Table], bool]:
    """Return the tables that only list the videos of a split, or the split of each video; and whether
    they are the splits of all videos: one list of each, or one of all.

    Args:
        chosen: The tables that have texts.
    """
    has_splits = any(table.named_splits for table in chosen)
    is_told = has_splits or any(
        table.bound.start or table.bound.span for table in chosen
    )
    # Texts in subfolders, which may list other files.
    inner = [table for table in opened if table.form is LIST and "/" in table.place]
    anywhere = are_texts_beside or any(table.bound.anywhere for table in chosen)
    lists = [
        table
        for table in opened
        if table.lists_files
        and (table.split or (table.named_splits and not has_splits))
        # A split in a row takes precedence over them, which name no parts.
        and not (is_told and table in inner)
        and ((chosen and table not in inner) or names_media(table, folder, anywhere))
    ]
    lists = keep_outermost(lists)

    # Results are of one split, and lists of which one is for training are of all.
    splits = {table.split for table in lists}
    named = splits.union(*(table.named_splits for table in lists))
    has_training = {"train"} < named - {""} and not is_told
    are_of_each = len(splits) == len(lists) and (
        has_training or bool(chosen and lists[1:])
    )
    return lists, are_of_each


def refuse_copies(chosen: list[Table]) -> None:
    """Raise InputError if two tables of the same videos begin alike: their texts would count twice."""
    names_by_start: dict[tuple[str, ...], str] = {}
    for table in chosen:
        # A number in JSON is a text in CSV.
        cells = map(read_text, chain(*map(dict.values, table.head_records[:1])))
        start = (table.split, table.origin.inside, *cells)
        if start in names_by_start:
            raise InputError(
                f"{table.path} begins as {names_by_start[start]} does; if it is a copy, move it away, "
                "otherwise name the tables of each split in [corpora.data.annotations]"
            )
        names_by_start[start] = table.name


def names_media(table: Table, folder: Folder, anywhere: bool) -> bool:
    """Return whether a table that lists files has the name of one. anywhere: in any folder."""
    for record, column in product(table.head_records, table.bound.file_columns):
        name = read_text(read_cell(record, column))
        with suppress(ValueError):
            if folder.find(name, anywhere=anywhere):
                return True
    return False


def keep_outermost(tables: list[Table]) -> list[Table]:
    """Return the tables at the root of a folder, and those in subfolders of which it has none of the
    same split: the others may be older, or results."""
    at_root = [table for table in tables if "/" not in table.place]
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
        log.info(f"note: {printable(getattr(error, 'without_lines', str(error)))}")
    items = Items(folder, source.notes, source.folder)
    for path in source.folder.media:
        if path in texts:
            yield texts[path]
        else:
            yield from items.add_file(path, path, {})
    yield from log_notes(items.rows(), source.notes)
