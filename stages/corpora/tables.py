"""The tables of a corpus, its statistics, the overlap of its splits, and a picture."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from alpro.errors import InputError
from alpro.files import write_json
from alpro.shards.overlap import overlap
from alpro.shards.pictures import sample_strips, sheet
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS
from alpro.shards.storage import Location
from alpro.stages.execution.interface import NO_EFFECT, Outcome, Share, StageConfig

ROW_GROUP = 2048  # rows of a table that are written and read together
# Samples whose frames are compared between the splits, which takes a few seconds.
COMPARED = 4000
SHOWN_SAMPLES = 8  # evenly spaced samples that a picture shows
TEXTS = ("captions", "questions")
UnitRecord = Mapping[str, Any]  # values of unit.json
# Numbers of items, captions and questions by split.
SplitCounts = Mapping[str, Mapping[str, int]]


class CorpusConfig(StageConfig, frozen=True):
    """Keys of the stages that make a corpus."""

    kinds: Literal["all", "video", "image"] = "all"
    """which items of the data to take"""
    max_reject_share: Share = Field(default=0.2, json_schema_extra=NO_EFFECT)
    """maximum fraction of rejected items"""


def write_table(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema, at least one, to a Parquet file."""
    pq.write_table(pa.concat_tables(tables), path, row_group_size=ROW_GROUP)


def count_texts(rows: pa.Table) -> dict[str, dict[str, int]]:
    """Count the items, captions and questions of each split in rows of an index."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        selected = rows.filter(pc.equal(rows["split"], split))
        counts[split] = {"items": selected.num_rows}
        for name in TEXTS:
            counts[split][name] = len(pc.list_flatten(selected[name]))
    return counts


def write_statistics(
    out: Path,
    records: Sequence[UnitRecord],
    expected: SplitCounts,
    overlaps: SplitCounts,
) -> dict[str, int]:
    """Write statistics.json, and count the items, samples and rejects.

    The file has the mean and standard deviation of each channel, the hours of video, the rejects by
    reason, and for each split the numbers of items, captions and questions, each in the corpus and
    in the manifest.

    Args:
        out: The folder of the corpus, with index.parquet and rejects.parquet.
        records: The records of the units, with `pixel_sums` of the training samples and of all
            samples, which count if there are no training samples.
        expected: Numbers of items, captions and questions in the manifest, by split.
        overlaps: Numbers of items that splits share with training.

    Returns:
        The counts of the corpus.
    """
    columns = ["kind", "split", *TEXTS, "duration"]
    index = pq.read_table(out / "index.parquet", columns=columns)
    reasons = count_rejects(out)
    splits = count_texts(index)
    compared = {
        split: {name: [n, expected[split][name]] for name, n in counts.items()}
        for split, counts in splits.items()
    }

    training = add_pixel_sums(records, "training")
    pixels, sums, squares = (
        training if training.any() else add_pixel_sums(records, "everything")
    )
    pixels = np.maximum(pixels, 1)
    mean = sums / pixels
    # At least 0.001: frames are divided by it, and rounding may give a corpus of one color a negative
    # variance.
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-6))
    seconds = pc.sum(index["duration"]).as_py() or 0
    statistics = {
        "mean": mean.round(5).tolist(),
        "std": std.round(5).tolist(),
        "hours": round(seconds / 3600, 4),
        "splits": compared,
        "reasons": dict(reasons.most_common()),
        "overlap": overlaps,
    }
    write_json(out / "statistics.json", statistics)

    videos = pc.sum(pc.equal(index["kind"], "video")).as_py() or 0
    totals = {
        "items": index.num_rows + reasons.total(),
        "samples": index.num_rows,
        "rejected": reasons.total(),
        "videos": videos,
        "images": index.num_rows - videos,
    }
    totals |= {split: counts["items"] for split, counts in splits.items()}
    for name in TEXTS:
        totals[name] = sum(counts[name] for counts in splits.values())
    return totals


def add_pixel_sums(records: Sequence[UnitRecord], key: str) -> np.ndarray:
    """Add the pixel sums (3, 3) of units, in order: another order would round in another way."""
    return sum((np.array(record[key]) for record in records), np.zeros((3, 3)))


def count_rejects(out: Path) -> Counter[str]:
    """Count the rejects of a corpus by reason."""
    rejects = pq.read_table(out / "rejects.parquet", columns=["reason"])
    return Counter(rejects["reason"].to_pylist())


def complete(
    source: Location,
    out: Path,
    records: Sequence[UnitRecord],
    expected: SplitCounts,
    items: int,
    max_reject_share: float,
    compared: int = COMPARED,
) -> Outcome:
    """Write the statistics, the overlap and the picture of a corpus, and return its counts.

    Args:
        source: Where the corpus comes from, for a message.
        out: The folder of the corpus.
        records: As of `write_statistics`.
        expected: As of `write_statistics`.
        items: Number of items in the source.
        max_reject_share: Maximum fraction of rejected items.
        compared: Maximum number of samples whose frames are compared between the splits.

    Raises:
        InputError: If too many items are rejected.
    """
    table, overlaps = overlap(out, compared)
    pq.write_table(table, out / "overlap.parquet")
    totals = write_statistics(out, records, expected, overlaps)
    # No item is left out in silence: each one is a sample or a reject.
    assert totals["items"] == items
    strips = sample_strips(ShardReader(out), SHOWN_SAMPLES)
    if strips:
        (out / "pictures").mkdir(exist_ok=True)
        picture = sheet(strips, columns=2)
        # A third of the time of the default level, a quarter more bytes.
        picture.save(out / "pictures" / "samples.png", compress_level=1)

    # Checked last, so that the tables and the picture are there to find out why.
    if totals["rejected"] > max_reject_share * items:
        reasons = count_rejects(out).most_common()
        by_reason = ", ".join(f"{count} {reason}" for reason, count in reasons)
        raise InputError(
            f"{source}: {totals['rejected']} of {items} items are rejected, more than "
            f"corpora.NAME.max_reject_share = {max_reject_share:g} allows ({by_reason}); see "
            f"{out / 'rejects.parquet'}"
        )
    return Outcome(totals, warnings=describe_overlaps(overlaps))


def pixel_sums(frames: np.ndarray) -> np.ndarray:
    """Compute the number, sum and sum of squares of the pixels of each channel.

    Shape:
        frames: (..., 3) uint8.
        returns: (3, 3), a column for each channel.
    """
    # Histograms need no copy of the frames as floating-point numbers.
    channels = np.moveaxis(frames, -1, 0)
    histograms = np.stack(
        [np.bincount(channel.ravel(), minlength=256) for channel in channels]
    )
    values = np.arange(256) / 255
    return np.stack([histograms @ values**power for power in range(3)])


def describe_overlaps(overlaps: SplitCounts) -> list[str]:
    """Return a warning for each split with items that share a caption or equal-looking frames with
    a training item."""
    return [
        f"{split}: {counts['captions']} of {counts['items']} items share a caption with a training "
        f"item, and {counts['frames']} of {counts['compared']} look like one (overlap.parquet)"
        for split, counts in overlaps.items()
        if counts["captions"] or counts["frames"]
    ]
