"""Writes the tables of a corpus, its statistics, the overlap of its splits, and a picture."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.files import atomic_write, read_json, write_json
from alpro.log import log
from alpro.shards.overlap import overlap
from alpro.shards.pictures import sample_strips, sheet
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS
from alpro.shards.storage import Location
from alpro.stages.execution.interface import Outcome

ROW_GROUP = 2048  # rows of a table that are buffered before they are written
COMPARED = 4000  # samples whose frames are compared between the splits; takes a few seconds
TEXTS = ("captions", "questions")


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Concatenates many small tables in a file, with a small buffer."""
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        buffer: list[pa.Table] = [schema.empty_table()]
        for table in tables:
            buffer.append(table)
            if sum(rows.num_rows for rows in buffer) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(buffer).combine_chunks(), ROW_GROUP)
                buffer = [schema.empty_table()]
        writer.write_table(pa.concat_tables(buffer).combine_chunks(), ROW_GROUP)


def write_statistics(
    out: Path,
    training: np.ndarray,
    everything: np.ndarray,
    expected: Mapping[str, Mapping[str, int]],
) -> dict[str, int]:
    """Writes statistics.json, and returns the numbers of items, samples and rejects, by index.parquet and
    rejects.parquet.

    The file has the mean and standard deviation of each channel, from the pixel sums (3, 3) of the training samples, or
    of all samples if there are no training samples; hours of video, rejects by reason, and for each split the items,
    captions and questions: their number in the corpus and in the manifest (`expected`, by split).
    """
    index = pq.read_table(out / "index.parquet", columns=["kind", "split", *TEXTS, "duration"])
    reasons = reasons_of(out)
    splits: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        rows = index.filter(pc.equal(index["split"], split))
        texts = {name: pc.sum(pc.list_value_length(rows[name])).as_py() or 0 for name in TEXTS}
        splits[split] = {"items": rows.num_rows} | texts
    sums = training if training.any() else everything
    pixels = np.maximum(sums[0], 1)
    mean = sums[1] / pixels
    std = np.sqrt(np.maximum(sums[2] / pixels - mean**2, 1e-6))
    statistics = {
        "mean": mean.round(5).tolist(),
        "std": std.round(5).tolist(),
        "hours": round((pc.sum(index["duration"]).as_py() or 0) / 3600, 4),
        "splits": {
            split: {name: [n, expected[split][name]] for name, n in splits[split].items()}
            for split in splits
        },
        "reasons": dict(reasons.most_common()),
    }
    write_json(out / "statistics.json", statistics)
    videos = pc.sum(pc.equal(index["kind"], "video")).as_py() or 0
    return {
        "items": index.num_rows + reasons.total(),
        "samples": index.num_rows,
        "rejected": reasons.total(),
        "videos": videos,
        "images": index.num_rows - videos,
        **{split: counts["items"] for split, counts in splits.items()},
        **{name: sum(counts[name] for counts in splits.values()) for name in TEXTS},
    }


def reasons_of(out: Path) -> Counter[str]:
    return Counter(pq.read_table(out / "rejects.parquet", columns=["reason"])["reason"].to_pylist())


def complete(
    outcome: Outcome, source: Location, out: Path, max_reject_share: float, compared: int = COMPARED
) -> None:
    """Writes what a corpus has beside its shards and index, and adds counts and warnings to the outcome.

    compared: the most samples whose frames are compared between the splits. Raises InputError if too many items are
    rejected.
    """
    counts, outcome.warnings = write_overlap(out, compared)
    outcome.counts |= counts
    draw_samples(out)
    check_rejects(source, out, max_reject_share, outcome.counts["items"])


def check_rejects(source: Location, out: Path, max_reject_share: float, items: int) -> None:
    """Raises InputError if the share of rejected items is above the limit. Rejects below it are logged."""
    reasons, place = reasons_of(out), out / "rejects.parquet"
    shown = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    if reasons.total() > max_reject_share * items:
        raise InputError(
            f"{source}: {reasons.total()} of {items} items are rejected, more than max_reject_share = "
            f"{max_reject_share:g} allows ({shown}); see {place}"
        )
    if reasons:
        log.info(f"{reasons.total()} of {items} items are rejected ({shown}): {place}")


def pixel_sums(frames: np.ndarray) -> np.ndarray:
    """Count, sum and sum of squares of the pixels of frames (..., 3) uint8, for each channel: (3, 3)."""
    counts = np.stack(
        [np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)]
    )
    return np.stack([counts @ (np.arange(256) / 255) ** power for power in range(3)])


def write_overlap(out: Path, max_samples: int) -> tuple[dict[str, int], list[str]]:
    """Writes overlap.parquet, the validation and test items that share a caption or equal-looking frames with a
    training item, and adds their counts to statistics.json.

    The frames of at most `max_samples` samples are compared. Returns the counts above 0, and a warning for each split
    that has any.
    """
    table, overlaps = overlap(out, max_samples)
    pq.write_table(table, out / "overlap.parquet")
    write_json(out / "statistics.json", read_json(out / "statistics.json") | {"overlap": overlaps})
    counts: dict[str, int] = {}
    warnings = []
    for split, numbers in overlaps.items():
        shared = {name: count for name in ("captions", "frames") if (count := numbers[name])}
        counts |= {f"{split}_{name}_in_training": count for name, count in shared.items()}
        if shared:
            warnings.append(
                f"{split}: {numbers['captions']} of {numbers['items']} items share a caption with a training item, and "
                f"{numbers['frames']} of {numbers['compared']} look like one (overlap.parquet)"
            )
            log.warning(warnings[-1])
    return counts, warnings


def draw_samples(out: Path, count: int = 8) -> None:
    """Writes pictures/samples.png: evenly spaced samples of the corpus with their texts."""
    if rows := sample_strips(ShardReader(out), count):
        (out / "pictures").mkdir(exist_ok=True)
        sheet(rows, columns=2 if len(rows) > 1 else 1).save(out / "pictures" / "samples.png")
