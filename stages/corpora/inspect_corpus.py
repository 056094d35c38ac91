"""What is in decoded corpora: counts, lengths, captions, frames, and which test videos are in training too.

The index tells most of it. It is read a batch at a time, and what is kept are numbers: some 50 bytes a sample and 10 a
caption, so that a million samples fit anywhere. Videos that are there twice under other names are found by two of their
frames, shrunk to 8 x 8 differences of brightness: copies of a file, or of another size or quality, mostly have the
same; cut, mirrored or edited ones do not. Frames are the slow part, and `most` says of how many samples they are read.
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
from alpro.shards.reader import ShardReader, Unreadable, index_batches, read_index
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import SPLITS
from alpro.shards.storage import AT_ONCE, Location
from alpro.stages.corpora.pictures import sample_strips, sheet
from alpro.stages.execution.progress import progress

COLUMNS = ["split", "kind", "group", "captions", "questions", "duration", "frame_sizes"]
SHEET = 24  # samples on the picture of a corpus
KINDS = ("video", "image")
NOT_LOOKED_AT, UNREADABLE, BLANK = -1, -2, -3
LOOKS = 20_000  # samples whose frames are read


@dataclass
class Samples:
    """What is kept of the samples, in arrays (N,), and of their captions, in arrays (C,), in the same order. Texts are
    kept as 64-bit hashes."""

    corpus: np.ndarray  # place in the corpora, in order
    split: np.ndarray  # place in SPLITS
    kind: np.ndarray  # place in KINDS
    group: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray
    captions: np.ndarray  # how many
    questions: np.ndarray  # how many
    said: np.ndarray  # (C,) each caption
    words: np.ndarray  # (C,) how many words each has
    vocabulary: set[str]
    looks: np.ndarray  # how the frames look, or one of NOT_LOOKED_AT, UNREADABLE, BLANK

    def __len__(self) -> int:
        return len(self.split)


def inspect(folders: Sequence[Location], most: int = LOOKS) -> dict[str, Any]:
    """What is in some decoded corpora, taken together; the frames of `most` samples, evenly over them, are looked at.

    Raises InputError where one is no decoded corpus, or all are empty.
    """
    samples = read_samples(folders)
    look_at(samples, folders, most)
    hashes, times = np.unique(samples.said, return_counts=True)
    videos = samples.kind == KINDS.index("video")
    return {
        "corpora": [str(folder) for folder in folders],
        "splits": [found for s in SPLITS for kind in KINDS if (found := counts(samples, s, kind))],
        "lengths": {
            "seconds of a video": quantiles(samples.seconds[videos]),
            "stored frames of a video": quantiles(samples.frames[videos]),
            "captions of a sample": quantiles(samples.captions),
            "words of a caption": quantiles(samples.words),
        },
        "histograms": {
            "seconds of a video": histogram(samples.seconds[videos]),
            "captions of a sample": histogram(samples.captions),
            "words of a caption": histogram(samples.words),
        },
        "captions": {
            "all": len(samples.said),
            "different": len(hashes),
            "different words": len(samples.vocabulary),
            "said of more than one sample": int((times > 1).sum()),
            "most repeated": most_repeated(folders, hashes, times),
        },
        "also in training": {split: shared(samples, split) for split in SPLITS[1:]},
        "looked at": int((samples.looks != NOT_LOOKED_AT).sum()),
        "unreadable": int((samples.looks == UNREADABLE).sum()),
    }


def read_samples(folders: Sequence[Location], words: bool = True) -> Samples:
    """The samples of corpora, one after the other; `words` take most of the time and may be left out.

    Raises InputError if there are none.
    """
    columns: dict[str, list[np.ndarray]] = {}
    vocabulary: set[str] = set()
    for number, folder in enumerate(folders):
        for batch in index_batches(folder, COLUMNS):
            captions = batch["captions"].flatten().to_pylist()
            said = [re.findall(r"\w+", caption.lower()) for caption in captions] if words else []
            vocabulary.update(word for words in said for word in words)
            found = {
                "corpus": np.full(len(batch), number, np.int16),
                "split": pc.index_in(batch["split"], pa.array(SPLITS)).to_numpy().astype(np.int8),
                "kind": pc.index_in(batch["kind"], pa.array(KINDS)).to_numpy().astype(np.int8),
                "group": hashed(batch["group"].to_pylist()),
                "seconds": batch["duration"].to_numpy().astype(np.float32),
                **{
                    name: pc.list_value_length(batch[column]).to_numpy().astype(np.int32)
                    for name, column in (
                        ("frames", "frame_sizes"),
                        ("captions", "captions"),
                        ("questions", "questions"),
                    )
                },
                "said": hashed(captions),
                "words": np.fromiter(map(len, said), np.int32, len(said)),
                "looks": np.full(len(batch), NOT_LOOKED_AT),
            }
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
    if not columns:
        raise InputError(f"{', '.join(map(str, folders))}: no samples")
    return Samples(**{name: np.concatenate(values) for name, values in columns.items()}, vocabulary=vocabulary)


def hashed(texts: list[Any]) -> np.ndarray:
    """A number of 63 bits for each text (or bytes): the same within this process."""
    return np.fromiter((hash(text) & (2**63 - 1) for text in texts), np.int64, len(texts))


def counts(samples: Samples, split: str, kind: str) -> dict[str, Any]:
    """Samples, captions, questions and hours of one kind in one split; empty where there is none."""
    mine = (samples.split == SPLITS.index(split)) & (samples.kind == KINDS.index(kind))
    if not mine.any():
        return {}
    return {
        "split": split,
        "kind": kind,
        "samples": int(mine.sum()),
        "captions": int(samples.captions[mine].sum()),
        "questions": int(samples.questions[mine].sum()),
        "hours": float(samples.seconds[mine].sum(dtype=np.float64)) / 3600,
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Least, 5 %, median, 95 % and most; empty of nothing."""
    names = ("least", "5 %", "median", "95 %", "most")
    return dict(zip(names, np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist(), strict=True)) if len(values) else {}


def histogram(values: np.ndarray, bins: int = 20) -> dict[str, list[float]]:
    """How many values lie between each two of the edges; empty of nothing."""
    if not len(values):
        return {}
    counted, edges = np.histogram(values, bins)
    return {"counts": counted.tolist(), "edges": edges.tolist()}


def most_repeated(
    folders: Sequence[Location], hashes: np.ndarray, times: np.ndarray, most: int = 10
) -> list[list[Any]]:
    """The captions that come most often, with how often; of those that come twice at least."""
    best = [n for n in np.argsort(-times, kind="stable")[:most] if times[n] > 1]
    wanted = {int(hashes[n]): int(times[n]) for n in best}
    found: dict[int, str] = {}
    for folder in folders:
        for batch in index_batches(folder, ["captions"]):
            if len(found) == len(wanted):
                break
            captions = batch["captions"].flatten().to_pylist()
            found |= {h: text for h, text in zip(hashed(captions).tolist(), captions, strict=True) if h in wanted}
    return [[found[h], count] for h, count in sorted(wanted.items(), key=lambda one: (-one[1], found[one[0]]))]


def shared(samples: Samples, split: str) -> dict[str, int]:
    """How many samples of a split are in training too: by their group, a caption, or, of those looked at, by how they
    look."""
    training, mine = (samples.split == SPLITS.index(name) for name in ("train", split))
    return {
        "samples": int(mine.sum()),
        "same group": int(np.isin(samples.group[mine], samples.group[training]).sum()),
        "a caption in common": int(captions_in_training(samples)[mine].sum()),
        "looked at": int((mine & (samples.looks >= 0)).sum()),
        "same frames": int(frames_in_training(samples)[mine].sum()),
    }


def captions_in_training(samples: Samples) -> np.ndarray:
    """Which samples (N,) have a caption that a training sample has, word for word."""
    sample_of = np.repeat(np.arange(len(samples)), samples.captions)  # of each caption
    in_training = samples.split[sample_of] == SPLITS.index("train")
    found = np.zeros(len(samples), bool)
    found[sample_of[np.isin(samples.said, samples.said[in_training])]] = True
    return found


def frames_in_training(samples: Samples) -> np.ndarray:
    """Which samples (N,) look like a training sample, among those looked at."""
    seen = samples.looks >= 0
    return seen & np.isin(samples.looks, samples.looks[seen & (samples.split == SPLITS.index("train"))])


def overlap(folder: Path, most: int) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """The validation and test items of a corpus that are also in its training split, and their numbers by split.

    Captions are compared word for word, frames of at most `most` samples by `look`. The table has a row for each item:
    id, split, and whether `captions` and `frames` are equal to those of a training item.
    """
    named = read_index(folder, ["id", "split"])
    if not named.num_rows:
        none = pa.array([], pa.bool_())
        return named.append_column("captions", none).append_column("frames", none), {}
    samples = read_samples([folder], words=False)
    look_at(samples, [folder], most)
    captions, frames = captions_in_training(samples), frames_in_training(samples)
    counts = {}
    for split in SPLITS[1:]:
        mine = samples.split == SPLITS.index(split)
        counts[split] = {
            "items": int(mine.sum()),
            "captions": int(captions[mine].sum()),
            "compared": int((mine & (samples.looks >= 0)).sum()),
            "frames": int(frames[mine].sum()),
        }
    chosen = np.flatnonzero((captions | frames) & (samples.split != SPLITS.index("train")))
    table = named.take(pa.array(chosen, pa.int64())).append_column("captions", pa.array(captions[chosen]))
    return table.append_column("frames", pa.array(frames[chosen])), counts


def look_at(samples: Samples, folders: Sequence[Location], most: int) -> None:
    """Fills in how the samples look: those of validation and test first, up to half of `most`, then of training."""
    held_out = np.flatnonzero(samples.split != 0)
    some = held_out[
        segment_starts(len(held_out), min(len(held_out), max(most // 2, most - (samples.split == 0).sum())))
    ]
    training = np.flatnonzero(samples.split == 0)
    chosen = np.concatenate([some, training[segment_starts(len(training), min(len(training), most - len(some)))]])
    with progress("looking at frames", len(chosen), "samples") as advance, ThreadPoolExecutor(AT_ONCE) as threads:
        for place, folder in enumerate(folders):
            mine = np.sort(chosen[samples.corpus[chosen] == place])
            if not len(mine):
                continue
            reader, first = ShardReader(folder), np.searchsorted(samples.corpus, place)
            for number, found in zip(mine, threads.map(partial(look_of, reader), (mine - first).tolist()), strict=True):
                samples.looks[number] = found
                advance()


def look_of(reader: ShardReader, number: int) -> int:
    """How a sample looks, to be compared, as a number of 63 bits; UNREADABLE or BLANK."""
    try:
        sample = reader[number]
        found = look(sample.frames(segment_starts(len(sample), min(2, len(sample)))))
    except Unreadable:
        return UNREADABLE
    return BLANK if found is None else int(hashed([found])[0])


def look(frames: np.ndarray) -> bytes | None:
    """Frames (T, H, W, 3) uint8 as which of 8 x 8 places are brighter than their neighbours; None where none is."""
    small = [np.asarray(Image.fromarray(frame).convert("L").resize((9, 8)), np.int16) for frame in frames]
    brighter = np.stack([np.diff(one, axis=1) > 2 for one in small])
    return np.packbits(brighter).tobytes() if brighter.any() else None


def save(found: dict[str, Any], folders: Sequence[Location], out: Path) -> list[Path]:
    """inspect.json, the data of a page, and for each corpus frames-N.png: samples evenly over it with what was said of
    them. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "inspect.json"]
    write_json(files[0], found)
    for number, folder in enumerate(folders, 1):
        if strips := sample_strips(ShardReader(folder), SHEET):
            files.append(out / f"frames-{number}.png")
            sheet(strips, columns=2 if len(strips) > 1 else 1).save(files[-1])
    return files
