"""Existing WebDataset shards as a corpus: they stay where they are, and an index says what lies where in them.

What the later stages see is what decode_videos makes, with an index whose `shard` column holds full paths or URLs. A
shard is one unit of work. One that cannot be read whole, or holds what is no sample, ends the stage with its name: an
index without it would lose hundreds of samples at once. A sample whose frames cannot be read is a reject. One frame of
each sample is decoded, to see that it can be, how large it is, and for the mean and deviation of the pixels. For that a
shard at a URL is copied to this machine for the time of its unit: one request, where headers alone would be twenty a
sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.shards.identity import identities
from alpro.shards.reader import Unreadable, sample_of
from alpro.shards.schema import INDEX, REJECTS, SPLITS, Reject
from alpro.shards.storage import FULL, Location, listing, local_copy, refuse_credentials
from alpro.shards.writer import index_shard
from alpro.stages import Stage
from alpro.stages.artifacts.digests import Digests
from alpro.stages.artifacts.store import Outcome, Resources, StageConfig, digest
from alpro.stages.corpora.tables import (
    COMPARED,
    Counted,
    draw_samples,
    pixel_statistics,
    pixel_sums,
    write_overlap,
    write_tables,
)
from alpro.stages.execution.progress import progress
from alpro.stages.execution.workers import do_units

VERSION = 3
STAGE = Stage(help="index existing shards, which stay where they are", kind="data")
COUNTED = ("items", "captions", "questions")


class Config(StageConfig):
    """Which samples of the shards make the corpus."""

    kinds: Literal["all", "video", "image"] = Field("all", description="which samples of the shards to take")
    max_reject_share: float = Field(
        0.2, ge=0, le=1, description="share of rejected samples above which the stage fails"
    )


@dataclass(frozen=True)
class ShardUnit:
    """One shard: what one worker does without knowing of others."""

    name: str
    shard: Location


def shards_of(folder: Location) -> list[Location]:
    """The shards (*.tar) of a folder or URL, in order. Raises InputError if there are none, or if the URL contains
    credentials, which the index would store."""
    refuse_credentials("shards", folder)
    try:
        found = listing(folder, ".tar")
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder of shards") from error
    except OSError as error:
        raise InputError(f"{folder}: its shards cannot be listed: {error.strerror or error}") from error
    if not found:
        raise InputError(f"{folder}: no shards (*.tar) in this folder")
    return found


def digest_shards(folder: Location, digests: Digests) -> str:
    """The digest of existing shards: of where they lie, which the index tells too, and what is in them. Of shards at a
    URL it is what the store says of them (size, and ETag, digest or time) that stands for their contents."""
    shards = shards_of(folder)
    here = [shard for shard in shards if isinstance(shard, Path)]
    contents = digests.of(here) if here else list(identities(shards))
    return digest(dict(zip(map(str, shards), contents, strict=True)))


def run(config: Config, inputs: dict[str, Location], out: Path, resources: Resources) -> Outcome:
    """inputs: `shards`, a folder or URL with *.tar in it. Writes what decode_videos does, but for the shards."""
    units = [ShardUnit(f"{number:06d}", shard) for number, shard in enumerate(shards_of(inputs["shards"]))]
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if not resources.dask:  # its tasks may outlive a pipeline that was killed
        for stale in (out / "parts").glob(".*"):  # of processes that were killed
            stale.unlink()
    do = partial(do_unit, config=config, out=out)
    with progress("indexing", len(units), "shards") as advance:
        left = [unit for unit in units if not part(out, unit, "numbers.json").is_file()]
        advance(len(units) - len(left))
        for _ in do_units(left, do, resources):
            advance(1)
    check_samples(units, out)
    outcome = join(units, out)
    items, rejected = outcome.counts["items"], outcome.counts["rejected"]
    if rejected > config.max_reject_share * items:
        raise InputError(
            f"{inputs['shards']}: {rejected} of {items} samples are damaged, more than max_reject_share = "
            f"{config.max_reject_share:g} allows; see {out / 'rejects.parquet'}"
        )
    here = all(isinstance(unit.shard, Path) for unit in units)  # at a URL every sample would be a request
    outcome.counts |= write_overlap(out, COMPARED if here else 0)
    draw_samples(out)
    return outcome


def part(out: Path, unit: ShardUnit, what: str) -> Path:
    return out / "parts" / f"{unit.name}.{what}"


def do_unit(unit: ShardUnit, config: Config, out: Path) -> None:
    """Indexes one shard, looks at a frame of each sample, and writes its parts of index, rejects and statistics."""
    try:
        with local_copy(unit.shard, folder=out / "parts") as path:
            try:
                index = index_shard(path)
            except InputError as error:  # of the copy
                raise InputError(str(error).replace(str(path), str(unit.shard), 1)) from error
            if config.kinds != "all":
                index = index.filter(pc.equal(index["kind"], config.kinds))
            good, rejects, numbers = look(index, path, unit.shard)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{unit.shard}: not a readable shard: {error.strerror or error}") from error
    names = pa.array([str(unit.shard)] * good.num_rows, pa.string())
    good = good.set_column(good.column_names.index("shard"), "shard", names)
    pq.write_table(good, part(out, unit, "index.parquet"))
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), part(out, unit, "rejects.parquet"))
    write_json(part(out, unit, "numbers.json"), numbers)  # last: this file says that the unit is done


def look(index: pa.Table, path: Path, shard: Location) -> tuple[pa.Table, list[dict[str, str]], dict[str, Any]]:
    """The samples whose middle frame can be read, the others as rejects, and numbers of all of them.

    The numbers are the sums of the pixels (3, 3) of training frames and of all, the sizes of frames of videos, and how
    many items, captions and questions each split has in the shard, damaged or not.
    """
    keep, rejects, training, everything = [], [], np.zeros((3, 3)), np.zeros((3, 3))
    sizes: set[str] = set()
    there = {split: dict.fromkeys(COUNTED, 0) for split in SPLITS}
    for number, row in enumerate(index.to_pylist()):
        there[row["split"]]["items"] += 1
        for name in COUNTED[1:]:
            there[row["split"]][name] += len(row[name])
        sample = sample_of(row, path)
        try:
            (frame,) = sample.frames([len(sample) // 2])
        except Unreadable as error:
            said = str(error).rpartition(f"{row['id']}, ")[2]
            rejects.append(Reject(id=row["id"], path=str(shard), reason="unreadable", detail=said).model_dump())
            continue
        keep.append(number)
        if row["kind"] == "video":
            sizes.add(f"{frame.shape[1]} x {frame.shape[0]}")
        everything += pixel_sums(frame)
        if row["split"] == "train":
            training += pixel_sums(frame)
    sums = {"training": training.tolist(), "everything": everything.tolist()}
    numbers = {**sums, "sizes": sorted(sizes), "there": there}
    return index.take(pa.array(keep, pa.int64())), rejects, numbers


def check_samples(units: list[ShardUnit], out: Path) -> None:
    """Raises InputError if two samples have one id, or frames of videos are of several sizes: a batch of them could not
    be made. Images may be of any size: each is resized as it is read."""
    ids = [pq.read_table(part(out, unit, "index.parquet"), columns=["id", "shard"]) for unit in units]
    both = pa.concat_tables(ids)
    counted = both.group_by("id").aggregate([("shard", "count")])
    if (twice := counted.filter(pc.greater(counted["shard_count"], 1))["id"].to_pylist()[:1]) != []:
        where = both.filter(pc.equal(both["id"], twice[0]))["shard"].to_pylist()
        raise InputError(f"{where[1]}: id {twice[0]!r} is also in {where[0]}; every id must be its own")
    first: dict[str, ShardUnit] = {}
    for unit in units:
        for size in read_json(part(out, unit, "numbers.json"))["sizes"]:
            first.setdefault(size, unit)
    if len(first) > 1:
        (one, a), (other, b), *_ = first.items()
        raise InputError(
            f"{b.shard}: video frames of {other}, those of {a.shard} are {one}; a corpus has frames of one size: name "
            "the others as another corpus"
        )


def join(units: list[ShardUnit], out: Path) -> Outcome:
    """The parts of all units as one index, one table of rejects and statistics, part by part."""
    counted, training, everything = Counted(), np.zeros((3, 3)), np.zeros((3, 3))
    there = {split: dict.fromkeys(COUNTED, 0) for split in SPLITS}
    for unit in units:
        numbers = read_json(part(out, unit, "numbers.json"))
        training += numbers["training"]
        everything += numbers["everything"]
        for split, found in numbers["there"].items():
            for name in COUNTED:
                there[split][name] += found[name]

    def parts(what: str) -> Iterator[pa.Table]:
        return (pq.read_table(part(out, unit, what)) for unit in units)

    write_tables(out / "index.parquet", INDEX, map(counted.samples, parts("index.parquet")))
    write_tables(out / "rejects.parquet", REJECTS, map(counted.rejects, parts("rejects.parquet")))
    counts = counted.all() | {"shards": len(units)}
    assert counts["items"] == sum(found["items"] for found in there.values())
    pixels = pixel_statistics(training if training.any() else everything)
    write_json(out / "statistics.json", pixels | counted.statistics(there))
    return Outcome(counts)
