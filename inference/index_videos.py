"""Add the videos of a folder or a manifest to an index, and remove videos.

Embedding is cut into units, which other processes or machines compute. Each finished unit is
committed, so an interrupted run continues.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from alpro.errors import InputError
from alpro.inference.index import (
    COLUMNS,
    SCHEMA,
    ColumnTypes,
    Index,
    IndexSettings,
    Item,
    get_source,
    index_exists,
    quoted,
    stored_path,
    whole_path,
)
from alpro.inference.loading import Found
from alpro.inference.scan import (
    is_corpus,
    read_manifest,
    scan_videos,
    split_into_windows,
)
from alpro.log import log, progress
from alpro.pool import Died, each
from alpro.shards.schema import TRANSIENT_REASONS
from alpro.shards.storage import Location, absolute, identities, located

if TYPE_CHECKING:
    from alpro.inference.model import Dtype, Model
    from alpro.models.precision import Device

CHUNK = 2048  # items whose files are looked up together
# Items that are listed before the first is embedded, for the time left.
MAX_LISTED = 100_000
MAX_UNIT = 1024  # clips between two commits
# A unit that takes less time is followed by one of twice the size, another by one of half the size,
# so that there is a commit at least every minute.
UNIT_SECONDS = 20.0
# Files that are looked for in the folder to which a root may have moved.
MAX_SAMPLED = 1000


@dataclass(frozen=True)
class Embedder:
    """How clips are embedded: by this model, here or by the workers of a cluster."""

    model: Found
    device: "Device" = "auto"
    dtype: "Dtype" = "auto"
    scheduler: str = ""


@dataclass
class Counts:
    """What a run did with the items.

    Attributes:
        embedded: Clips that were embedded.
        updated: Items of which only the caption or a column had changed.
        skipped: Items that were in the index.
        removed: Rows of files that are gone or have fewer windows, or that their table no longer has.
        reject: The path of a rejected item, with its reason and detail.
    """

    embedded: int = 0
    updated: int = 0
    skipped: int = 0
    removed: int = 0
    reject: str = ""


def add_videos(
    place: Location,
    embedder: Embedder,
    videos: Location,
    window: float | None = None,
    stride: float | None = None,
    columns: Sequence[str] = (),
) -> Counts:
    """Embed the clips that an index does not have, or whose files have changed.

    Captions and columns that have changed are replaced. Clips of the same folder whose files are
    gone, and those that their table no longer has, are removed. If a subfolder is missing
    or empty, its clips stay. If the folder of an index has moved, its clips are found in the new one.

    What a table said of a file stays if the file's folder is added.

    Args:
        place: Folder or address of the index, which is created if it does not exist.
        embedder: The model, and where it runs.
        videos: A folder or a manifest.
        window: Split longer videos into windows of this many seconds (new index).
        stride: Seconds from one window to the next; by default half a window.
        columns: Columns of the manifest that are kept (new index).

    Raises:
        InputError: If the index is of another model, or has other windows or columns.
    """
    if stride and not (window and stride <= window):
        raise InputError(
            "--stride needs a --window, and is not longer: a longer one would leave parts of "
            "videos out"
        )
    videos = absolute(videos)
    settings = IndexSettings(
        model=str(embedder.model.model.resolve()),
        digest=embedder.model.digest,
        root=find_root(videos),
        window=window,
        stride=stride or (window and window / 2),
    )
    if not index_exists(place):
        types = infer_types(videos, columns)
        return Addition(place, None, settings, types, embedder).run(videos)

    index = Index.open(place)
    before = index.settings
    index.find_model(embedder.model)
    asked = (window, settings.stride, list(columns))
    made = (before.window, before.stride, list(index.columns))
    if asked not in ((None, None, []), made):
        raise InputError(
            f"{place}: this index was made with window {made[0]}, stride {made[1]} and columns "
            f"{made[2]}; leave these options out, or choose another folder"
        )
    root = find_moved_root(index, settings.root)
    index.change_settings(model=settings.model, root=root)
    return Addition(place, index, index.settings, index.columns, embedder).run(videos)


def find_root(videos: Location) -> str:
    """Return the local folder that a source is in; empty for a URL."""
    if isinstance(videos, Path) and is_corpus(videos):
        videos = located(read_manifest(videos).about["source"])
    if isinstance(videos, str):
        return ""
    return str(videos if videos.is_dir() else videos.parent)


def find_moved_root(index: Index, folder: str) -> str:
    """Return the root of an index: `folder` if the root is gone, and files of it are there."""
    root = index.settings.root
    if not root or not folder or Path(root).exists():
        return root
    for item in index.rows(k=MAX_SAMPLED):
        moved = Path(folder, stored_path(item["path"], root))
        if [*identities([moved])] == [item["identity"]]:
            log.info(f"{root} has moved to {folder}: the index has the new paths")
            return folder
    return root


def infer_types(videos: Location, columns: Sequence[str]) -> ColumnTypes:
    """Infer the types of columns of a manifest from all values.

    Raises:
        InputError: If a column has no values, or not only texts or only numbers, or its name is taken.
    """
    if not columns:
        return {}
    rows = [item["columns"] for item in scan_videos(videos, columns)]
    types: ColumnTypes = {}
    for name in columns:
        kind = pa.null()
        with suppress(pa.ArrowException):  # values of several types
            kind = pa.infer_type([row.get(name) for row in rows])

        is_taken = name in COLUMNS or "." in name
        if is_taken or pa.types.is_null(kind) or pa.types.is_nested(kind):
            raise InputError(
                f"{videos}: column {name!r} has no values, or not only texts or only numbers, or "
                "an index has a column of this name"
            )
        types[name] = kind
    return types


@dataclass
class Addition:
    """One run of `add_videos`. Its first clip creates an index that does not exist."""

    place: Location
    index: Index | None
    settings: IndexSettings
    types: ColumnTypes
    embedder: Embedder

    def __post_init__(self) -> None:
        self.counts = Counts()
        self.unit_size = 1  # clips of the next unit
        self.pending: list[Item] = []  # rows to write
        self.indexed: dict[str, str] = {}  # identity by key
        self.listed: set[str] = set()  # digests of what tables and folders said
        self.table_keys: set[str] = set()  # keys of rows that a table named
        self.scanned: set[str] = set()  # keys of this run
        self.tables: set[str] = set()  # tables that list rows of this run
        self.identities: dict[str, str] = {}  # by the path of a file of this run

    def run(self, videos: Location) -> Counts:
        old_rows = (
            SCHEMA.empty_table() if self.index is None else self.index.identities()
        )
        for row in iterate_rows(old_rows):
            self.listed.add(row["listed_as"])
            if row["listed_by"]:
                self.table_keys.add(row["key"])
            # A file that could not be reached is tried again.
            if row["reason"] not in TRANSIENT_REASONS:
                self.indexed[row["key"]] = row["identity"]

        items = scan_videos(videos, list(self.types))
        if self.settings.window and self.settings.stride:
            items = split_into_windows(
                items, self.settings.window, self.settings.stride
            )
        changed = self._find_changed(items)
        listed = list(islice(changed, MAX_LISTED))
        total = len(listed) if len(listed) < MAX_LISTED else None
        with progress("embedding", total, "clips") as advance:
            for unit, results in self._embed(chain(listed, changed)):
                for item, result in zip(unit, results, strict=True):
                    self._add(item | result)
                self._write()
                advance(len(unit))

        self._write()
        if self.index is not None:
            self._remove_old(old_rows, videos)
            self.index.optimize()
        return self.counts

    def _find_changed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items that the index does not have, or whose files have changed."""
        remaining = iter(items)
        while chunk := list(islice(remaining, CHUNK)):
            paths = {item["path"] for item in chunk if not item["reason"]}
            paths -= self.identities.keys()
            self.identities |= zip(paths, identities(map(located, paths)), strict=True)

            updated = []
            for row in map(self._make_row, chunk):
                key = row["key"]
                if key in self.scanned:
                    self.counts.skipped += 1
                    continue

                self.scanned.add(key)
                self.tables.add(row["listed_by"])
                # What a table said of a file stays if the file's folder is added.
                may_update = row["listed_by"] or key not in self.table_keys
                if row["reason"]:
                    self._add(row)
                elif self.indexed.get(key) != row["identity"]:
                    yield row
                elif may_update and row["listed_as"] not in self.listed:
                    updated.append(row)
                else:
                    self.counts.skipped += 1
            if self.index is not None and updated:
                self.index.write(updated, computed=False)
                self.counts.updated += len(updated)

    def _make_row(self, item: Item) -> Item:
        """Return an item with its key, its identity and the digest of what is said of it."""
        path = stored_path(item["path"], self.settings.root)
        member = (item["member"] or {}).get("name")
        # What an item is, whatever its file contains.
        parts = (
            path,
            member,
            item["id"] if item["reason"] else None,
            item["start"],
            item["end"],
            item["detail"],
        )
        identity = "" if item["reason"] else self.identities[item["path"]]
        row = item | {"key": hash_repr(parts), "identity": identity}
        row["listed_by"] = stored_path(item["listed_by"] or "", self.settings.root)
        return row | {"listed_as": hash_repr(row | {"path": path})}

    def _embed(self, items: Iterable[Item]) -> Iterator[tuple[list[Item], list[Item]]]:
        """Embed items in units, in other processes.

        A unit whose process dies is repeated one item at a time, so that a file that crashes its
        decoder costs no others.
        """
        remaining = iter(items)
        first = iter(lambda: list(islice(remaining, self.unit_size)), [])
        repeated: list[Item] = []
        work = partial(embed, self.embedder)
        for units in (first, ([item] for item in repeated)):
            for unit, result in each(units, work, 1, self.embedder.scheduler):
                if not isinstance(result, Died):
                    rows, seconds = result
                    is_short = seconds < UNIT_SECONDS
                    size = 2 * len(unit) if is_short else len(unit) // 2
                    self.unit_size = min(max(size, 1), MAX_UNIT)
                    yield unit, rows
                elif len(unit) > 1:
                    repeated += unit
                else:
                    yield unit, [{"reason": "crashed", "detail": result.reason}]

    def _add(self, row: Item) -> None:
        """Take a row that is written with the next unit."""
        reason = row["reason"]
        self.counts.embedded += not reason
        if reason:
            words = [row["path"], reason, row["detail"]]
            self.counts.reject = ": ".join(filter(None, words))
        # What the index has of a file stays while its store does not answer.
        if reason not in TRANSIENT_REASONS or row["key"] not in self.indexed:
            self.pending.append(row)

    def _write(self) -> None:
        vectors = [row["vector"] for row in self.pending if "vector" in row]
        if self.index is None and vectors:
            self.index = Index.create(
                self.place, self.settings, len(vectors[0]), self.types
            )
        if self.index is not None and self.pending:
            self.index.write(self.pending)
            self.pending = []

    def _remove_old(self, old_rows: pa.Table, videos: Location) -> None:
        """Remove bad rows of earlier runs, windows that a changed file no longer has, clips that the
        table no longer has, and clips of the folder whose files are gone.

        A folder that is missing or empty may be a disk that is not mounted: its clips stay.
        """
        assert self.index is not None
        folder = find_root(videos)
        tables = self.tables - {""}
        removed = []
        kept = []  # folders
        for row in iterate_rows(old_rows):
            path = whole_path(row["path"], self.settings.root)
            if row["key"] in self.scanned:
                continue
            identity = row["identity"]
            is_changed = self.identities.get(path, identity) != identity
            if not identity or is_changed or row["listed_by"] in tables:
                removed.append(row["key"])
            elif folder and path.startswith(f"{folder}/") and not Path(path).is_file():
                parent = Path(path).parent
                if parent.is_dir() and any(parent.iterdir()):
                    removed.append(row["key"])
                else:
                    kept.append(parent)
        if kept:
            log.warning(
                f"{len(kept):,} clips stay in the index, whose folders are missing or empty, such "
                f"as {kept[0]}; `alpro index rm {self.place} FOLDER` removes them"
            )
        if removed:
            self.index.remove(removed)
        self.counts.removed = len(removed)


def hash_repr(value: Any) -> str:
    return sha256(repr(value).encode()).hexdigest()[:32]


def iterate_rows(table: pa.Table) -> Iterator[Item]:
    """Yield the rows of a table. As objects, they take ten times the memory of the columns."""
    for batch in table.to_batches(CHUNK):
        yield from batch.to_pylist()


# In a worker process


def embed(embedder: Embedder, items: list[Item]) -> tuple[list[Item], float]:
    """Embed items. Return the `vector` and the `duration` of each, or the `reason` and the `detail`;
    and the seconds that it took."""
    # The same path may have had other weights for an earlier job.
    model = load_model(embedder, embedder.model.digest)
    began = time.monotonic()
    rows: list[Item] = []
    for one in model.stream(map(get_source, items)):
        if one.error:
            rows.append({"reason": one.error.reason, "detail": one.error.detail})
        else:
            # An image has the duration 0.
            rows.append({"vector": one.embedding, "duration": one.duration or None})
    return rows, time.monotonic() - began


@lru_cache(maxsize=1)
def load_model(embedder: Embedder, digest: str) -> "Model":
    """Load the model, once in each process."""
    from alpro.inference.model import Model

    return Model.load(embedder.model, device=embedder.device, dtype=embedder.dtype)


def remove_videos(place: Location, names: Sequence[str]) -> list[Item]:
    """Remove clips and rejects from an index, also from the disk.

    Args:
        names: Ids, files or folders.

    Returns:
        What was removed.

    Raises:
        InputError: If a name stands for nothing in the index, which then stays as it is.
    """
    index = Index.open(place)
    root = quoted(f"{index.settings.root}/")
    removed: dict[str, Item] = {}
    for name in names:
        folder = quoted(f"{absolute(name)}/")
        # A path is absolute, or relative to the root.
        is_named = (
            f"id = {quoted(name)} OR starts_with(concat(path, '/'), {folder}) "
            f"OR starts_with(concat({root}, path, '/'), {folder})"
        )
        items = index.rows(is_named)
        if not items:
            raise InputError(
                f"{place}: {name} is not in this index; `alpro index ls` lists what is"
            )
        removed |= {item["key"]: item for item in items}

    index.remove(list(removed))
    return list(removed.values())
