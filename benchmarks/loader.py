"""The training loader, compared with decoding on the fly, reading tar bytes, and the consumption of a GPU.

    python benchmarks/loader.py [--rates N ...] [--videos DATA] [--corpus FOLDER] [--json FILE]

Clips of 10 s at 640 x 360 are rendered and decoded by decode_videos with its defaults (needs av and webdataset).
`--videos` is a manifest or folder of videos with captions to use instead; `--corpus` is an artifact of decode_videos,
which needs neither package; with both, they are a corpus and its videos. The batches are those of pre-training, loaded
by TrainingDataset.loader. Decoding on the fly differs only in the frames: 4 of all frames of a video, decoded by one
thread and resized to the stored size. The baseline, PyAV with seeking, knows the key frames in advance and decodes no
frame twice, as decord does.
"""

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import features

from alpro.models.word_pieces import WordPieces, train_tokenizer
from alpro.pipeline.store.artifacts import versions
from alpro.shards import reader as shard_reader
from alpro.shards.decoding import ffmpeg_binary
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Row
from alpro.shards.sources.manifest import scan_manifest
from alpro.stages import decode_videos
from alpro.stages.execution.interface import Resources
from alpro.stages.training import dataset
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.dataset import TrainingDataset

RUNS, CLIPS, BATCH = 3, 24, 16  # 16 samples per GPU: the paper's 256 on 16 GPUs
STORED, GPU_RATES = decode_videos.Config().size, [50, 100, 200, 400, 800]
BASELINE, AUGMENTED = "PyAV, seeking", ", augmented"
METHODS = (BASELINE, "PyAV, whole clip", "ffmpeg, whole clip")
PARTS = {
    "reading bytes": (ShardReader, "__getitem__"),
    "JPEG decoding": (Sample, "frames"),
    "augmentation": (dataset, "augment_video"),
    "random crop": (dataset, "random_crop"),
    "tokenising": (WordPieces, "ids"),
    "collating": (dataset, "collate"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=GPU_RATES, help="samples/s that one GPU trains on")
    parser.add_argument("--videos", type=Path, help="a manifest or folder of videos with captions")
    parser.add_argument("--corpus", type=Path, help="an artifact of decode_videos")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # the loader pins memory, which needs CUDA
    with tempfile.TemporaryDirectory() as folder:
        data, corpus = arguments.videos, arguments.corpus or Path(folder) / "corpus"
        if not (data or arguments.corpus):
            data = render_clips(Path(folder) / "clips")
        if not arguments.corpus:
            config, started = decode_videos.Config(validation=0, test=0, kinds="video"), time.perf_counter()
            decode_videos.run(config, {"data": data}, corpus, Resources())
            print(f"decode_videos took {time.perf_counter() - started:.1f} s, once")
        shard_reader.MAX_CACHED_BYTES = 0  # every frame is decoded, as in a large corpus
        reader = ShardReader(corpus, "train", "video")
        videos = read_videos(reader, data) if data else []
        figures = describe(reader, videos) | compare(corpus, videos, arguments.rates)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def describe(reader: ShardReader, videos: list["Video"]) -> dict[str, str]:
    """Prints and returns the machine, the versions and the data."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    processor = re.findall(r"model name\s*: (.*)", info + f"model name: {platform.machine()}")[0]
    sizes = [size for number in range(len(reader)) for _, size, _ in reader[number].places]
    about = {
        "machine": f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join(map(" ".join, {**versions(), "jpeg": features.version("libjpeg_turbo")}.items())),
        "corpus": f"{len(reader)} samples of {len(sizes) // len(reader)} frames, {np.mean(sizes) / 1000:.1f} kB each",
        "settings": f"4 frames of {STORED} x {STORED} drawn, crop 0.875, batches of {BATCH}, median of {RUNS} runs",
    }
    if videos:
        bits, seconds = np.sum([(v.file.stat().st_size * 8, v.about["duration"]) for v in videos], axis=0)
        keys = f"a key frame in {seconds / sum(len(v.keys) for v in videos):.1f} s"
        about["videos"] = f"{seconds / len(videos):.1f} s each, {bits / seconds / 1e6:.2f} Mbit/s, {keys}"
    print("\n".join(f"{name:10}{value}" for name, value in about.items()))
    return about


def compare(corpus: Path, videos: list["Video"], gpu_rates: list[float]) -> dict:
    """Prints and returns samples/s of each method by workers, and of tar bytes; the time of the loader's parts; and the
    workers that a GPU needs."""
    counts = sorted({0, *(2**n for n in range(os.cpu_count().bit_length())), os.cpu_count()})
    jobs = {"loader": training_steps(corpus, "none"), "loader" + AUGMENTED: training_steps(corpus, "official")}
    if videos:
        jobs |= {method: training_steps(corpus, "none", videos, method) for method in METHODS}
        jobs[BASELINE + AUGMENTED] = training_steps(corpus, "official", videos, BASELINE)
    runs: dict[str, list[list[float]]] = {name: [] for name in (*jobs, "tar")}
    buffer = bytearray(2**20)
    for _ in range(RUNS):  # the methods take turns
        started, size = time.perf_counter(), 0
        for shard in corpus.glob("*.tar"):
            with open(shard, "rb", buffering=0) as file:
                size += sum(iter(partial(file.readinto, buffer), 0))
        runs["tar"].append([size / 1e6 / (time.perf_counter() - started)])
        for name, steps in jobs.items():
            runs[name].append([samples_per_second(steps, workers, 24 if "loader" in name else 4) for workers in counts])
    rates = {name: np.median(rows, axis=0).tolist() for name, rows in runs.items()}
    (tar,) = rates.pop("tar")
    print(f"\ntar bytes, end to end {tar:.0f} MB/s, {tar * 1e6 / size * len(ShardReader(corpus)):.1f} samples/s")
    print(f"samples/s by worker processes; in brackets, times '{BASELINE}'")
    print(f"  {'':25}" + "".join(f"{count:18}" for count in counts))
    for name, row in rates.items():
        base = rates.get(BASELINE + AUGMENTED * (AUGMENTED in name), [np.nan] * len(row))
        print(f"  {name:25}" + "".join(f"{r:10.1f} ({r / b:5.1f})" for r, b in zip(row, base, strict=True)))
    parts = {name: shares(steps) for name, steps in jobs.items() if "loader" in name}
    print("\nms per sample, no workers" + "".join(f"{name:>20}" for name in parts))
    for part in parts["loader"]:
        print(f"  {part:23}" + "".join(f"{results[part]:20.3f}" for results in parts.values()))
    feed = {name: np.ceil(np.array(gpu_rates) * counts[-1] / row[-1]).tolist() for name, row in rates.items()}
    print(f"\nworkers that a GPU needs, each as fast as one of {counts[-1]}, by its samples/s")
    for name, needed in {"": gpu_rates, **feed}.items():
        print(f"  {name:25}" + "".join(f"{count:9.0f}" for count in needed))
    return {
        "workers": counts,
        "samples/s": rates,
        "tar MB/s": tar,
        "ms": parts,
        "gpu samples/s": gpu_rates,
        "feed": feed,
    }


def training_steps(
    corpus: Path, augmentation: str, videos: list["Video"] | None = None, method: str = ""
) -> TrainingDataset:
    """The batches of pre-training on a corpus. With its videos: smaller batches, with frames of the videos."""
    phase, batch = Phase(corpora=("clips",), steps=100_000), 4 if videos else BATCH
    config = TrainingConfig(phases=(phase,), batch_size=batch, augmentation=augmentation)
    captions = itertools.chain(*ShardReader(corpus).column("captions").to_pylist())
    tokenizer = train_tokenizer(list(captions), 30522)
    steps = TrainingDataset(
        config, {"clips": corpus}, tokenizer, "sample", frames=4, image_size=224, grid=14, mlm_probability=0.15
    )
    if videos:
        steps.sources[0].reader = [replace(video, method=method) for video in videos]
    return steps


def samples_per_second(steps: TrainingDataset, workers: int, batches: int) -> float:
    """Samples per second over `batches` batches per worker, after a first batch of each."""
    loader = steps.loader(0, Resources(workers=workers), torch.device("cuda" if workers else "cpu"))
    deque(itertools.islice(loader, max(1, workers)), maxlen=0)
    started = time.perf_counter()
    loaded = sum(len(batch.ids) for batch in itertools.islice(loader, batches * max(1, workers)))
    return loaded / (time.perf_counter() - started)


def shares(steps: TrainingDataset, batches: int = 24) -> dict[str, float]:
    """Milliseconds per sample of each part of the loader."""
    spent: Counter[str] = Counter()

    def timed(name: str, function: Callable) -> Callable:
        def timed_function(*args):
            started = time.perf_counter()
            result = function(*args)
            spent[name] += time.perf_counter() - started
            return result

        return timed_function

    with ExitStack() as patches:
        for name, (owner, function) in PARTS.items():
            patches.enter_context(mock.patch.object(owner, function, timed(name, getattr(owner, function))))
        deque(map(timed("total", steps.__getitem__), range(batches)), maxlen=0)
    spent["other"] = 2 * spent["total"] - spent.total()
    return {name: spent[name] * 1000 / batches / BATCH for name in (*PARTS, "other", "total")}


@dataclass(frozen=True)
class Video:
    """Replaces a Sample: its frames are decoded from its video file, in one of METHODS."""

    file: Path
    about: dict
    times: list[int]  # of all frames
    keys: list[int]  # of the key frames
    method: str = BASELINE

    def __len__(self) -> int:
        return len(self.times)

    def frames(self, chosen: list[int]) -> np.ndarray:
        return np.stack(list(self.by_ffmpeg(chosen) if self.method.startswith("ffmpeg") else self.by_pyav(chosen)))

    def by_pyav(self, chosen: list[int]) -> Iterator[np.ndarray]:
        import av

        with av.open(str(self.file)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            decoding, last = container.decode(video=0), self.times[0]
            for target in (self.times[number] for number in chosen):
                if self.method == BASELINE and any(last < key <= target for key in self.keys):
                    container.seek(target, stream=container.streams.video[0])
                    decoding = container.decode(video=0)
                frame, last = next(frame for frame in decoding if frame.pts >= target), target
                yield frame.reformat(width=STORED, height=STORED, format="rgb24", interpolation="BICUBIC").to_ndarray()
            deque(decoding if self.method != BASELINE else (), maxlen=0)

    def by_ffmpeg(self, chosen: list[int]) -> np.ndarray:
        wanted = "+".join(f"eq(n,{number})" for number in chosen)
        command = [ffmpeg_binary(), *["-v", "error", "-nostdin", "-threads", "1", "-i"], self.file]
        command += ["-vf", f"select='{wanted}',scale={STORED}:{STORED}:flags=bicubic"]
        command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
        pixels = subprocess.run(command, capture_output=True, check=True).stdout
        return np.frombuffer(pixels, np.uint8).reshape(-1, STORED, STORED, 3)


def read_videos(reader: ShardReader, data: Path) -> list[Video]:
    """The videos of the samples, in the order of the reader."""
    import av

    files, videos = {row.id: row.path for row in scan_manifest(data) if isinstance(row, Row)}, []
    for about in (reader[number].about for number in range(len(reader))):
        with av.open(str(files[about["id"]])) as container:
            times = sorted((p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size)
        videos.append(Video(files[about["id"]], about, [t for t, _ in times], [t for t, key in times if key]))
    return videos


def render_clips(folder: Path) -> Path:
    """Clips of 250 frames at 25 per second with a key frame every 50: two moving textures with film grain."""
    import av

    folder.mkdir()
    for seed, rng in enumerate(map(np.random.default_rng, range(CLIPS))):
        spectrum = (np.hypot(np.fft.fftfreq(720)[:, None], np.fft.rfftfreq(1280)) + 1e-3) ** -1.6  # that of photographs
        texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((4, 720, 1280))) * spectrum, (720, 1280))
        texture = np.moveaxis(texture / texture.std(axis=(1, 2), keepdims=True), 0, 2).astype(np.float32)
        grain = rng.normal(0, 4, (8, 360, 640, 1)).astype(np.float32)
        (folder / f"{seed}.txt").write_text(f"clip {seed}: bright clouds drift slowly over other clouds on a windy day")
        with av.open(str(folder / f"{seed}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast", "g": "50"})
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for n in range(250):
                grey, colours = texture[n : n + 360, 2 * n : 2 * n + 640, :1], texture[:360, 500 - n : 1140 - n, 1:]
                frame = np.clip(120 + 45 * grey + 20 * colours + grain[n % 8], 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return folder


if __name__ == "__main__":
    main()
