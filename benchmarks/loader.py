"""Compare the training loader with decoding on the fly: samples per second by DataLoader workers.

    python benchmarks/loader.py [--clips 24] [--json FILE]

Clips of 10 s at 640 x 360 are rendered and decoded by decode_videos with its defaults.
TrainingDataset.loader loads batches of pre-training, without augmentation and with it. The baseline
decodes 4 frames of each video on demand with decode_video, in as many processes, and does nothing
else. The methods take turns.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from decode import render

from alpro.models.word_pieces import BertTokenizer, train_tokenizer
from alpro.shards.decoding import decode_video
from alpro.shards.sources.manifest import import_source
from alpro.stages import decode_videos
from alpro.stages.execution.interface import Resources
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.dataset import ExampleSpec, TrainingDataset

# 16 samples per GPU: the paper's 256 on 16 GPUs
RUNS = 3
BATCH = 16
BATCHES = 6
CAPTION = "bright clouds drift slowly over other clouds on a windy day"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    # The loader pins memory, which needs CUDA.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    counts = sorted({0, 1, os.cpu_count() or 1})
    with tempfile.TemporaryDirectory() as temporary:
        videos = Path(temporary) / "videos"
        corpus = Path(temporary) / "corpus"
        videos.mkdir()
        files = [
            render(videos / f"{number}.mp4", 50, 300, number)
            for number in range(arguments.clips)
        ]
        for file in files:
            file.with_suffix(".txt").write_text(f"clip {file.stem}: {CAPTION}")
        manifest = import_source(videos, Path(temporary) / "manifests").folder
        decode_videos.run(
            decode_videos.Config(validation=0, test=0),
            decode_videos.Inputs(manifest=manifest),
            corpus,
            Resources(),
        )
        methods: dict[str, Callable[[int], float]] = {
            "decode_video": partial(decoding, files),
            "loader": partial(loading, dataset(corpus, "none")),
            "loader, augmented": partial(loading, dataset(corpus, "official")),
        }
        runs: dict[str, list[list[float]]] = {name: [] for name in methods}
        for _ in range(RUNS):
            for name, method in methods.items():
                runs[name].append([method(workers) for workers in counts])
    rates = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in runs.items()
    }
    print(
        f"samples/s by worker processes; in brackets, times decode_video; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(f"  {'':20}" + "".join(f"{count:20}" for count in counts))
    for name, row in rates.items():
        ratios = zip(row, rates["decode_video"], strict=True)
        print(
            f"  {name:20}"
            + "".join(f"{rate:12.1f} ({rate / base:5.1f})" for rate, base in ratios)
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"workers": counts, "samples/s": rates}, indent=1)
        )


def dataset(corpus: Path, augmentation: str) -> TrainingDataset:
    """Return the batches of pre-training at the paper's sizes."""
    phase = Phase(corpora=("clips",), steps=100_000)
    config = TrainingConfig(
        phases=(phase,), batch_size=BATCH, augmentation=augmentation
    )
    tokenizer = BertTokenizer(train_tokenizer([CAPTION], 300))
    return TrainingDataset(
        config,
        {"clips": corpus},
        tokenizer,
        ExampleSpec("sample", 4, 224, 14, mlm_probability=0.15),
    )


def loading(data: TrainingDataset, workers: int) -> float:
    """Return samples per second over BATCHES batches per worker, after one warm-up batch each."""
    loader = data.loader(
        0, Resources(workers=workers), torch.device("cuda" if workers else "cpu")
    )
    deque(itertools.islice(loader, max(1, workers)), maxlen=0)
    started = time.perf_counter()
    loaded = sum(
        len(batch.ids) for batch in itertools.islice(loader, BATCHES * max(1, workers))
    )
    return loaded / (time.perf_counter() - started)


def decoding(files: list[Path], workers: int) -> float:
    if not workers:
        return sum(map(seconds, files)) ** -1 * len(files)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(seconds, files[:1] * workers))  # Warm up: each process imports.
        started = time.perf_counter()
        list(pool.map(seconds, files))
        return len(files) / (time.perf_counter() - started)


def seconds(file: Path) -> float:
    started = time.perf_counter()
    decode_video(file, 4, 256)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
