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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from alpro.credentials import refuse_credentials
from alpro.errors import InputError, one_line
from alpro.files import digest
from alpro.log import progress
from alpro.shards.reader import Unreadable, sample_from_row
from alpro.shards.schema import INDEX, REJECTS, SPLITS, Reject
from alpro.shards.sources.downloads import compressed_tars
from alpro.shards.storage import (
    DISK_FULL,
    Location,
    identities,
    join,
    listing,
    local_copy,
)
from alpro.shards.writer import index_shard
from alpro.stages.corpora.tables import (
    COMPARED,
    complete,
    count_texts,
    pixel_sums,
    write_statistics,
)
from alpro.stages.corpora.units import (
    Unit,
    Units,
    finish_units,
    merge_units,
    open_units,
)
from alpro.stages.execution.interface import (
    NO_EFFECT,
    Outcome,
    Resources,
    StageConfig,
    StageInputs,
)

VERSION = 4


class Config(StageConfig, frozen=True):
    """Selection of the samples of the shards."""

    kinds: Literal["all", "video", "image"] = Field(
        default="all", description="which samples of the shards to index"
    )
    max_reject_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="maximum fraction of rejected samples",
        json_schema_extra=NO_EFFECT,
    )


class EarlierIndex(NamedTuple):
    """The index.parquet beside the shards: where it is, and a local copy."""

    location: Location
    path: Path


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
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder of shards") from error
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
    with (
        open_earlier_index(inputs.shards, out / "parts") as earlier,
        progress("indexing", len(shards), "shards") as advance,
    ):
        work = partial(index_unit, config=config, store=store, earlier=earlier)
        for _, unit in finish_units(shards, work, out, resources):
            units[unit.name] = unit
            advance()

    records = merge_units([units[str(shard)] for shard in shards], store, out)
    # Across shards: a worker sees its own alone.
    check_ids(out)
    check_sizes(shards, records)
    outcome = write_outcome(records, out)

    # At a URL, the frames of each sample take a request.
    is_local = all(isinstance(shard, Path) for shard in shards)
    compared = COMPARED if is_local else 0
    complete(outcome, inputs.shards, out, config.max_reject_share, compared)
    return outcome


@contextmanager
def open_earlier_index(
    folder: Location, temporary: Path
) -> Iterator[EarlierIndex | None]:
    """Yield the index.parquet beside the shards, copied once if it is at a URL. None if there is
    none, or one of another format.

    Raises:
        InputError: If it cannot be read.
    """
    location = join(folder, "index.parquet")
    with ExitStack() as stack:
        earlier = None
        try:
            path = stack.enter_context(local_copy(location, folder=temporary))
            if set(INDEX.names) <= set(pq.read_schema(path).names):
                earlier = EarlierIndex(location, path)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowException) as error:
            raise unreadable_index(location, error) from error
        yield earlier


def index_unit(
    shard: Location, config: Config, store: Units, earlier: EarlierIndex | None
) -> Unit:
    """Find the unit of a shard, or index the shard."""
    rows = INDEX.empty_table()
    if earlier:
        rows = read_earlier_rows(shard, earlier)

    def get_key() -> str:
        (file,) = identities([shard])
        values = [VERSION, config.kinds, str(shard), file, rows.to_pylist()]
        return digest(values)

    return store.find_or_make(
        str(shard), get_key, partial(write_unit, shard, config, rows)
    )


def read_earlier_rows(shard: Location, earlier: EarlierIndex) -> pa.Table:
    """Return the rows of a shard in the earlier index."""
    name = PurePosixPath(str(shard)).name
    try:
        return pq.read_table(
            earlier.path, filters=[("shard", "==", name)], schema=INDEX
        )
    except (OSError, pa.ArrowException) as error:
        raise unreadable_index(earlier.location, error) from error


def unreadable_index(location: Location, error: Exception) -> InputError:
    return InputError(
        f"{location}: cannot be read: {one_line(error)}; remove it to index the shards without it"
    )


def write_unit(
    shard: Location, config: Config, earlier: pa.Table, folder: Path
) -> dict[str, Any]:
    """Index one shard, decode a frame of each sample, and write the tables of the unit. Return its
    record."""
    try:
        with local_copy(shard, folder=folder) as path:
            try:
                index = index_shard(path)
            except InputError as error:  # names the temporary copy
                raise InputError(
                    str(error).replace(str(path), str(shard), 1)
                ) from error

            # Removed from both: a sample of the other kind is not lost.
            if config.kinds != "all":
                index = index.filter(pc.equal(index["kind"], config.kinds))
                earlier = earlier.filter(pc.equal(earlier["kind"], config.kinds))
            checked = check_frames(index, earlier, path, shard)
    except OSError as error:
        # The shard is not to blame.
        if error.errno in DISK_FULL:
            raise
        raise InputError(
            f"{shard}: not a readable shard: {error.strerror or error}"
        ) from error

    # The index names the shard where it is, and not the copy that was read.
    names = pa.array([str(shard)] * checked.samples.num_rows, pa.string())
    column = checked.samples.column_names.index("shard")
    samples = checked.samples.set_column(column, "shard", names)
    rejects = pa.Table.from_pylist(checked.rejects, schema=REJECTS)
    pq.write_table(samples, folder / "index.parquet")
    pq.write_table(rejects, folder / "rejects.parquet")
    return checked.record


class CheckedSamples(NamedTuple):
    """The checked samples of a shard.

    samples: rows of the samples whose middle frame can be read. rejects: rows of the others.
    record: the record of the unit, with the pixel sums (3, 3) of the training frames and of all
    frames, the frame sizes of the videos, and for each split the numbers of items, captions and
    questions in the shard, including corrupt samples.
    """

    samples: pa.Table
    rejects: list[dict[str, str]]
    record: dict[str, Any]


def check_frames(
    index: pa.Table, earlier: pa.Table, path: Path, shard: Location
) -> CheckedSamples:
    """Decode the middle frame of each sample of a shard.

    Args:
        index: The rows of the shard as it is now.
        earlier: Its rows in the index beside it. A sample that the shard no longer has, or has with
            other checksums, is a reject.
        path: The local copy of the shard.
    """
    current = {row["key"]: row for row in index.to_pylist()}
    # Same order as in the earlier index: as in the shard, then the lost ones.
    rows = {**current, **{row["key"]: row for row in earlier.to_pylist()}}

    readable: list[str] = []
    rejects: list[dict[str, str]] = []
    training = np.zeros((3, 3))
    everything = np.zeros((3, 3))
    sizes: set[str] = set()
    for key, row in rows.items():
        try:
            frame = middle_frame(row, current.get(key), path)
        except Unreadable as error:
            # The reject has the id in a column of its own.
            detail = str(error).rpartition(f"{row['id']}, ")[2]
            reject = Reject(
                id=row["id"], path=str(shard), reason="unreadable", detail=detail
            )
            rejects.append(reject.model_dump())
            continue

        readable.append(key)
        if row["kind"] == "video":
            sizes.add(f"{frame.shape[1]} x {frame.shape[0]}")
        sums = pixel_sums(frame)
        everything += sums
        if row["split"] == "train":
            training += sums

    record = {
        "training": training.tolist(),
        "everything": everything.tolist(),
        "sizes": sorted(sizes),
        # Rejects count as well: statistics compare what is there with what should be.
        "expected": count_texts(pa.Table.from_pylist([*rows.values()], schema=INDEX)),
    }
    samples = index.filter(pc.is_in(index["key"], pa.array(readable, pa.string())))
    return CheckedSamples(samples, rejects, record)


def middle_frame(
    row: dict[str, Any], current: dict[str, Any] | None, path: Path
) -> np.ndarray:
    """Decode the middle frame (H, W, 3) uint8 of a sample in the shard `path`.

    Args:
        row: The row in the earlier index, if there is one.
        current: The row of the shard as it is now. None if the sample is lost.

    Raises:
        Unreadable: If the sample is lost, has changed or cannot be decoded.
    """
    if current is None:
        raise Unreadable(f"{row['id']}, lost since index.parquet was written")
    if any(current[name] != row[name] for name in ("json_crc32", "frame_crc32s")):
        raise Unreadable(f"{row['id']}, changed since index.parquet was written")

    # One frame stands for all: decoding each would take as many times as long.
    sample = sample_from_row(current, path)
    (frame,) = sample.frames([len(sample) // 2])
    return frame


def check_ids(out: Path) -> None:
    """Raise InputError if two samples have the same id."""
    ids = pq.read_table(out / "index.parquet", columns=["id"])["id"]
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        sample_id = repeated[0].as_py()
        filters = [("id", "==", sample_id)]
        rows = pq.read_table(out / "index.parquet", columns=["shard"], filters=filters)
        first, second, *_ = rows["shard"].to_pylist()
        raise InputError(
            f"{second}: id {sample_id!r} is also in {first}; ids must be unique"
        )


def check_sizes(
    shards: Sequence[Location], records: Sequence[Mapping[str, Any]]
) -> None:
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


def write_outcome(records: Sequence[Mapping[str, Any]], out: Path) -> Outcome:
    """Write the statistics of the corpus, and return its counts."""
    expected = {split: Counter[str]() for split in SPLITS}
    for record in records:
        for split, counts in record["expected"].items():
            expected[split].update(counts)

    totals = write_statistics(out, records, expected)
    # No sample is left out in silence: each one is in the index or in the rejects.
    assert totals["items"] == sum(counts["items"] for counts in expected.values())
    return Outcome(totals | {"shards": len(records)})
