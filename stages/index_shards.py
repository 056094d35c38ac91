"""Indexes existing WebDataset shards as a corpus. The shards are not copied.

The output is that of decode_videos, but the index column `shard` has full paths or URLs. A shard is one unit of work. A
shard that is damaged or has members that are not samples stops the stage: without it, hundreds of samples would be
missing. A sample whose frames cannot be read is a reject; so is a sample that is lost or has changed since the
index.parquet beside the shards was written, if there is one. One frame of each sample is decoded for validation, its
size, and the mean and standard deviation of the pixels. For this, a shard at a URL is copied to a temporary file: one
request instead of about twenty per sample.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import read_json
from alpro.log import progress
from alpro.shards.reader import Unreadable, sample_from_row
from alpro.shards.schema import INDEX, REJECTS, SPLITS, Reject
from alpro.shards.storage import DISK_FULL, Location, join, listing, local_copy, parent
from alpro.shards.writer import index_shard
from alpro.stages.corpora.tables import COMPARED, complete, pixel_sums, write_statistics
from alpro.stages.corpora.units import (
    merge_parts,
    open_parts,
    part_path,
    read_unit,
    run_unfinished,
    write_unit,
)
from alpro.stages.execution.interface import Outcome, Resources, StageConfig, StageInputs

VERSION = 4
COUNT_NAMES = ("items", "captions", "questions")


class Config(StageConfig):
    """Which samples of the shards are in the corpus."""

    kinds: Literal["all", "video", "image"] = Field(
        default="all", description="which samples of the shards to index"
    )
    max_reject_share: float = Field(
        default=0.2, ge=0, le=1, description="maximum fraction of rejected samples"
    )


@dataclass(frozen=True)
class ShardUnit:
    """One shard, processed independently by one worker."""

    name: str
    shard: Location


def list_shards(folder: Location) -> list[Location]:
    """The shards (*.tar) of a folder or URL, in order. Raises InputError if there are none, or if the URL contains
    credentials, which the index would store."""
    refuse_credentials("shards", folder)
    try:
        shards = listing(folder, ".tar")
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder of shards") from error
    except OSError as error:
        raise InputError(
            f"{folder}: its shards cannot be listed: {error.strerror or error}"
        ) from error
    if not shards:
        raise InputError(f"{folder}: no shards (*.tar) in this folder")
    return shards


class Inputs(StageInputs):
    """A folder or URL with *.tar files."""

    shards: Location


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Writes the output of decode_videos except the shards."""
    units = [
        ShardUnit(f"{number:06d}", shard) for number, shard in enumerate(list_shards(inputs.shards))
    ]
    open_parts(out)
    process = partial(process_unit, config=config, out=out)
    with progress("indexing", len(units), "shards") as advance:
        run_unfinished(
            units, partial(is_finished, out=out), process, resources, advance, lambda _: 1
        )
    check_samples(units, out)
    outcome = merge(units, out)
    local = all(
        isinstance(unit.shard, Path) for unit in units
    )  # at a URL, every sample takes a request
    complete(outcome, inputs.shards, out, config.max_reject_share, COMPARED if local else 0)
    return outcome


def is_finished(unit: ShardUnit, out: Path) -> bool:
    return read_unit(unit.name, out) is not None


def process_unit(unit: ShardUnit, config: Config, out: Path) -> None:
    """Indexes one shard, decodes a frame of each sample, and writes its parts of index, rejects and statistics."""
    try:
        with local_copy(unit.shard, folder=out / "parts") as path:
            try:
                index, known = index_shard(path), index_beside(unit.shard)
            except InputError as error:  # names the temporary copy
                raise InputError(str(error).replace(str(path), str(unit.shard), 1)) from error
            if config.kinds != "all":
                index, known = (
                    table.filter(pc.equal(table["kind"], config.kinds)) for table in (index, known)
                )
            good, rejects, numbers = check_frames(index, known, path, unit.shard)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(
            f"{unit.shard}: not a readable shard: {error.strerror or error}"
        ) from error
    names = pa.array([str(unit.shard)] * good.num_rows, pa.string())
    good = good.set_column(good.column_names.index("shard"), "shard", names)
    write_unit(unit.name, out, good, pa.Table.from_pylist(rejects, schema=REJECTS), numbers)


def index_beside(shard: Location) -> pa.Table:
    """The rows of a shard in the index.parquet beside it; none without one. Raises InputError if it cannot be read."""
    place, name = join(parent(shard), "index.parquet"), PurePosixPath(str(shard)).name
    try:
        with local_copy(place) as path:
            if not set(INDEX.names) <= set(
                pq.read_schema(path).names
            ):  # of an earlier version, or something else
                return INDEX.empty_table()
            return pq.read_table(path, filters=[("shard", "==", name)], schema=INDEX)
    except FileNotFoundError:
        return INDEX.empty_table()
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{place}: cannot be read: {error}; remove it to index the shards without it"
        ) from error


def check_frames(
    index: pa.Table, known: pa.Table, path: Path, shard: Location
) -> tuple[pa.Table, list[dict[str, str]], dict[str, Any]]:
    """Returns the samples whose middle frame can be read, the others as rejects, and numbers.

    known: the rows of an earlier index; what it has and the shard has not, or with other sums, is a reject. The numbers
    are the pixel sums (3, 3) of the training frames and of all frames, the frame sizes of the videos, and the numbers
    of items, captions and questions of each split in the shard, including corrupt samples.
    """
    keep, rejects, training, everything = [], [], np.zeros((3, 3)), np.zeros((3, 3))
    sizes: set[str] = set()
    expected = {split: dict.fromkeys(COUNT_NAMES, 0) for split in SPLITS}
    read = {row["key"]: (number, row) for number, row in enumerate(index.to_pylist())}
    earlier = {row["key"]: row for row in known.to_pylist()}
    for key in dict.fromkeys([*read, *earlier]):
        number, found = read.get(key, (-1, None))
        row = earlier.get(key, found)
        assert row is not None
        expected[row["split"]]["items"] += 1
        for name in COUNT_NAMES[1:]:
            expected[row["split"]][name] += len(row[name])
        try:
            if found is None or any(
                found[name] != row[name] for name in ("json_crc32", "frame_crc32s")
            ):
                raise Unreadable(
                    f"{row['id']}, {'changed' if found else 'lost'} since index.parquet was written"
                )
            sample = sample_from_row(found, path)
            (frame,) = sample.frames([len(sample) // 2])
        except Unreadable as error:
            detail = str(error).rpartition(f"{row['id']}, ")[2]
            rejects.append(
                Reject(
                    id=row["id"], path=str(shard), reason="unreadable", detail=detail
                ).model_dump()
            )
            continue
        keep.append(number)
        if row["kind"] == "video":
            sizes.add(f"{frame.shape[1]} x {frame.shape[0]}")
        everything += pixel_sums(frame)
        if row["split"] == "train":
            training += pixel_sums(frame)
    sums = {"training": training.tolist(), "everything": everything.tolist()}
    numbers = {**sums, "sizes": sorted(sizes), "expected": expected}
    return index.take(pa.array(keep, pa.int64())), rejects, numbers


def check_samples(units: list[ShardUnit], out: Path) -> None:
    """Raises InputError if two samples have the same id, or if the videos have different frame sizes, which cannot be
    batched. Images may have any size: they are resized when they are read."""
    ids = [
        pq.read_table(part_path(unit.name, "index.parquet", out), columns=["id", "shard"])
        for unit in units
    ]
    rows = pa.concat_tables(ids)
    counts = rows.group_by("id").aggregate([("shard", "count")])
    if duplicates := counts.filter(pc.greater(counts["shard_count"], 1))["id"].to_pylist()[:1]:
        shards = rows.filter(pc.equal(rows["id"], duplicates[0]))["shard"].to_pylist()
        raise InputError(
            f"{shards[1]}: id {duplicates[0]!r} is also in {shards[0]}; ids must be unique"
        )
    first: dict[str, ShardUnit] = {}
    for unit in units:
        for size in read_json(part_path(unit.name, "json", out))["sizes"]:
            first.setdefault(size, unit)
    if len(first) > 1:
        (size, unit), (other_size, other), *_ = first.items()
        raise InputError(
            f"{other.shard}: video frames of {other_size}, but {size} in {unit.shard}; a corpus needs one frame size: "
            "put the others in another corpus"
        )


def merge(units: list[ShardUnit], out: Path) -> Outcome:
    """Merges the parts of all units into the index, the rejects and the statistics."""
    training, everything = np.zeros((3, 3)), np.zeros((3, 3))
    expected = {split: dict.fromkeys(COUNT_NAMES, 0) for split in SPLITS}
    for unit in units:
        numbers = read_json(part_path(unit.name, "json", out))
        training += numbers["training"]
        everything += numbers["everything"]
        for split, counts in numbers["expected"].items():
            for name in COUNT_NAMES:
                expected[split][name] += counts[name]
    merge_parts([unit.name for unit in units], out)
    counts = write_statistics(out, training, everything, expected)
    assert counts["items"] == sum(split["items"] for split in expected.values())
    return Outcome(counts | {"shards": len(units)})
