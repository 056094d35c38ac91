"""Finds validation and test items that are also in the training split of a corpus.

Captions must be equal. Duplicate videos under different names are detected by a perceptual hash of
two frames (8 x 8 differences of brightness). Copies with another size or quality mostly have the
same hash; cropped, mirrored or edited copies do not. Reading frames is slow, so `max_samples`
limits the number of samples that are hashed.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from alpro.shards.reader import ShardReader, Unreadable, read_index
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import SPLITS, SplitCounts
from alpro.shards.storage import MAX_CONCURRENT_REQUESTS
from alpro.threads import map_ahead


def overlap(folder: Path, max_samples: int) -> tuple[pa.Table, SplitCounts]:
    """Find the validation and test items of a corpus that are also in its training split.

    The frames of at most `max_samples` samples are compared by `perceptual_hash`.

    Returns:
        A row for each such item: id, split, and whether `captions` and `frames` are equal to those
        of a training item; and counts by split.
    """
    index = read_index(folder, ["id", "split", "captions"]).combine_chunks()
    splits = np.array(index["split"].to_pylist(), object)
    in_training = splits == "train"
    captions = captions_in_training(index["captions"], in_training)

    chosen = choose(in_training, max_samples)
    hash_one = partial(hash_sample, ShardReader(folder))
    values = map_ahead(hash_one, chosen, MAX_CONCURRENT_REQUESTS)
    hashes = dict(zip(chosen, values, strict=True))
    # Blank frames have no hash: else all black clips would be copies.
    training_hashes = {value for i, value in hashes.items() if value and in_training[i]}
    frames = np.zeros(len(splits), bool)
    compared = np.zeros(len(splits), bool)
    for i, value in hashes.items():
        frames[i] = value in training_hashes
        compared[i] = bool(value)

    counts = {}
    for split in SPLITS[1:]:
        in_split = splits == split
        counts[split] = {
            "items": int(in_split.sum()),
            "captions": int(captions[in_split].sum()),
            "compared": int(compared[in_split].sum()),
            "frames": int(frames[in_split].sum()),
        }

    columns = {"id": index["id"], "split": index["split"]}
    table = pa.table(columns | {"captions": captions, "frames": frames})
    is_copy = (captions | frames) & ~in_training
    return table.filter(pa.array(is_copy)), counts


def captions_in_training(
    captions: pa.ChunkedArray, in_training: np.ndarray
) -> np.ndarray:
    """Return which samples (N,) have exactly the same caption as a training sample."""
    sample_index = pc.list_parent_indices(captions).to_numpy()  # sample of each caption
    texts = pc.list_flatten(captions)

    training_texts = texts.filter(pa.array(in_training[sample_index]))
    equal = pc.is_in(texts, training_texts)
    in_both = np.zeros(len(captions), bool)
    in_both[sample_index[equal.to_numpy()]] = True
    return in_both


def choose(in_training: np.ndarray, max_samples: int) -> list[int]:
    """Return evenly spaced samples, at most `max_samples`: of validation and test up to half of them,
    and of training."""
    chosen: list[int] = []
    # If there are few training samples, the others are compared in their place.
    limit = max(max_samples // 2, max_samples - int(in_training.sum()))
    for samples in (np.flatnonzero(~in_training), np.flatnonzero(in_training)):
        count = min(len(samples), limit)
        chosen += samples[segment_starts(len(samples), count)].tolist()
        limit = max_samples - count
    # In the order of the index, shards are read from front to back.
    return sorted(chosen)


def hash_sample(reader: ShardReader, sample_index: int) -> bytes | None:
    """Return the hash of a sample; None if it is corrupt or blank."""
    try:
        sample = reader[sample_index]
        frame_indices = segment_starts(len(sample), min(2, len(sample)))
        return perceptual_hash(sample.frames(frame_indices))
    except Unreadable:
        return None


def perceptual_hash(frames: np.ndarray) -> bytes | None:
    """Return a difference hash of frames (T, H, W, 3) uint8: which of 8 x 8 pixels are brighter than
    their neighbours; None if no pixel is."""
    brighter = []
    for frame in frames:
        grey = Image.fromarray(frame).convert("L")
        # Nine columns have eight differences.
        small = np.asarray(grey.resize((9, 8)), np.int16)
        differences = np.diff(small, axis=1)
        brighter.append(differences > 2)  # by more than the noise of JPEG
    bits = np.stack(brighter)
    return np.packbits(bits).tobytes() if bits.any() else None
