"""Units of work of a corpus, shared by decode_videos and index_shards.

A unit is the work of one shard. Workers write its parts (index, rejects and a record) to `<out>/parts`, the record
last: it marks the unit as finished. A resumed run skips finished units. When all units are finished, their parts are
merged into the tables of the corpus.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import make_folder, read_json, sync, write_json
from alpro.log import log
from alpro.shards.schema import INDEX, REJECTS
from alpro.stages.corpora.tables import write_tables
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_units

UnitT = TypeVar("UnitT")


def open_parts(out: Path, resources: Resources) -> Path:
    """Creates the folder of the parts, and deletes temporary files of killed processes in `out`.

    With Dask nothing is deleted: its tasks may still run after their pipeline is killed.
    """
    parts = out / "parts"
    make_folder(parts)
    if not resources.dask:
        for stale in (*out.rglob(".*.part"), *parts.glob(".fetched.*")):
            if stale.is_dir():
                shutil.rmtree(stale)
            stale.unlink(missing_ok=True)
    return parts


def part_path(name: str, kind: str, out: Path) -> Path:
    """The path of a unit's part (`index.parquet`, `rejects.parquet`, `json`) until the stage ends."""
    return out / "parts" / f"{name}.{kind}"


def write_unit(name: str, out: Path, index: pa.Table, rejects: pa.Table, record: Mapping[str, Any]) -> None:
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
        log.warning(f"{out}: {name} is made again: a part of it cannot be read ({str(error).splitlines()[0]})")
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
