"""Units of work of a corpus, shared by decode_videos and index_shards, and the reuse of those of earlier corpora.

A unit is the work of one shard. Workers write its parts (index, rejects and a record) to `<out>/parts`, the record
last: it marks the unit as finished. A resumed run skips finished units. When all units are finished, their parts are
merged into the tables of the corpus.

A unit of an earlier corpus with the same rows, files and settings, and without transient rejects, is reused: after rows
are added, removed or changed, only the shards with these rows are decoded. A shard is reused as a hard link, or a copy
if links are not supported, after its checksum is verified.
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
    for stale in (*out.rglob(".*.part"), *parts.glob(".fetched.*")):
        if stale.is_dir():
            shutil.rmtree(stale)
        stale.unlink(missing_ok=True)
    return parts


def part_path(name: str, kind: str, out: Path) -> Path:
    """The path of a unit's part (`index.parquet`, `rejects.parquet`, `json`) until the stage ends."""
    return out / "parts" / f"{name}.{kind}"


def write_unit(
    name: str, out: Path, index: pa.Table, rejects: pa.Table, record: Mapping[str, Any]
) -> None:
    """Writes the parts of a unit, the record last."""
    for table, kind in ((index, "index.parquet"), (rejects, "rejects.parquet")):
        pq.write_table(table, part_path(name, kind, out))
        sync(part_path(name, kind, out))
    write_json(part_path(name, "json", out), record)


def read_unit(name: str, out: Path) -> tuple[dict[str, Any], pa.Table] | None:
    """The record and the rejects of a unit that an interrupted run finished; None if it is not finished, or if one of
    its parts cannot be read, of which a line is printed."""
    path = part_path(name, "json", out)
    if not path.is_file():
        return None
    try:
        pq.read_metadata(part_path(name, "index.parquet", out))
        return dict(read_json(path)), pq.read_table(part_path(name, "rejects.parquet", out))
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        log.warning(
            f"{out}: {name} is built again: a part of it cannot be read ({one_line(error)})"
        )
        forget_unit(name, out)
        return None


def forget_unit(name: str, out: Path) -> None:
    """Removes the mark that a unit is finished, before it is made again."""
    part_path(name, "json", out).unlink(missing_ok=True)
    sync(out / "parts")


def run_unfinished(
    units: Iterable[UnitT],
    is_finished: Callable[[UnitT], bool],
    function: Callable[[UnitT], None],
    resources: Resources,
    advance: Callable[[int], Any],
    size: Callable[[UnitT], int],
) -> None:
    """Runs a function on the unfinished units, and advances the progress bar by the size of every unit."""

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
    index = (pq.read_table(part_path(name, "index.parquet", out)) for name in names)
    rejects = (pq.read_table(part_path(name, "rejects.parquet", out)) for name in names)
    write_tables(out / "index.parquet", INDEX, index)
    write_tables(out / "rejects.parquet", REJECTS, chain(invalid, rejects))


# One row per unit in units.parquet, which is written after the index. A unit has no shard if all rows are rejected.
UNITS = pa.schema(
    [
        ("name", pa.string()),
        ("key", pa.string()),  # digest of its rows, their files and the settings
        ("sha256", pa.string()),  # of the tar; empty without a tar
        ("samples", pa.int64()),
        ("rejected", pa.int64()),
        (
            "sums",
            pa.list_(pa.float64()),
        ),  # of the pixels of each channel: counts, sums, sums of squares
    ]
)


@lru_cache(maxsize=1)
def earlier_units(out: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The units of the finished corpora beside `out` by their keys: the folder, and the row of UNITS."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in sorted(record.parent for record in out.parent.glob(f"*/{RECORD}")):
        with suppress(
            OSError, pa.ArrowException
        ):  # deleted or corrupt: its units are decoded again
            found |= {
                unit["key"]: (folder, unit)
                for unit in pq.read_table(folder / "units.parquet").to_pylist()
            }
    return found


def reuse_unit(
    key: str, name: str, ids: list[str], out: Path
) -> tuple[dict[str, Any], pa.Table, pa.Table] | None:
    """The record of an earlier unit with this key, its index rows and its rejects; its shard is linked into `out` as
    `name`. None if no corpus has the complete unit."""
    if key not in (units := earlier_units(out)):
        return None
    folder, unit = units[key]
    try:
        index = pq.read_table(
            folder / "index.parquet", filters=[("shard", "==", f"{unit['name']}.tar")], schema=INDEX
        )
        rejected = pq.read_table(
            folder / "rejects.parquet", filters=[("id", "in", ids)], schema=REJECTS
        )
        is_complete = (index.num_rows, rejected.num_rows) == (unit["samples"], unit["rejected"])
        if not is_complete or has_transient(rejected):
            return None
        if unit["samples"]:
            shard = folder / f"{unit['name']}.tar"
            if checksum(shard) != unit["sha256"]:
                return None
            link(shard, out / f"{name}.tar")
    except (OSError, pa.ArrowException):  # deleted or corrupt
        return None
    shards = pa.array([f"{name}.tar"] * index.num_rows, pa.string())
    return (
        unit | {"name": name},
        index.set_column(index.schema.get_field_index("shard"), "shard", shards),
        rejected,
    )


def has_transient(rejected: pa.Table) -> bool:
    """Whether a reject may be accepted in another run, such as one whose server did not respond."""
    return not TRANSIENT_REASONS.isdisjoint(rejected["reason"].to_pylist())


def link(old: Path, new: Path) -> None:
    new.unlink(missing_ok=True)  # renaming a link over another link to the same file keeps both
    with atomic_write(new) as temporary:
        try:
            os.link(old, temporary)
        except OSError:  # links are not supported, or the file has too many
            shutil.copyfile(old, temporary)
