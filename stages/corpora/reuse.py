"""Reuses shards of earlier artifacts with the same rows, files and settings, and without transient rejects.

After rows are added, removed or changed in a manifest, only the shards with these rows are decoded. A shard is reused
as a hard link (or a copy, if links are not supported) after its checksum is verified.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import checksum, publish, temporary_name
from alpro.shards.database import database
from alpro.shards.schema import INDEX, REJECTS, TRANSIENT_REASONS
from alpro.stages.execution.interface import CHANGED

REJECTED = "too_many_rejects"  # file of a corpus with more rejects than its configuration allows
FINISHED = ("artifact.json", CHANGED, REJECTED)

# One row per unit in an artifact's units.parquet. A unit has no shard if all of its rows are rejected.
UNITS = pa.schema(
    [
        ("name", pa.string()),
        ("key", pa.string()),  # digest of its rows, their files and the settings
        ("sha256", pa.string()),  # of the tar; empty without a tar
        ("samples", pa.int64()),
        ("rejected", pa.int64()),
        ("sums", pa.list_(pa.float64())),  # of the pixels of each channel: counts, sums, sums of squares
    ]
)


@dataclass
class WrittenShard:
    """The record of a finished unit: a row of UNITS."""

    name: str
    key: str
    sha256: str
    samples: int
    rejected: int
    sums: list[float]


def index_earlier_units(out: Path) -> None:
    """Writes a database of the units of the corpora beside `out`, for lookups by workers. It includes finished corpora
    without an artifact record: an input file changed during the run, or too many items were rejected."""
    with database(out / "parts" / "earlier.sqlite") as db:
        db.execute("create table earlier (key, folder, name)")
        db.execute("create index by_key on earlier (key)")
        for marker in sorted(chain.from_iterable(out.parent.glob(f"*/{name}") for name in FINISHED)):
            table = marker.with_name("units.parquet")
            if marker.parent == out or not table.is_file():
                continue
            try:
                units = pq.read_table(table, columns=["key", "name"]).to_pylist()
            except (OSError, pa.ArrowException):  # deleted or corrupt: its units are decoded again
                continue
            rows = ((unit["key"], str(marker.parent), unit["name"]) for unit in units)
            db.executemany("insert into earlier values (?, ?, ?)", rows)


def reuse_unit(key: str, name: str, ids: list[str], out: Path) -> tuple[WrittenShard, pa.Table, pa.Table] | None:
    """The unit `key` of an earlier artifact, with its index rows and rejects; its shard is linked into `out` as `name`.
    None if no artifact has the complete unit."""
    database = (out / "parts" / "earlier.sqlite").absolute()
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        places = db.execute("select folder, name from earlier where key = ?", (key,)).fetchall()
    for folder, old in places:
        try:
            unit = _reuse(Path(folder), old, name, ids, out)
        except (OSError, ValueError, TypeError, pa.ArrowException):  # deleted or corrupt
            continue
        if unit:
            return unit
    return None


def _reuse(
    folder: Path, old: str, name: str, ids: list[str], out: Path
) -> tuple[WrittenShard, pa.Table, pa.Table] | None:
    (row,) = pq.read_table(folder / "units.parquet", filters=[("name", "==", old)]).to_pylist()
    written = WrittenShard(**row | {"name": name})
    index = pq.read_table(folder / "index.parquet", filters=[("shard", "==", f"{old}.tar")], schema=INDEX)
    rejected = REJECTS.empty_table()
    if written.rejected:
        rejected = pq.read_table(folder / "rejects.parquet", filters=[("id", "in", ids)], schema=REJECTS)
    if (index.num_rows, rejected.num_rows) != (written.samples, written.rejected):
        return None
    if not TRANSIENT_REASONS.isdisjoint(rejected["reason"].to_pylist()):
        return None
    if written.samples and not _link(folder / f"{old}.tar", out / f"{name}.tar", written.sha256):
        return None
    shard = pa.array([f"{name}.tar"] * index.num_rows, pa.string())
    return written, index.set_column(index.schema.get_field_index("shard"), "shard", shard), rejected


def _link(old: Path, new: Path, sha256: str) -> bool:
    """Links a shard to another name, if its checksum is correct. Returns whether it is linked."""
    if checksum(old) != sha256:
        return False
    temporary = temporary_name(new)
    try:
        os.link(old, temporary)
    except OSError:  # links are not supported, or the file has too many
        shutil.copyfile(old, temporary)
    publish(temporary, new)
    # Renaming a link over another link to the same file keeps both.
    temporary.unlink(missing_ok=True)
    return True
