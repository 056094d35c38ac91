"""Units of work, and the corpora that are made of them.

A unit is the work of one shard: a folder `<workspace>/units/<key>`, whose key is the digest of
everything that determines its contents. It is written under another name and renamed, so it is
complete or not there. Whether an interrupted run has finished a unit, and whether an earlier corpus
has it, are therefore one question.

A corpus has hard links to the shards of its units (copies on a disk without links), and their
tables, merged. `alpro artifacts gc` removes units that no corpus is made of.
"""

import errno
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.artifact import is_damaged
from alpro.files import (
    checksum,
    make_folder,
    publish,
    read_json,
    temporary_name,
    write_json,
)
from alpro.log import log
from alpro.pool import Died, each
from alpro.shards.schema import INDEX, REJECTS, Reject
from alpro.stages.corpora.tables import UnitRecord, write_table
from alpro.stages.execution.interface import (
    FINISHED_UNITS,
    Resources,
    finished_units,
)
from alpro.threads import map_ahead

TaskT = TypeVar("TaskT")

ARTIFACTS = "artifacts"  # the folder of a workspace with the folders of stages
RECORD = "unit.json"
SHARD = "shard.tar"


class Unit(NamedTuple):
    """A finished unit: its name in the corpus, its key, and whether it was made or found."""

    name: str
    key: str
    made: bool


# Yields the units of tasks whose processes died.
Retry = Callable[[list[tuple[TaskT, Died]]], Iterable[tuple[TaskT, Unit]]]


@dataclass(frozen=True)
class Units:
    """The folder of all units.

    owner: the name of the stage's folder. It begins the names of unfinished units, so that the next
    run of the stage, and no other, deletes them.
    """

    root: Path
    owner: str

    def folder(self, key: str) -> Path:
        return self.root / key

    def find(self, key: str) -> UnitRecord | None:
        """Return the record of a unit. None if it is missing or damaged, or if it is transient:
        another try may have another result."""
        folder = self.folder(key)
        record: UnitRecord = {}
        try:
            record = read_json(folder / RECORD)
            files = record["files"].items()
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError):
            files = [(RECORD, "")]

        for name, sha256 in files:
            if is_damaged(folder / name, sha256):
                log.warning(f"{folder / name} is damaged: its unit is made again")
                return None
        return None if record["transient"] else record

    def find_or_make(
        self,
        name: str,
        get_key: Callable[[], str],
        write: Callable[[Path], UnitRecord],
    ) -> Unit:
        """Find a unit, or make it.

        Args:
            name: The name in the corpus.
            get_key: Returns the key, of the files as they are now.
            write: Fills a folder, and returns the unit's record.
        """
        key = get_key()
        if self.find(key) is not None:
            return Unit(name, key, made=False)

        with TemporaryDirectory(
            dir=self.root,
            prefix=f".{self.owner}.",
            suffix=".part",
            ignore_cleanup_errors=True,
        ) as temporary:
            unfinished = Path(temporary) / key
            unfinished.mkdir()
            record = {"transient": False, **write(unfinished)}
            # A file that changed meanwhile may have been read as it was before or after.
            record["transient"] |= get_key() != key
            files = {file.name: checksum(file) for file in sorted(unfinished.iterdir())}
            write_json(unfinished / RECORD, record | {"files": files})
            while True:
                try:
                    publish(unfinished, self.folder(key))
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                if self.find(key) is not None:  # another run has made it meanwhile
                    break
                # It is damaged or transient.
                with suppress(FileNotFoundError):
                    self.folder(key).rename(temporary_name(unfinished))
        return Unit(name, key, made=True)


def open_units(out: Path) -> Units:
    """Return the units of a stage's workspace, and delete what killed processes of the stage left.

    Args:
        out: The folder of the stage, `<workspace>/artifacts/STAGE/NAME`. In any other place, such
            as a debugger's, it has units of its own.
    """
    artifacts = out.absolute().parents[1]
    root = out / "parts" / "units.apart"
    if artifacts.name == ARTIFACTS:
        root = artifacts.parent / "units"
    make_folder(root)
    make_folder(out / "parts")

    for stale in root.glob(f".{out.name}.*.part"):
        shutil.rmtree(stale, ignore_errors=True)  # perhaps another user's
    return Units(root, out.name)


def write_unit_tables(folder: Path, index: pa.Table, rejects: Iterable[Reject]) -> None:
    """Write the samples and the rejects of a unit."""
    rows = [reject.model_dump() for reject in rejects]
    pq.write_table(index, folder / "index.parquet")
    pq.write_table(
        pa.Table.from_pylist(rows, schema=REJECTS), folder / "rejects.parquet"
    )


def fail(died: Iterable[tuple[TaskT, Died]]) -> Iterator[tuple[TaskT, Unit]]:
    """Raise the error of a task whose process died. Memory may have been short: a stage that has
    finished some units runs again."""
    for task, death in died:
        raise RuntimeError(
            f"{task}: {death.reason}; if memory is short, free some, or lower resources.workers"
        )
    yield from ()


def finish_units(
    tasks: Iterable[TaskT],
    work: Callable[[TaskT], Unit],
    out: Path,
    resources: Resources,
    retry: Retry[TaskT] = fail,
) -> Iterator[tuple[TaskT, Unit]]:
    """Find or make units in processes, on this machine or on a cluster (`alpro.pool.each`), and
    yield them in order of completion.

    The folder of the stage, `out`, gets a line for each finished unit: a stage that dies with more
    finished units than it began with runs again.

    Args:
        retry: Generator of the units of the tasks whose processes died, after all others.
    """
    died: list[tuple[TaskT, Died]] = []
    with open(out / FINISHED_UNITS, "a") as progress:
        for task, unit in chain(
            each(tasks, work, resources.worker_count, resources.scheduler),
            # A generator: it reads `died` after all tasks have been tried.
            retry(died),
        ):
            if isinstance(unit, Died):
                died.append((task, unit))
            else:
                print(unit.key, file=progress, flush=True)
                yield task, unit


def find_unused(workspace: Path, removed: Collection[Path] = ()) -> list[Path]:
    """Return the folders of the units that no corpus is made of, and that no interrupted stage has
    finished.

    Args:
        removed: Folders of corpora that do not count.
    """
    used: set[str] = set()
    for stage in workspace.glob(f"{ARTIFACTS}/*/*/"):
        if stage in removed:
            continue
        if (stage / "units.parquet").is_file():
            used.update(pq.read_table(stage / "units.parquet")["key"].to_pylist())
        used |= finished_units(stage)
    return [
        folder
        for folder in sorted(workspace.glob("units/*"))
        if folder.name not in used
    ]


def merge_units(
    units: Sequence[Unit], store: Units, out: Path, invalid: Iterable[pa.Table] = ()
) -> Sequence[UnitRecord]:
    """Make a corpus of units: link their shards, and write index.parquet, rejects.parquet and
    units.parquet.

    Args:
        units: In the order of the corpus.
        invalid: Rejects that belong to no unit.

    Returns:
        The records of the units.
    """

    def read(unit: Unit) -> tuple[UnitRecord, pa.Table, pa.Table]:
        folder = store.folder(unit.key)
        record = read_json(folder / RECORD)
        # For small files, half of the time of `pq.read_table`.
        index = pq.ParquetFile(folder / "index.parquet").read()
        rejects = pq.ParquetFile(folder / "rejects.parquet").read()
        if SHARD in record["files"]:
            link(folder / SHARD, out / f"{unit.name}.tar")
            # The rows name the shard as this corpus does.
            names = pa.repeat(f"{unit.name}.tar", index.num_rows)
            index = index.set_column(INDEX.get_field_index("shard"), "shard", names)
        return record, index, rejects

    # Threads read ahead: there may be 100,000 units, of three small files each.
    records, indexes, rejects = zip(*map_ahead(read, units), strict=True)
    write_table(out / "index.parquet", indexes)
    write_table(out / "rejects.parquet", [*invalid, *rejects])
    columns = {
        "name": [unit.name for unit in units],
        "key": [unit.key for unit in units],
    }
    pq.write_table(pa.table(columns), out / "units.parquet")
    return records


def link(old: Path, new: Path) -> None:
    """Make a hard link to a file, or a copy if links are not supported."""
    # An interrupted run left it, perhaps without its end. No finished corpus has it.
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(old)
    except OSError:  # links are not supported, or the file has too many
        shutil.copyfile(old, new)
