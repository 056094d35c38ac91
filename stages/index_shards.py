"""Index existing WebDataset shards as a corpus. The shards are not copied.

The output equals decode_videos', but the index column `shard` has full paths or URLs. A shard is
one unit of work. A shard that is damaged or has members that are not samples stops the stage:
without it, hundreds of samples would be missing. A sample whose frames cannot be read is a reject;
so is a sample that is lost or has changed since the index.parquet beside the shards was written, if
there is one. One frame of each sample is decoded for validation, its size, and the mean and
standard deviation of the pixels. For this, a shard at a URL is copied to a temporary file: one
request instead of about twenty per sample.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.errors import InputError, one_line
from alpro.files import DISK_FULL, digest
from alpro.log import progress
from alpro.shards.credentials import refuse_credentials
from alpro.shards.reader import Unreadable, sample_from_row
from alpro.shards.schema import INDEX, REJECTS, Reject
from alpro.shards.sources.downloads import compressed_tars
from alpro.shards.storage import (
    Location,
    identities,
    join,
    listing,
    local_copy,
)
from alpro.shards.writer import index_shard
from alpro.stages.corpora.tables import (
    COMPARED,
    TEXTS,
    CorpusConfig,
    UnitRecord,
    complete,
    count_texts,
    pixel_sums,
    write_table,
)
from alpro.stages.corpora.units import (
    Unit,
    Units,
    finish_units,
    merge_units,
    open_units,
    write_unit_tables,
)
from alpro.stages.execution.interface import (
    Outcome,
    Resources,
    StageInputs,
)

VERSION = 4
EARLIER_COLUMNS = ["id", "shard", "split", *TEXTS, "json_crc32", "frame_crc32s"]


class Config(CorpusConfig, frozen=True):
    """Selection of the samples of the shards."""


def list_shards(folder: Location) -> list[Location]:
    """List the shards (*.tar) of a folder or URL, in order.

    Raises:
        InputError: If there are none, or if the URL contains credentials, which the index would
            store.
    """
    refuse_credentials("shards", folder)
    try:
        shards = listing(folder, ".tar")
        compressed = compressed_tars(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: its shards cannot be listed: {error.strerror or error}"
        ) from error
    if compressed:
        raise InputError(f"{compressed[0]}: a compressed shard is not read: gunzip it")
    if not shards:
        raise InputError(f"{folder}: no shards (*.tar) in this folder")
    return shards


class Inputs(StageInputs):
    """A folder or URL with *.tar files."""

    shards: Location


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write the output of decode_videos except the shards."""
    shards = list_shards(inputs.shards)
    store = open_units(out)

    units: dict[str, Unit] = {}
    work = partial(index_unit, config=config, store=store)
    with progress("indexing", len(shards), "shards") as advance:
        for _, unit in finish_units(shards, work, out, resources):
            units[unit.name] = unit
            advance()

    records = merge_units([units[str(shard)] for shard in shards], store, out)
    # Across shards: a worker sees its own alone.
    check_ids(out)
    check_sizes(shards, records)
    lost = reject_changed(read_earlier(config, inputs.shards, out), inputs.shards, out)
    expected = count_expected(records, lost)
    items = sum(counts["items"] for counts in expected.values())

    # At a URL, the frames of each sample take a request.
    compared = COMPARED if all(isinstance(shard, Path) for shard in shards) else 0
    outcome = complete(
        inputs.shards, out, records, expected, items, config.max_reject_share, compared
    )
    outcome.counts["shards"] = len(shards)
    return outcome


def index_unit(shard: Location, config: Config, store: Units) -> Unit:
    """Find the unit of a shard, or index the shard."""

    def get_key() -> str:
        (file,) = identities([shard])
        return digest([VERSION, config.kinds, str(shard), file])

    return store.find_or_make(str(shard), get_key, partial(write_unit, shard, config))


def write_unit(shard: Location, config: Config, folder: Path) -> UnitRecord:
    """Index one shard, decode a frame of each sample, and write the tables of the unit. Return its
    record."""
    try:
        with local_copy(shard, folder=folder) as path:
            index = index_shard(path, str(shard))
            if config.kinds != "all":
                index = index.filter(pc.equal(index["kind"], config.kinds))
            return check_frames(index, path, folder)
    except OSError as error:
        # The shard is not to blame.
        if error.errno in DISK_FULL:
            raise
        raise InputError(
            f"{shard}: not a readable shard: {error.strerror or error}"
        ) from error


def check_frames(index: pa.Table, path: Path, folder: Path) -> UnitRecord:
    """Decode the middle frame of each sample of a shard, and write the tables of the unit.

    Args:
        index: The rows of the shard.
        path: Its local copy.

    Returns:
        The record of the unit: the pixel sums (3, 3) of the training frames and of all frames, the
        frame sizes of the videos, and for each split the numbers of items, captions and questions
        in the shard, including unreadable samples.
    """
    readable: list[bool] = []
    rejects: list[Reject] = []
    training = np.zeros((3, 3))
    everything = np.zeros((3, 3))
    sizes: set[str] = set()
    for row in index.to_pylist():
        try:
            # One frame stands for all: decoding each would take as many times as long.
            sample = sample_from_row(row, path)
            (frame,) = sample.frames([len(sample) // 2])
        except Unreadable as error:
            # The reject has the id in a column of its own.
            detail = str(error).rpartition(f"{row['id']}: ")[2]
            reject = Reject(
                id=row["id"], path=row["shard"], reason="unreadable", detail=detail
            )
            rejects.append(reject)
            readable.append(False)
            continue

        readable.append(True)
        if row["kind"] == "video":
            sizes.add(f"{frame.shape[1]} x {frame.shape[0]}")
        sums = pixel_sums(frame)
        everything += sums
        if row["split"] == "train":
            training += sums

    samples = index.filter(pa.array(readable, pa.bool_()))
    write_unit_tables(folder, samples, rejects)
    return {
        "training": training.tolist(),
        "everything": everything.tolist(),
        "sizes": sorted(sizes),
        # Rejects count as well: statistics compare what is there with what should be.
        "expected": count_texts(index),
    }


def check_ids(out: Path) -> None:
    """Raise InputError if two samples have the same id."""
    table = pq.read_table(out / "index.parquet", columns=["id", "shard"])
    # Threads would change the order of the shards.
    by_id = table.group_by("id", use_threads=False)
    shards = by_id.aggregate([("shard", "list"), ("shard", "count")])
    for row in shards.filter(pc.greater(shards["shard_count"], 1)).to_pylist():
        first, second, *_ = row["shard_list"]
        raise InputError(
            f"{second}: id {row['id']!r} is also in {first}; ids must be unique"
        )


def check_sizes(shards: Sequence[Location], records: Sequence[UnitRecord]) -> None:
    """Raise InputError if the videos have different frame sizes, which cannot be batched. Images may
    have any size: they are resized when they are read."""
    # The first shard of each size is enough to say which two differ.
    shard_by_size: dict[str, Location] = {}
    for shard, record in zip(shards, records, strict=True):
        for size in record["sizes"]:
            shard_by_size.setdefault(size, shard)

    if len(shard_by_size) > 1:
        (size, shard), (other_size, other_shard), *_ = shard_by_size.items()
        raise InputError(
            f"{other_shard}: video frames of {other_size}, but {size} in {shard}; a corpus needs "
            "one frame size: put the others in another corpus"
        )


def read_earlier(config: Config, folder: Location, out: Path) -> pa.Table:
    """Read the index.parquet beside the shards. No rows if there is none, or one of another program.

    Raises:
        InputError: If it cannot be read.
    """
    location = join(folder, "index.parquet")
    kinds = None if config.kinds == "all" else [("kind", "==", config.kinds)]
    try:
        with local_copy(location, folder=out / "parts") as path:
            if set(INDEX.names) <= set(pq.read_schema(path).names):
                return pq.read_table(path, columns=EARLIER_COLUMNS, filters=kinds)
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{location}: cannot be read: {one_line(error)}; remove it to index the shards without it"
        ) from error
    return INDEX.empty_table()


def reject_changed(earlier: pa.Table, folder: Location, out: Path) -> pa.Table:
    """Turn the samples that are lost or have changed since an earlier index into rejects.

    Returns:
        The earlier rows of those that are lost.
    """
    index = pq.read_table(out / "index.parquet")
    rejects = pq.read_table(out / "rejects.parquet")
    is_same = pc.is_in(join_checksums(earlier), join_checksums(index))
    is_rejected = pc.is_in(earlier["id"], rejects["id"])
    changed = earlier.filter(pc.invert(pc.or_(is_same, is_rejected)))

    rows = []
    for row in changed.select(["id", "shard"]).to_pylist():
        reject = Reject(
            id=row["id"],
            path=str(join(folder, row["shard"])),
            reason="unreadable",
            detail="lost or changed since index.parquet was written",
        )
        rows.append(reject.model_dump())
    if rows:
        samples = index.filter(pc.invert(pc.is_in(index["id"], changed["id"])))
        write_table(out / "index.parquet", [samples])
        more = pa.Table.from_pylist(rows, schema=REJECTS)
        write_table(out / "rejects.parquet", [rejects, more])
    return changed.filter(pc.invert(pc.is_in(changed["id"], index["id"])))


def join_checksums(rows: pa.Table) -> pa.ChunkedArray:
    """Return a string for each sample with its id and its checksums."""
    frames = rows["frame_crc32s"].cast(pa.list_(pa.string()))
    return pc.binary_join_element_wise(
        rows["id"],
        rows["json_crc32"].cast(pa.string()),
        pc.binary_join(frames, " "),
        " ",
    )


def count_expected(
    records: Sequence[UnitRecord], lost: pa.Table
) -> dict[str, Counter[str]]:
    """Return the numbers of items, captions and questions by split that the shards should have. No
    unit has the `lost` samples."""
    expected = {split: Counter(counts) for split, counts in count_texts(lost).items()}
    for record in records:
        for split, counts in record["expected"].items():
            expected[split].update(counts)
    return expected
