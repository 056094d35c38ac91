"""The tables of a folder, and what each is read for: which split, and names of which folder."""

from collections import Counter
from posixpath import splitext

from alpro.errors import InputError
from alpro.shards.sources.form import Form, split_in
from alpro.shards.sources.media import Folder, read_suffix
from alpro.shards.sources.rows import TEXTS, Origin, split_of_path
from alpro.shards.sources.sidecars import NOT_TEXTS
from alpro.shards.sources.tables import TABLES, PlaceholderTable, Table

MAX_TABLES = 100  # of a folder that are opened


def open_tables(folder: Folder, form: Form | None) -> dict[str, Table]:
    """Return the tables of a folder by their paths: those at its root, or all if none of these has
    texts. What cannot be read may be settings or logs. Raises InputError for a placeholder."""
    stems = {splitext(path)[0] for path in folder.media}
    paths = []
    for path in folder.others:
        name = path.lower().removesuffix(".gz")
        is_table = read_suffix(name) in TABLES or (read_suffix(name) == ".txt" and "/" not in name)
        # The metadata of one video are no table: a.json, a.info.json.
        stem = splitext(path)[0]
        if is_table and stems.isdisjoint([stem, splitext(stem)[0]]) and not NOT_TEXTS.match(path):
            paths.append(path)

    tables: dict[str, Table] = {}
    for path in sorted(paths, key=lambda path: "/" in path)[:MAX_TABLES]:
        if "/" in path and any(table.has_texts for key, table in tables.items() if "/" not in key):
            break
        try:
            tables[path] = Table(folder.path / path, form)
        except PlaceholderTable:
            raise
        except InputError:
            continue
    return tables


def choose_tables(folder: Folder, opened: dict[str, Table]) -> list[tuple[Table, list[Origin]]]:
    """Return the tables that are read, and what for; none if none has texts.

    Several must each name their split: by their own name, by that of a folder, or in a column.
    Raises InputError if it is not clear which are meant.
    """
    tables: list[tuple[Table, list[Origin]]] = []
    for path, split in choose_splits(folder, opened).items():
        inside = path[: path.rfind("/") + 1]
        has_media = any(media.startswith(inside) for media in folder.media)
        origin = Origin(split, inside if has_media else "", len(tables))
        tables.append((opened.pop(path), [origin]))
    for path in opened if tables else ():
        folder.notes.add("tables are not read (`annotations` names those of a split)", path)
    return tables


def choose_splits(folder: Folder, opened: dict[str, Table]) -> dict[str, str]:
    """Return the splits of the tables that are read, by their paths."""
    splits = {path: name_split(path) for path in opened}
    known = {path: splits[path] for path, table in opened.items() if table.has_texts}
    # Lists of the videos of each split, and one table with the texts of all.
    lists = {path: split for path, split in splits.items() if split and path not in known}
    lists = {path: split for path, split in lists.items() if opened[path].bound.file}
    if len(known) == 1 and "" in known.values():
        is_clear = len(lists) > 1 and max(Counter(lists.values()).values()) == 1
        return {**dict.fromkeys(known, TEXTS), **lists} if is_clear else known
    if len(known) == 1:
        # Alone, its name says nothing about the splits of its rows.
        return known if len({*splits.values()} - {""}) > 1 else dict.fromkeys(known, "")

    folders = {path.rpartition("/")[0] for path in known}
    are_named = all(split or opened[path].names_splits for path, split in known.items())
    has_both = bool(lists) and "" in known.values()
    if known and (has_both or not are_named) and len(folders) < len(known):
        raise InputError(
            f"{folder.path}: several tables ({', '.join([*known][:5])}): name those of each split in "
            "[corpora.data.annotations] of a configuration, or pass one of them"
        )
    return known


def name_split(path: str) -> str:
    """Return the split that a table is named by, or an empty string.

    >>> [name_split(path) for path in ("val_1.json", "train/metadata.csv", "train_val.json")]
    ['validation', 'train', '']
    """
    stem = splitext(path.removesuffix(".gz"))[0]
    return split_in(stem.rpartition("/")[2]) or split_of_path(path)
