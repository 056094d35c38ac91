"""Reuses shards of earlier corpora with the same rows, files and settings, and without transient rejects.

After rows are added, removed or changed, only the shards with these rows are decoded. A shard is reused as a hard link,
or a copy if links are not supported, after its checksum is verified.
"""

import os
import shutil
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.artifact import RECORD
from alpro.files import atomic_write, checksum
from alpro.shards.schema import INDEX, REJECTS, TRANSIENT_REASONS

# One row per unit in units.parquet, which is written after the index. A unit has no shard if all rows are rejected.
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


@lru_cache(maxsize=1)
def earlier_units(out: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The units of the finished corpora beside `out` by their keys: the folder, and the row of UNITS."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in sorted(record.parent for record in out.parent.glob(f"*/{RECORD}")):
        with suppress(OSError, pa.ArrowException):  # deleted or corrupt: its units are decoded again
            found |= {unit["key"]: (folder, unit) for unit in pq.read_table(folder / "units.parquet").to_pylist()}
    return found


def reuse_unit(key: str, name: str, ids: list[str], out: Path) -> tuple[dict[str, Any], pa.Table, pa.Table] | None:
    """The record of an earlier unit with this key, its index rows and its rejects; its shard is linked into `out` as
    `name`. None if no corpus has the complete unit."""
    if key not in (units := earlier_units(out)):
        return None
    folder, unit = units[key]
    try:
        index = pq.read_table(folder / "index.parquet", filters=[("shard", "==", f"{unit['name']}.tar")], schema=INDEX)
        rejected = pq.read_table(folder / "rejects.parquet", filters=[("id", "in", ids)], schema=REJECTS)
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
    return unit | {"name": name}, index.set_column(index.schema.get_field_index("shard"), "shard", shards), rejected


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
