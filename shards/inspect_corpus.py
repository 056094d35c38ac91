"""Inspects decoded corpora: counts, lengths, captions, frames, and overlap of test and training data.

Most of it comes from the index, which is read in batches and reduced to numbers: some 50 bytes per sample and 10 per
caption. Duplicate videos under different names are detected by a perceptual hash of two frames (8 x 8 differences of
brightness). Copies with another size or quality mostly have the same hash; cropped, mirrored or edited copies do not.
Reading frames is slow, so `max_samples` limits the number of samples that are hashed.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from alpro.errors import InputError
from alpro.files import write_json
from alpro.progress import progress
from alpro.shards.pictures import sample_strips, sheet
from alpro.shards.reader import ShardReader, Unreadable, index_batches, read_index
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import KINDS, SPLITS
from alpro.shards.storage import MAX_CONCURRENT_REQUESTS, Location

INDEX_COLUMNS = ["split", "kind", "group", "captions", "questions", "duration", "frame_sizes"]
LISTS = {"frames": "frame_sizes", "captions": "captions", "questions": "questions"}  # columns that are counted
SHEET_SAMPLES = 24  # samples in the picture of a corpus
NOT_HASHED, UNREADABLE, BLANK = -1, -2, -3
MAX_HASHED_SAMPLES = 20_000  # samples whose frames are read


@dataclass
class Samples:
    """The samples as arrays (N,), and their captions as arrays (C,), in the same order. Texts are 64-bit hashes."""

    corpus: np.ndarray  # index of the corpus
    split: np.ndarray  # index in SPLITS
    kind: np.ndarray  # index in KINDS
    group: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray
    captions: np.ndarray  # number of captions
    questions: np.ndarray  # number of questions
    caption_hashes: np.ndarray  # (C,)
    words: np.ndarray  # (C,) number of words
    vocabulary: set[str]
    frame_hashes: np.ndarray  # perceptual hash, or one of NOT_HASHED, UNREADABLE, BLANK

    def __len__(self) -> int:
        return len(self.split)


def inspect(folders: Sequence[Location], max_samples: int = MAX_HASHED_SAMPLES) -> dict[str, Any]:
    """Summarises decoded corpora as one; the frames of `max_samples` samples, evenly spaced, are hashed.

    Raises InputError if a folder is not a decoded corpus, or if all are empty.
    """
    samples = read_samples(folders)
    hash_frames(samples, folders, max_samples)
    hashes, times = np.unique(samples.caption_hashes, return_counts=True)
    videos = samples.kind == KINDS.index("video")
    return {
        "corpora": [str(folder) for folder in folders],
        "splits": [row for s in SPLITS for kind in KINDS if (row := counts(samples, s, kind))],
        "lengths": {
            "seconds of a video": quantiles(samples.seconds[videos]),
            "stored frames of a video": quantiles(samples.frames[videos]),
            "captions of a sample": quantiles(samples.captions),
            "words of a caption": quantiles(samples.words),
        },
        "captions": {
            "all": len(samples.caption_hashes),
            "different": len(hashes),
            "different words": len(samples.vocabulary),
            "repeated": int((times > 1).sum()),
            "most repeated": most_repeated(folders, hashes, times),
        },
        "also in training": {split: shared(samples, split) for split in SPLITS[1:]},
        "compared": int((samples.frame_hashes != NOT_HASHED).sum()),
        "unreadable": int((samples.frame_hashes == UNREADABLE).sum()),
    }


def read_samples(folders: Sequence[Location], words: bool = True) -> Samples:
    """Reads the samples of all corpora. Counting `words` takes most of the time and is optional.

    Raises InputError if there are no samples.
    """
    columns: dict[str, list[np.ndarray]] = {}
    vocabulary: set[str] = set()
    for number, folder in enumerate(folders):
        for batch in index_batches(folder, INDEX_COLUMNS):
            captions = batch["captions"].flatten().to_pylist()
            tokens = [re.findall(r"\w+", caption.lower()) for caption in captions] if words else []
            vocabulary.update(word for words in tokens for word in words)
            arrays = {
                "corpus": np.full(len(batch), number, np.int16),
                "split": pc.index_in(batch["split"], pa.array(SPLITS)).to_numpy().astype(np.int8),
                "kind": pc.index_in(batch["kind"], pa.array(KINDS)).to_numpy().astype(np.int8),
                "group": hashed(batch["group"].to_pylist()),
                "seconds": batch["duration"].to_numpy().astype(np.float32),
                **{name: pc.list_value_length(batch[c]).to_numpy().astype(np.int32) for name, c in LISTS.items()},
                "caption_hashes": hashed(captions),
                "words": np.fromiter(map(len, tokens), np.int32, len(tokens)),
                "frame_hashes": np.full(len(batch), NOT_HASHED),
            }
            for name, values in arrays.items():
                columns.setdefault(name, []).append(values)
    if not columns:
        raise InputError(f"{', '.join(map(str, folders))}: no samples")
    return Samples(**{name: np.concatenate(values) for name, values in columns.items()}, vocabulary=vocabulary)


def hashed(texts: list[Any]) -> np.ndarray:
    """A 63-bit hash of each text (or bytes), stable within this process."""
    return np.fromiter((hash(text) & (2**63 - 1) for text in texts), np.int64, len(texts))


def counts(samples: Samples, split: str, kind: str) -> dict[str, Any]:
    """Samples, captions, questions and hours of a kind in a split; empty if there are no samples."""
    mask = (samples.split == SPLITS.index(split)) & (samples.kind == KINDS.index(kind))
    if not mask.any():
        return {}
    return {
        "split": split,
        "kind": kind,
        "samples": int(mask.sum()),
        "captions": int(samples.captions[mask].sum()),
        "questions": int(samples.questions[mask].sum()),
        "hours": float(samples.seconds[mask].sum(dtype=np.float64)) / 3600,
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Minimum, 5 %, median, 95 % and maximum; empty without values."""
    names = ("minimum", "5 %", "median", "95 %", "maximum")
    return dict(zip(names, np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist(), strict=True)) if len(values) else {}


def most_repeated(
    folders: Sequence[Location], hashes: np.ndarray, times: np.ndarray, limit: int = 10
) -> list[list[Any]]:
    """The most frequent captions of those that occur at least twice, with their counts."""
    best = [n for n in np.argsort(-times, kind="stable")[:limit] if times[n] > 1]
    counts = {int(hashes[n]): int(times[n]) for n in best}
    texts: dict[int, str] = {}
    for folder in folders:
        for batch in index_batches(folder, ["captions"]):
            if len(texts) == len(counts):
                break
            captions = batch["captions"].flatten().to_pylist()
            texts |= {h: text for h, text in zip(hashed(captions).tolist(), captions, strict=True) if h in counts}
    return [[texts[h], count] for h, count in sorted(counts.items(), key=lambda item: (-item[1], texts[item[0]]))]


def shared(samples: Samples, split: str) -> dict[str, int]:
    """The number of samples of a split that share a group, a caption or, if hashed, frames with a training sample."""
    training, mask = (samples.split == SPLITS.index(name) for name in ("train", split))
    return {
        "samples": int(mask.sum()),
        "same group": int(np.isin(samples.group[mask], samples.group[training]).sum()),
        "same caption": int(captions_in_training(samples)[mask].sum()),
        "compared": int((mask & (samples.frame_hashes >= 0)).sum()),
        "same frames": int(frames_in_training(samples)[mask].sum()),
    }


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


def overlap(folder: Path, max_samples: int) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """The validation and test items of a corpus that are also in its training split, and their counts by split.

    Captions must be equal; frames of at most `max_samples` samples are compared by `perceptual_hash`. The table has a
    row for each item: id, split, and whether `captions` and `frames` are equal to those of a training item.
    """
    named = read_index(folder, ["id", "split"])
    if not named.num_rows:
        empty = pa.array([], pa.bool_())
        return named.append_column("captions", empty).append_column("frames", empty), {}
    samples = read_samples([folder], words=False)
    hash_frames(samples, [folder], max_samples)
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


def hash_frames(samples: Samples, folders: Sequence[Location], max_samples: int) -> None:
    """Fills in frame hashes: validation and test samples first, up to half of `max_samples`, then training samples."""
    held_out = np.flatnonzero(samples.split != 0)
    training = np.flatnonzero(samples.split == 0)
    held_out_count = min(len(held_out), max(max_samples // 2, max_samples - len(training)))
    training_count = min(len(training), max_samples - held_out_count)
    chosen = np.concatenate(
        [
            held_out[segment_starts(len(held_out), held_out_count)],
            training[segment_starts(len(training), training_count)],
        ]
    )
    with (
        progress("hashing frames", len(chosen), "samples") as advance,
        ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads,
    ):
        for corpus, folder in enumerate(folders):
            numbers = np.sort(chosen[samples.corpus[chosen] == corpus])
            if not len(numbers):
                continue
            reader, first = ShardReader(folder), np.searchsorted(samples.corpus, corpus)
            hashes = threads.map(partial(hash_sample, reader), (numbers - first).tolist())
            for number, value in zip(numbers, hashes, strict=True):
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


def save(report: dict[str, Any], folders: Sequence[Location], out: Path) -> list[Path]:
    """Writes inspect.json, and frames-N.png for each corpus: evenly spaced samples with texts. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "inspect.json"]
    write_json(files[0], report)
    for number, folder in enumerate(folders, 1):
        if strips := sample_strips(ShardReader(folder), SHEET_SAMPLES):
            files.append(out / f"frames-{number}.png")
            sheet(strips, columns=2 if len(strips) > 1 else 1).save(files[-1])
    return files
