"""Units of work of a corpus, shared by decode_videos and index_shards, and the reuse of those of
earlier corpora.

A unit is the work of one shard. Workers write its parts (index, rejects and a record) to
`<out>/parts`, the record last: it marks the unit as finished. A resumed run skips finished units.
When all units are finished, their parts are merged into the tables of the corpus.

A unit of an earlier corpus with the same rows, files and settings, and without transient rejects,
is reused: after rows are added, removed or changed, only the shards with these rows are decoded. A
shard is reused as a hard link, or a copy if links are not supported, after its checksum is
verified.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.artifact import RECORD
from alpro.errors import one_line
from alpro.files import atomic_write, checksum, make_folder, read_json, sync, write_json
from alpro.log import log
from alpro.shards.schema import INDEX, REJECTS, TRANSIENT_REASONS
from alpro.stages.corpora.tables import write_tables
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_units

UnitT = TypeVar("UnitT")


def open_parts(out: Path) -> Path:
    """Creates the folder of the parts, and deletes temporary files of killed processes in `out`."""
    parts = out / "parts"
    make_folder(parts)

    unfinished = out.rglob(".*.part")
    downloads = parts.glob(".fetched.*")
    for stale in (*unfinished, *downloads):
        if stale.is_dir():
            shutil.rmtree(stale)
        # A file may be gone with its folder.
        stale.unlink(missing_ok=True)
    return parts


def part_path(name: str, kind: str, out: Path) -> Path:
    """The path of a unit's part (`index.parquet`, `rejects.parquet`, `json`) until the stage
    ends."""
    return out / "parts" / f"{name}.{kind}"


def write_unit(
    name: str, out: Path, index: pa.Table, rejects: pa.Table, record: Mapping[str, Any]
) -> None:
    """Writes the parts of a unit, the record last."""
    for kind, table in (("index.parquet", index), ("rejects.parquet", rejects)):
        path = part_path(name, kind, out)
        pq.write_table(table, path)
        # The record must not reach the disk before the tables that it declares finished.
        sync(path)
    write_json(part_path(name, "json", out), record)


def read_unit(name: str, out: Path) -> tuple[dict[str, Any], pa.Table] | None:
    """The record and the rejects of a unit that an interrupted run finished; None if it is not
    finished, or, with a warning, if one of its parts cannot be read."""
    path = part_path(name, "json", out)
    if not path.is_file():
        return None

    try:
        # The footer tells whether the index is whole: its rows are read when parts are merged.
        pq.read_metadata(part_path(name, "index.parquet", out))
        rejects = pq.read_table(part_path(name, "rejects.parquet", out))
        return dict(read_json(path)), rejects
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        log.warning(
            f"{out}: {name} is built again: a part of it cannot be read ({one_line(error)})"
        )
        forget_unit(name, out)
        return None


def forget_unit(name: str, out: Path) -> None:
    """Removes the mark that a unit is finished, before it is built again."""
    part_path(name, "json", out).unlink(missing_ok=True)
    # A power cut must not bring the mark back, beside the parts of the next try.
    sync(out / "parts")


def run_unfinished(
    units: Iterable[UnitT],
    is_finished: Callable[[UnitT], bool],
    function: Callable[[UnitT], None],
    resources: Resources,
    advance: Callable[[int], Any],
    size: Callable[[UnitT], int],
) -> None:
    """Runs a function on the unfinished units, and advances the progress bar by the size of every
    unit."""

    # A generator: each unit is built when a worker is about to be free.
    def unfinished() -> Iterator[UnitT]:
        for unit in units:
            if is_finished(unit):
                advance(size(unit))
            else:
                yield unit

    for unit, _ in run_units(unfinished(), function, resources):
        advance(size(unit))


def merge_parts(names: Collection[str], out: Path, invalid: Iterable[pa.Table] = ()) -> None:
    """Merges the parts of all units into index.parquet and rejects.parquet.

    names: the names of the units, in order. invalid: rejects that belong to no unit.
    """
    # Generators: memory holds the parts of a few units at a time.
    index = (pq.read_table(part_path(name, "index.parquet", out)) for name in names)
    rejects = (pq.read_table(part_path(name, "rejects.parquet", out)) for name in names)

    write_tables(out / "index.parquet", INDEX, index)
    write_tables(out / "rejects.parquet", REJECTS, chain(invalid, rejects))


# One row per unit in units.parquet, which is written after the index. A unit has no shard if all
# rows are rejected.
UNITS = pa.schema(
    [
        ("name", pa.string()),
        ("key", pa.string()),  # digest of its rows, their files and the settings
        ("sha256", pa.string()),  # of the tar; empty without a tar
        ("samples", pa.int64()),
        ("rejected", pa.int64()),
        ("sums", pa.list_(pa.float64())),  # `pixel_sums`, flat
    ]
)


@lru_cache(maxsize=1)
def earlier_units(out: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The units of the finished corpora beside `out` by their keys: the folder, and the row of
    UNITS."""
    units: dict[str, tuple[Path, dict[str, Any]]] = {}
    for record in sorted(out.parent.glob(f"*/{RECORD}")):
        folder = record.parent
        # If a corpus is deleted meanwhile, or corrupt, its units are decoded again.
        with suppress(OSError, pa.ArrowException):
            for unit in pq.read_table(folder / "units.parquet").to_pylist():
                units[unit["key"]] = (folder, unit)
    return units


def reuse_unit(
    key: str, name: str, ids: list[str], out: Path
) -> tuple[dict[str, Any], pa.Table, pa.Table] | None:
    """The record of an earlier unit with this key, its index rows and its rejects; its shard is
    linked into `out` as `name`. None if no corpus has the complete unit.

    ids: of the unit's rows.
    """
    units = earlier_units(out)
    if key not in units:
        return None
    folder, unit = units[key]
    shard = folder / f"{unit['name']}.tar"

    try:
        of_shard = [("shard", "==", shard.name)]
        index = pq.read_table(folder / "index.parquet", filters=of_shard, schema=INDEX)
        of_ids = [("id", "in", ids)]
        rejected = pq.read_table(folder / "rejects.parquet", filters=of_ids, schema=REJECTS)

        # The tables of the earlier corpus may have lost rows since.
        is_complete = (index.num_rows, rejected.num_rows) == (unit["samples"], unit["rejected"])
        if not is_complete or has_transient(rejected):
            return None

        if unit["samples"]:
            if checksum(shard) != unit["sha256"]:
                return None
            link(shard, out / f"{name}.tar")
    except (OSError, pa.ArrowException):  # deleted or corrupt
        return None

    # The rows name the shard as this corpus does.
    names = pa.array([f"{name}.tar"] * index.num_rows, pa.string())
    column = index.schema.get_field_index("shard")
    return unit | {"name": name}, index.set_column(column, "shard", names), rejected


def has_transient(rejected: pa.Table) -> bool:
    """Whether a reject may be accepted in another run, such as one whose server did not respond."""
    return not TRANSIENT_REASONS.isdisjoint(rejected["reason"].to_pylist())


def link(old: Path, new: Path) -> None:
    """Makes a hard link to a file, or a copy if links are not supported."""
    new.unlink(missing_ok=True)  # renaming a link over another link to the same file keeps both
    with atomic_write(new) as temporary:
        try:
            os.link(old, temporary)
        except OSError:  # links are not supported, or the file has too many
            shutil.copyfile(old, temporary)
