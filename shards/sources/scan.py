"""What a source of items is, and its rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from alpro.errors import InputError
from alpro.log import log, printable
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.annotations import (
    NAMES,
    Form,
    MediaFiles,
    form_of,
    keyed,
    scan_annotations,
)
from alpro.shards.sources.answer_files import half_of
from alpro.shards.sources.captions import (
    Sidecars,
    Table,
    listed_captions,
    notes_on_files,
    notes_on_lists,
    split_of_path,
    splits_of_folders,
    stem_of,
    tables_in,
    tables_of_splits,
    without_decoder,
    without_suffix,
)
from alpro.shards.sources.columns import split_in
from alpro.shards.sources.downloads import is_downloads, scan_downloads
from alpro.shards.sources.folders import Listing, list_folder, media_suffix
from alpro.shards.sources.records import named_records
from alpro.shards.sources.rows import row_of, scan_manifest
from alpro.shards.storage import Location

Rows = Iterator[Row | Reject]


def scan_source(
    data: Location,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    notes: list[str] | None = None,
    require_texts: bool = True,
) -> tuple[str, Rows]:
    """What a source is, and its rows, with a reject for each invalid one, in order.

    It is the annotation files (by split) if there are any, otherwise shards of video2dataset or
    img2dataset, a file in the form of a known data set, whose videos lie beside it or below, a
    manifest, or a folder of videos (`scan_folder`).

    notes: gets a line for each thing that is left out, once the rows are read; by default, they are
    logged. require_texts: whether a manifest needs a column of texts.
    """
    kept: list[str] = [] if notes is None else notes
    if annotations:
        rows = scan_annotations(Path(data), annotations, root, kept)
        return "annotation files", rows if notes is not None else logged(rows, kept)
    if is_downloads(data):
        return "shards of video2dataset or img2dataset", scan_downloads(data)

    if isinstance(data, Path) and is_folder(data):
        form, rows = scan_folder(data, root, kept)
        return form, rows if notes is not None else logged(rows, kept)

    known = known_form(data) if isinstance(data, Path) else None
    if known and isinstance(data, Path):
        annotated = scan_annotations(data.parent, {"": data}, root, kept)
        rows = in_folder_splits(annotated, data.parent, kept)
        return f"{data.name}: {known.title}", rows if notes is not None else logged(rows, kept)

    rows = split_hint(scan_manifest(data, require_texts, kept), kept)
    rows = rows if notes is not None else logged(rows, kept)
    return f"a manifest, {PurePosixPath(str(data)).name}", rows


def is_folder(path: Path) -> bool:
    """Raises InputError if a folder above may not be read."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def logged(rows: Rows, notes: list[str]) -> Rows:
    """The rows; then the notes are logged."""
    yield from rows
    for note in notes:
        log.info(f"note: {printable(note)}")


def known_form(file: Path) -> Form | None:
    """The form of a known data set that a file has. None for others: a manifest names its files in
    `path`."""
    with suppress(InputError):  # the caller reads the file again
        for _, record in named_records(file):
            if isinstance(record, str):
                continue
            if "path" in record:
                return None
            form = form_of(record)
            # A record without texts may stand before others.
            if form is not NAMES:
                return form
    return None


def scan_folder(folder: Path, root: Path | None, notes: list[str]) -> tuple[str, Rows]:
    """What the captions of a folder of videos are (see captions.py), and its rows. Raises
    InputError if a folder cannot be listed."""
    listing = list_folder(folder)
    sidecars = Sidecars(listing)
    if any(map(sidecars.of, listing.media)):
        return "a folder of videos with texts", scan_sidecars(listing, sidecars, notes)

    tables = [path for path in tables_in(listing) if "/" not in path]
    if len(tables) > 1:
        # Beside settings and logs there may be a single table of captions.
        with_rows = [path for path in tables if is_table(folder / path)]
        if len(with_rows) == 1 and not is_partial(tables, with_rows[0]):
            others = ", ".join(path for path in tables if path not in with_rows)
            notes.append(f"not read: {others}")
            tables = with_rows
    if len(tables) == 1:
        notes += [*listing.notes(), *notes_on_lists(listing)]
        return scan_source(folder / tables[0], None, root, notes)

    by_split = with_rows_of_splits(tables_of_splits(listing))
    if by_split:
        names = ", ".join(str(table.file.relative_to(folder)) for table in by_split)
        return f"tables ({names})", scan_tables(listing, by_split, root, notes)

    # A list may be the table: captions.txt of Flickr8k.
    texts = [path for path in listing.others if media_suffix(path) == ".txt" and "/" not in path]
    texts = [path for path in texts if not tables and is_table(folder / path)]
    if len(texts) == 1:
        notes += listing.notes()
        return scan_source(folder / texts[0], None, root, notes)

    lists = listed_captions(listing)
    if lists:
        what, pairs = lists
        return what, scan_lists(listing, pairs, notes)

    lists_of_splits = [Table(folder / path, split_in(stem_of(path)) or "") for path in texts]
    splits = {table.split for table in lists_of_splits}
    if len(splits) > 1 and "" not in splits:  # as of Charades-STA
        what = f"tables ({', '.join(texts)})"
        return what, scan_tables(listing, lists_of_splits, root, notes)
    return "a folder of videos with texts", scan_sidecars(listing, sidecars, notes)


def with_rows_of_splits(tables: list[Table]) -> list[Table]:
    """The tables that have rows; of questions and answers in files of their own, those of a split
    that has both."""
    with_rows = []
    halves = []
    for table in tables:
        if is_table(table.file):
            with_rows.append(table)
            continue
        half = half_of(table.file)
        if half:
            halves.append(replace(table, half=half))

    for table in halves:
        of_split = {other.half for other in halves if other.split == table.split}
        if len(of_split) > 1:
            with_rows.append(table)
    return with_rows


def is_partial(tables: list[str], table: str) -> bool:
    """Whether a table is that of one split, beside files of others."""
    splits = {split_in(without_suffix(path)) for path in tables}
    return bool(split_in(without_suffix(table))) and len(splits - {None, ""}) > 1


def scan_sidecars(listing: Listing, sidecars: Sidecars, notes: list[str]) -> Rows:
    """A row for each video or image, with the captions in the text beside it. Raises InputError if
    there are none."""
    counts = Counter(without_suffix(path) for path in listing.media)
    paths = set(listing.media)
    used: dict[str, str] = {}  # texts, with their videos
    without_text = 0

    def rows() -> Rows:
        nonlocal without_text
        for path in listing.media:
            text = sidecars.of(path)
            record_id = without_suffix(path)
            # A video and an image of one name; a.mp4.jpg beside a.mp4.
            if counts[record_id] > 1 or record_id in paths:
                record_id = path
            try:
                path.encode()
                captions = sidecars.read(text) if text else []
            except UnicodeEncodeError:
                shown = path.encode("utf-8", "replace").decode()
                detail = "its name is not UTF-8; rename it"
                yield Reject(id=shown, path="", reason="bad row", detail=detail)
                continue
            except (ValueError, OSError) as error:
                yield Reject(id=path, path="", reason="bad row", detail=str(error))
                continue
            finally:
                # Also of a text that cannot be read: no note should call it unused.
                if text:
                    used[text] = path
            record = {"id": record_id, "path": path, "captions": captions}
            row = row_of(path, record, listing.folder)
            without_text += isinstance(row, Row) and not row.captions
            yield row

        for path in without_decoder(listing, sidecars, used):
            detail = f"no decoder reads {media_suffix(path)} files; convert it to MP4 or JPEG"
            yield Reject(id=path, path=path, reason="unreadable", detail=detail)

    if not listing.media:
        lines = [f"{listing.folder}: no video or image in this folder"]
        raise InputError("; ".join([*lines, *notes_on_files(listing, {}, 0)]))

    yield from in_folder_splits(rows(), listing.folder, notes, listing)
    notes += notes_on_files(listing, used, without_text)


def scan_lists(listing: Listing, pairs: list[tuple[str, str]], notes: list[str]) -> Rows:
    """A row for each video of a list, with its captions in the other."""
    media = MediaFiles(listing.folder)
    captions: dict[str, list[str]] = {}
    for name, caption in pairs:
        captions.setdefault(name, []).append(caption)

    def rows() -> Rows:
        for number, (name, texts) in enumerate(captions.items(), 1):
            where = f"line {number}"
            try:
                path = str(media.find(media.relative(name)))
            except ValueError as error:
                yield Reject(id=where, path="", reason="bad row", detail=str(error))
                continue
            record = {"id": without_suffix(name), "path": path, "captions": texts}
            yield row_of(where, record, listing.folder)

    yield from in_folder_splits(rows(), listing.folder, notes, listing)
    notes += [*listing.notes(), *media.notes()]


def is_table(file: Path) -> bool:
    """Whether a file has rows of a manifest, or of a known form."""
    with suppress(InputError):
        for _, record in named_records(file):
            if isinstance(record, dict):
                form = form_of(record)
                is_known = form is not None and form is not NAMES
                return is_known or "path" in record
    return False


def scan_tables(listing: Listing, tables: list[Table], root: Path | None, notes: list[str]) -> Rows:
    """The rows of several tables, each of a split or of a folder."""
    manifests = [table for table in tables if not table.half and not known_form(table.file)]
    forms = [table for table in tables if table not in manifests]
    of_folders: list[Table] = []
    of_all: dict[str, list[str]] = {}
    for table in forms:
        # A folder of tables alone, such as annotations/ beside videos/, names files of the whole
        # folder.
        is_apart = table.folder != listing.folder and has_media(listing, table.folder)
        if is_apart and not table.half:
            of_folders.append(table)
        else:
            of_all.setdefault(table.split, []).append(str(table.file))

    sources = [of_table(listing, table, notes) for table in [*manifests, *of_folders]]
    if of_all:
        sources.append(scan_annotations(listing.folder, keyed(of_all), root, notes))

    files = {table.file for table in tables}
    others = [path for path in tables_in(listing) if listing.folder / path not in files]
    yield from unique(chain.from_iterable(sources), listing.folder)
    notes += listing.notes()

    if others:
        shown = ", ".join(others[:3])
        more = ", ..." if len(others) > 3 else ""
        notes.append(
            f"not read: {shown}{more}; `annotations` of the configuration names several tables"
        )
    if not any(table.split for table in tables):
        notes.append("the tables name no split")


def has_media(listing: Listing, folder: Path) -> bool:
    """Whether a listing has media in a folder or below."""
    inside = "" if folder == listing.folder else f"{folder.relative_to(listing.folder).as_posix()}/"
    return any(path.startswith(inside) for path in listing.media)


def of_table(listing: Listing, table: Table, notes: list[str]) -> Rows:
    """The rows of a table whose names are relative to its folder, or to the whole one if it has no
    media, with ids and names relative to the whole one."""
    folder = table.folder if has_media(listing, table.folder) else listing.folder
    if known_form(table.file):
        rows = scan_annotations(folder, {table.split: table.file}, notes=notes)
    else:
        rows = scan_manifest(table.file, notes=notes, folder=folder)

    inside = folder.relative_to(listing.folder).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    for row in rows:
        changes: dict[str, Any] = {"id": f"{prefix}{row.id}"}
        if isinstance(row, Row):
            changes["name"] = f"{prefix}{row.name}"
            changes["split"] = row.split or table.split
        yield row.model_copy(update=changes)


def unique(rows: Iterable[Row | Reject], folder: Path) -> Rows:
    """The rows of several tables. A video that is in two splits has the split in its id; raises
    InputError if an id is used twice in one."""
    seen = set()
    for row in rows:
        if isinstance(row, Row) and row.id in seen:
            row = row.model_copy(update={"id": f"{row.split or 'train'}/{row.id}"})
            if row.id in seen:
                raise InputError(f"{folder}: id {row.id!r} is used twice; ids must be unique")
        seen.add(row.id)
        yield row


def in_folder_splits(
    rows: Rows,
    folder: Path,
    notes: list[str],
    listing: Listing | None = None,
) -> Rows:
    """The rows, of which those that name no split have that of their folder, if the folders are
    splits."""
    if listing is None:
        listing = list_folder(folder)
    are_splits, note = splits_of_folders(listing.media)
    # The note on folders only matters where it decides on a row.
    is_drawn = False
    for row in rows:
        if isinstance(row, Row) and not row.split:
            is_drawn = True
            if are_splits and isinstance(row.path, Path):
                inside = str(row.path).removeprefix(f"{folder}/")
                row = row.model_copy(update={"split": split_of_path(inside)})
        yield row
    if note and is_drawn:
        notes.append(note)


def split_hint(rows: Rows, notes: list[str]) -> Rows:
    """The rows of a manifest; a note if its folders are named as splits, and no row names one."""
    folders: set[str] = set()
    is_named = False
    for row in rows:
        if isinstance(row, Row):
            is_named = is_named or bool(row.split)
            if not is_named:
                folders.add(split_of_path(row.name))
        yield row

    named = sorted(folders - {""})
    if len(named) > 1 and not is_named:
        notes.append(
            f"the files are in folders named as splits ({', '.join(named)}), and no row names a "
            "split: a column `split` does"
        )


def scan_media(folder: Path, notes: list[str] | None = None) -> Rows:
    """A row for each video and image of a folder, also for those that its tables do not name, with
    its captions."""
    kept: list[str] = [] if notes is None else notes
    listing = list_folder(folder)
    sidecars = Sidecars(listing)
    if any(map(sidecars.of, listing.media)):
        rows = scan_sidecars(listing, sidecars, kept)
    else:
        rows = with_table_captions(listing, sidecars, kept)
    yield from rows if notes is not None else logged(rows, kept)


def with_table_captions(listing: Listing, sidecars: Sidecars, notes: list[str]) -> Rows:
    texts: dict[str, Row] = {}
    parts = 0
    of_tables: list[str] = []
    try:
        form, rows = scan_folder(listing.folder, None, of_tables)
        if form != "a folder of videos with texts":
            for row in rows:
                if not isinstance(row, Row):
                    continue
                # The caption of a part is not that of the whole file.
                if (row.start, row.end) == (None, None):
                    texts[str(row.path)] = row
                else:
                    parts += 1
    except InputError as error:  # the videos are there without their captions
        notes.append(str(error))

    of_files: list[str] = []
    for row in scan_sidecars(listing, sidecars, of_files):
        known = texts.get(str(row.path)) if isinstance(row, Row) else None
        if isinstance(row, Row) and known:
            changes = {
                "captions": known.captions,
                "split": known.split,
                "meta": known.meta,
            }
            row = row.model_copy(update=changes)
        yield row
    notes += of_tables if texts else of_files
    if parts:
        notes.append(
            f"{parts} captions of parts of files are left out: to search parts, pass the table "
            "itself instead of its folder"
        )
