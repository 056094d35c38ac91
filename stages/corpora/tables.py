"""Writes the tables of a corpus from their parts, its statistics, the overlap of its splits, and a picture."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.files import atomic_write, read_json, write_json
from alpro.log import log
from alpro.shards.overlap import overlap
from alpro.shards.pictures import sample_strips, sheet
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS

ROW_GROUP = 2048  # rows of a table that are buffered before they are written
COMPARED = 4000  # samples whose frames are compared between the splits; takes a few seconds


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


class CorpusCounts:
    """Counts the samples and rejects of a corpus while its tables are written."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.splits: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.reasons: Counter[str] = Counter()
        self.seconds = 0.0

    def samples(self, index: pa.Table) -> pa.Table:
        self.kinds.update(index["kind"].to_pylist())
        self.seconds += sum(index["duration"].to_pylist())
        for split, counts in self.splits.items():
            rows = index.filter(pc.equal(index["split"], split))
            counts["items"] += rows.num_rows
            for name in ("captions", "questions"):
                counts[name] += pc.sum(pc.list_value_length(rows[name])).as_py() or 0
        return index

    def rejects(self, rejected: pa.Table) -> pa.Table:
        self.reasons.update(rejected["reason"].to_pylist())
        return rejected

    def all(self) -> dict[str, int]:
        samples, rejected = self.kinds.total(), self.reasons.total()
        return {
            "items": samples + rejected,
            "samples": samples,
            "rejected": rejected,
            "videos": self.kinds["video"],
            "images": self.kinds["image"],
            **{split: counts["items"] for split, counts in self.splits.items()},
            **{name: sum(counts[name] for counts in self.splits.values()) for name in ("captions", "questions")},
        }

    def statistics(self, expected: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """Hours of video, rejects by reason, and for each split the items, captions and questions: their number in the
        corpus and in the manifest (`expected`, by split)."""
        return {
            "hours": round(self.seconds / 3600, 4),
            "splits": {
                split: {name: [counts[name], expected[split][name]] for name in expected[split]}
                for split, counts in self.splits.items()
            },
            "reasons": dict(self.reasons.most_common()),
        }


def pixel_statistics(sums: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel from the sums of `pixel_sums`."""
    pixels = np.maximum(sums[0], 1)
    mean = sums[1] / pixels
    return {
        "mean": mean.round(5).tolist(),
        "std": np.sqrt(np.maximum(sums[2] / pixels - mean**2, 1e-6)).round(5).tolist(),
    }


def pixel_sums(frames: np.ndarray) -> np.ndarray:
    """Count, sum and sum of squares of the pixels of frames (..., 3) uint8, for each channel: (3, 3)."""
    pixels = frames.reshape(-1, 3).astype(np.float64) / 255
    return np.stack([np.full(3, float(len(pixels))), pixels.sum(0), (pixels**2).sum(0)])


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
