"""What is in decoded corpora: counts, lengths, captions, frames, and which test videos are in training too.

The index tells most of it. Videos that are there twice under other names are found by two of their frames, shrunk to
8 x 8 differences of brightness: copies of a file, or of another size or quality, mostly have the same; cut, mirrored or
edited ones do not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.reader import ShardReader, Unreadable, read_index
from shards.sampling import segment_starts
from shards.schema import SPLITS, InputError
from stages.artifacts import write_json
from stages.decode_videos import sample_strip
from stages.pictures import sheet
from stages.progress import progress

COLUMNS = ["id", "split", "kind", "group", "captions", "questions", "duration", "frame_sizes"]
SHEET = 24  # samples on the picture

Row = dict[str, Any]


def inspect(folders: Sequence[Path]) -> dict[str, Any]:
    """What is in some decoded corpora, taken together. Raises InputError where one is none, or all are empty."""
    rows: list[Row] = []
    for folder in folders:
        read = read_index(folder, COLUMNS).to_pylist()
        rows += [row | {"frames": frames} for row, frames in zip(read, looks(folder), strict=True)]
    if not rows:
        raise InputError(f"{', '.join(map(str, folders))}: no samples")
    videos = [row for row in rows if row["kind"] == "video"]
    captions = [caption for row in rows for caption in row["captions"]]
    words = [re.findall(r"\w+", caption.lower()) for caption in captions]
    return {
        "corpora": [str(folder) for folder in folders],
        "splits": [found for s in SPLITS for kind in ("video", "image") if (found := counts(rows, s, kind))],
        "lengths": {
            "seconds of a video": quantiles(row["duration"] for row in videos),
            "stored frames of a video": quantiles(len(row["frame_sizes"]) for row in videos),
            "captions of a sample": quantiles(len(row["captions"]) for row in rows),
            "words of a caption": quantiles(map(len, words)),
        },
        "captions": {
            "all": len(captions),
            "different": len(set(captions)),
            "different words": len({word for said in words for word in said}),
            "most repeated": [[text, times] for text, times in Counter(captions).most_common(10) if times > 1],
        },
        "also in training": {split: shared(rows, split) for split in SPLITS[1:]},
        "unreadable": sum(row["frames"] is None for row in rows),
    }


def counts(rows: list[Row], split: str, kind: str) -> Row:
    """Samples, captions, questions and hours of one kind in one split; empty where there is none."""
    mine = [row for row in rows if (row["split"], row["kind"]) == (split, kind)]
    if not mine:
        return {}
    said = {name: sum(len(row[name]) for row in mine) for name in ("captions", "questions")}
    return {
        "split": split,
        "kind": kind,
        "samples": len(mine),
        **said,
        "hours": sum(r["duration"] for r in mine) / 3600,
    }


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Least, 5 %, median, 95 % and most; empty of nothing."""
    found = list(values)
    names = ("least", "5 %", "median", "95 %", "most")
    return dict(zip(names, np.quantile(found, [0, 0.05, 0.5, 0.95, 1]).tolist(), strict=True)) if found else {}


def shared(rows: list[Row], split: str) -> dict[str, int]:
    """How many samples of a split are in training too: by their group, a caption, or how they look."""
    training, mine = ([row for row in rows if row["split"] == name] for name in ("train", split))
    groups, looked = {row["group"] for row in training}, {row["frames"] for row in training} - {None}
    told = {caption for row in training for caption in row["captions"]}
    return {
        "samples": len(mine),
        "same group": sum(row["group"] in groups for row in mine),
        "a caption in common": sum(not told.isdisjoint(row["captions"]) for row in mine),
        "same frames": sum(row["frames"] in looked for row in mine),
    }


def looks(folder: Path) -> list[bytes | None]:
    """How every sample of a corpus looks, to be compared; None where a frame is unreadable, or has nothing on it."""
    reader = ShardReader(folder)
    found: list[bytes | None] = []
    with progress(f"looking at {folder.name}", len(reader), "samples") as advance:
        for number in range(len(reader)):
            try:
                sample = reader[number]
                frames = sample.frames(segment_starts(len(sample), min(2, len(sample))))
                found.append(look(frames))
            except Unreadable:
                found.append(None)
            advance()
    return found


def look(frames: np.ndarray) -> bytes | None:
    """Frames (T, H, W, 3) uint8 as which of 8 x 8 places are brighter than their neighbours; None where none is."""
    small = [np.asarray(Image.fromarray(frame).convert("L").resize((9, 8)), np.int16) for frame in frames]
    brighter = np.stack([np.diff(one, axis=1) > 2 for one in small])
    return np.packbits(brighter).tobytes() if brighter.any() else None


def save(found: dict[str, Any], folders: Sequence[Path], out: Path) -> None:
    """inspect.json, and frames.png: samples evenly over the corpora with what was said of them."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "inspect.json", found)
    strips = []
    for folder in folders:
        reader = ShardReader(folder)
        for number in segment_starts(len(reader), min(SHEET // len(folders) or 1, len(reader))):
            strips.append(sample_strip(reader[number]))
    sheet(strips, columns=2 if len(strips) > 1 else 1).save(out / "frames.png")
