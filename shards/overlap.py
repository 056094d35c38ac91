"""Finds validation and test items that are also in the training split of a corpus.

Captions are read from the index in batches and reduced to hashes: some 50 bytes per sample and 10 per caption.
Duplicate videos under different names are detected by a perceptual hash of two frames (8 x 8 differences of
brightness). Copies with another size or quality mostly have the same hash; cropped, mirrored or edited copies do not.
Reading frames is slow, so `max_samples` limits the number of samples that are hashed.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from alpro.progress import progress
from alpro.shards.reader import ShardReader, Unreadable, index_batches, read_index
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import SPLITS
from alpro.shards.storage import MAX_CONCURRENT_REQUESTS

NOT_HASHED, UNREADABLE, BLANK = -1, -2, -3


@dataclass
class Samples:
    """The samples as arrays (N,), and their captions as an array (C,), in the same order. Texts are 64-bit hashes."""

    split: np.ndarray  # index in SPLITS
    captions: np.ndarray  # number of captions
    caption_hashes: np.ndarray  # (C,)
    frame_hashes: np.ndarray  # perceptual hash, or one of NOT_HASHED, UNREADABLE, BLANK

    @classmethod
    def of(cls, folder: Path) -> "Samples":
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("split", "captions", "caption_hashes")}
        for batch in index_batches(folder, ["split", "captions"]):
            columns["split"].append(pc.index_in(batch["split"], pa.array(SPLITS)).to_numpy().astype(np.int8))
            columns["captions"].append(pc.list_value_length(batch["captions"]).to_numpy().astype(np.int32))
            columns["caption_hashes"].append(hashed(batch["captions"].flatten().to_pylist()))
        arrays = {name: np.concatenate(values) for name, values in columns.items()}
        return cls(**arrays, frame_hashes=np.full(len(arrays["split"]), NOT_HASHED))

    def __len__(self) -> int:
        return len(self.split)


def overlap(folder: Path, max_samples: int) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """The validation and test items of a corpus that are also in its training split, and their counts by split.

    Captions must be equal; frames of at most `max_samples` samples are compared by `perceptual_hash`. The table has a
    row for each item: id, split, and whether `captions` and `frames` are equal to those of a training item.
    """
    named = read_index(folder, ["id", "split"])
    if not named.num_rows:
        empty = pa.array([], pa.bool_())
        return named.append_column("captions", empty).append_column("frames", empty), {}
    samples = Samples.of(folder)
    hash_frames(samples, ShardReader(folder), max_samples)
    captions, frames = captions_in_training(samples), frames_in_training(samples)
    counts = {}
    for split in SPLITS[1:]:
        mask = samples.split == SPLITS.index(split)
        counts[split] = {
            "items": int(mask.sum()),
            "captions": int(captions[mask].sum()),
            "compared": int((mask & (samples.frame_hashes >= 0)).sum()),
            "frames": int(frames[mask].sum()),
        }
    chosen = np.flatnonzero((captions | frames) & (samples.split != SPLITS.index("train")))
    table = named.take(pa.array(chosen, pa.int64())).append_column("captions", pa.array(captions[chosen]))
    return table.append_column("frames", pa.array(frames[chosen])), counts


def captions_in_training(samples: Samples) -> np.ndarray:
    """Which samples (N,) have exactly the same caption as a training sample."""
    sample_of = np.repeat(np.arange(len(samples)), samples.captions)  # of each caption
    in_training = samples.split[sample_of] == SPLITS.index("train")
    in_both = np.zeros(len(samples), bool)
    in_both[sample_of[np.isin(samples.caption_hashes, samples.caption_hashes[in_training])]] = True
    return in_both


def frames_in_training(samples: Samples) -> np.ndarray:
    """Which hashed samples (N,) have the same frame hash as a training sample."""
    valid = samples.frame_hashes >= 0
    training = samples.frame_hashes[valid & (samples.split == SPLITS.index("train"))]
    return valid & np.isin(samples.frame_hashes, training)


def hash_frames(samples: Samples, reader: ShardReader, max_samples: int) -> None:
    """Fills in frame hashes: validation and test samples first, up to half of `max_samples`, then training samples."""
    held_out, training = np.flatnonzero(samples.split != 0), np.flatnonzero(samples.split == 0)
    held_out_count = min(len(held_out), max(max_samples // 2, max_samples - len(training)))
    training_count = min(len(training), max_samples - held_out_count)
    places = (segment_starts(len(held_out), held_out_count), segment_starts(len(training), training_count))
    chosen = np.sort(np.concatenate([held_out[places[0]], training[places[1]]]))
    with (
        progress("hashing frames", len(chosen), "samples") as advance,
        ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads,
    ):
        for number, value in zip(chosen, threads.map(partial(hash_sample, reader), chosen.tolist()), strict=True):
            samples.frame_hashes[number] = value
            advance()


def hash_sample(reader: ShardReader, number: int) -> int:
    """The 63-bit frame hash of a sample; UNREADABLE or BLANK."""
    try:
        sample = reader[number]
        bits = perceptual_hash(sample.frames(segment_starts(len(sample), min(2, len(sample)))))
    except Unreadable:
        return UNREADABLE
    return BLANK if bits is None else int(hashed([bits])[0])


def perceptual_hash(frames: np.ndarray) -> bytes | None:
    """A difference hash of frames (T, H, W, 3) uint8: which of 8 x 8 pixels are brighter than their neighbours.

    None if no pixel is."""
    small = [np.asarray(Image.fromarray(frame).convert("L").resize((9, 8)), np.int16) for frame in frames]
    brighter = np.stack([np.diff(image, axis=1) > 2 for image in small])
    return np.packbits(brighter).tobytes() if brighter.any() else None


def hashed(texts: list[Any]) -> np.ndarray:
    """A 63-bit hash of each text (or bytes), stable within this process."""
    return np.fromiter((hash(text) & (2**63 - 1) for text in texts), np.int64, len(texts))
