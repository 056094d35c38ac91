"""Shards of earlier artifacts that a new corpus takes over: those whose rows, files and settings are the same, and of
which nothing was rejected for a reason that may have passed.

So a manifest that has grown, lost rows or changed some costs the decoding of the shards with these rows alone. A shard
is taken over as a hard link (a copy where links cannot be made), once its bytes are the ones that were written.
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

from alpro.files import checksum, temporary_name
from alpro.shards.database import database
from alpro.shards.schema import INDEX, PASSING, REJECTS
from alpro.stages.artifacts.store import CHANGED

# One row a shard (or would-be shard, where all its rows were rejected), in an artifact's units.parquet.
UNITS = pa.schema(
    [
        ("name", pa.string()),
        ("key", pa.string()),  # of its rows, their files and the settings
        ("sha256", pa.string()),  # of the tar; empty where there is none
        ("samples", pa.int64()),
        ("rejected", pa.int64()),
        ("sums", pa.list_(pa.float64())),  # of the pixels of three channels: counts, sums, sums of squares
    ]
)


@dataclass
class WrittenShard:
    """What is known of a unit that was done: a row of UNITS."""

    name: str
    key: str
    sha256: str
    samples: int
    rejected: int
    sums: list[float]


def remember(out: Path) -> None:
    """Writes what the corpora beside `out` have, where workers look it up: artifacts, and what is none because a file
    changed meanwhile."""
    with database(out / "parts" / "earlier.sqlite") as db:
        db.execute("create table earlier (key, folder, name)")
        db.execute("create index by_key on earlier (key)")
        for done in sorted(chain(out.parent.glob("*/artifact.json"), out.parent.glob(f"*/{CHANGED}"))):
            table = done.with_name("units.parquet")
            if done.parent == out or not table.is_file():
                continue
            try:
                units = pq.read_table(table, columns=["key", "name"]).to_pylist()
            except (OSError, pa.ArrowException):  # deleted or damaged: what it has is decoded
                continue
            rows = ((unit["key"], str(done.parent), unit["name"]) for unit in units)
            db.executemany("insert into earlier values (?, ?, ?)", rows)


def take_over(key: str, name: str, ids: list[str], out: Path) -> tuple[WrittenShard, pa.Table, pa.Table] | None:
    """The unit `key` as an earlier artifact has it, its shard now in `out` under `name`: with its rows of the index and
    of the rejects. None where no artifact has it whole."""
    database = (out / "parts" / "earlier.sqlite").absolute()
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        places = db.execute("select folder, name from earlier where key = ?", (key,)).fetchall()
    for folder, old in places:
        try:
            found = _take(Path(folder), old, name, ids, out)
        except (OSError, ValueError, TypeError, pa.ArrowException):  # deleted or damaged meanwhile
            continue
        if found:
            return found
    return None


def _take(
    folder: Path, old: str, name: str, ids: list[str], out: Path
) -> tuple[WrittenShard, pa.Table, pa.Table] | None:
    (row,) = pq.read_table(folder / "units.parquet", filters=[("name", "==", old)]).to_pylist()
    made = WrittenShard(**row | {"name": name})
    index = pq.read_table(folder / "index.parquet", filters=[("shard", "==", f"{old}.tar")], schema=INDEX)
    rejected = REJECTS.empty_table()
    if made.rejected:
        rejected = pq.read_table(folder / "rejects.parquet", filters=[("id", "in", ids)], schema=REJECTS)
    if (index.num_rows, rejected.num_rows) != (made.samples, made.rejected):
        return None
    if not PASSING.isdisjoint(rejected["reason"].to_pylist()):
        return None
    if made.samples and not _link(folder / f"{old}.tar", out / f"{name}.tar", made.sha256):
        return None
    shard = pa.array([f"{name}.tar"] * index.num_rows, pa.string())
    return made, index.set_column(index.schema.get_field_index("shard"), "shard", shard), rejected


def _link(old: Path, new: Path, sha256: str) -> bool:
    """Makes a shard appear under another name too, if it is still the one that was written."""
    if checksum(old) != sha256:
        return False
    temporary = temporary_name(new)
    try:
        os.link(old, temporary)
    except OSError:  # the file system has no links, or too many to this file
        shutil.copyfile(old, temporary)
    os.replace(temporary, new)
    # Renaming one link over another to the same file leaves both.
    temporary.unlink(missing_ok=True)
    return True
