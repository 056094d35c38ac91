"""Video decoding: clips per second of decode_video and of three alternatives.

    python benchmarks/decode.py [--runs 3] [--json FILE]

The program renders clips of 10 s and of 2 s (640 x 360, 30 frames per second, H.264) and a film of an hour (320 x 180),
each with a key frame every 250 and every 30 frames. It decodes 8 frames of each (sparse) or every second frame (dense)
to 256 x 256; of the film, segments of 10 s. The methods, which take turns:

- ffmpeg: the binary decodes everything (of a segment: from the key frame before it) and discards it, without scaling:
  the minimum time of a program that reads every frame with it. This is the baseline of the ratios.
- PyAV, all frames: all frames are decoded in this process, and the requested ones are scaled.
- PyAV, seeking: a seek for every requested frame; not for dense frames, for which it takes fifty times as long.
- decode_video: the function of this project.

Each method has one process with one thread. The whole machine is then measured: ffmpeg with one thread per core, and
one worker per core. The tables have the medians of wall time and of processor time (of the process and its children).
If other programs use the machine, only processor time is reliable.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder then logs errors only

import av
import numpy as np

from alpro.shards.decoding import decode_video, ffmpeg_binary

SIZE = 256
OPTIONS = {"crf": "23", "preset": "veryfast"}
CODECS = {  # the encoder and its options
    "H.264 without B-frames": ("libx264", OPTIONS | {"bf": "0"}),
    "HEVC": ("libx265", {"crf": "26", "preset": "ultrafast", "x265-params": "log-level=none:pools=1"}),
    "VP9": ("libvpx-vp9", {"crf": "34", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "AV1": ("libsvtav1", {"crf": "40", "preset": "12"}),
}


@dataclass(frozen=True)
class Task:
    """`count` frames of the seconds from `start` to `end` of a file."""

    file: Path
    count: int
    start: float | None = None
    end: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each method; the median is printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for spacing in (250, 30):
            figures |= cases(folder, spacing, arguments.runs)
        figures |= other_codecs(folder, arguments.runs)
        figures["machine"] = whole_machine(folder, arguments.runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def cases(folder: Path, spacing: int, runs: int) -> dict[str, object]:
    clips = [render(folder / f"clip-{spacing}-{i}.mp4", spacing, 300, i) for i in range(4)]
    short = [render(folder / f"short-{spacing}-{i}.mp4", spacing, 60, i) for i in range(8)]
    film = lengthen(
        render(folder / f"part-{spacing}.mp4", spacing, 1500, 0, (320, 180)), folder / f"film-{spacing}.mp4"
    )
    starts = (400.0, 1234.5, 2000.0, 3333.3)
    task_sets = {
        "clips of 10 s, 8 frames": [Task(file, 8) for file in clips],
        "clips of 10 s, 150 frames": [Task(file, 150) for file in clips],
        "clips of 2 s, 8 frames": [Task(file, 8) for file in short],
        "10 s of an hour, 8 frames": [Task(film, 8, start, start + 10) for start in starts],
        "10 s of an hour, 150 frames": [Task(film, 150, start, start + 10) for start in starts],
    }
    return {
        f"{title}, key frame every {spacing}": compare(title, spacing, tasks, runs)
        for title, tasks in task_sets.items()
    }


def other_codecs(folder: Path, runs: int) -> dict[str, object]:
    """Clips of 10 s of other codecs, and of H.264 without unreferenced frames."""
    figures: dict[str, object] = {}
    for name, (encoder, options) in CODECS.items():
        title = f"{name}, clips of 10 s, 8 frames"
        files = [render(folder / f"{encoder}-{i}.mp4", 250, 300, i, coder=(encoder, options)) for i in range(2)]
        figures[f"{title}, key frame every 250"] = compare(title, 250, [Task(file, 8) for file in files], runs)
    return figures


def compare(title: str, spacing: int, tasks: list[Task], runs: int) -> dict[str, dict[str, float]]:
    methods: dict[str, Callable[[Task], object]] = {
        "ffmpeg, one thread": bare,
        "PyAV, all frames": every_frame,
        "PyAV, seeking": seek_each,
        "decode_video": ours,
    }
    if tasks[0].count > 8:
        del methods["PyAV, seeking"]
    results = measure({name: partial(in_process, method, tasks) for name, method in methods.items()}, runs)
    print(f"\n{title}, key frame every {spacing}")
    show(results, len(tasks))
    return results


def whole_machine(folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """One worker, one worker per core, and ffmpeg with one thread per core, on the clips of 10 s."""
    tasks = [Task(file, 8) for file in sorted(folder.glob("clip-*.mp4"))] * 3
    cores = len(os.sched_getaffinity(0))
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as single, ProcessPoolExecutor(cores, mp_context=context) as full:
        for pool in (single, full):
            list(pool.map(ours, tasks[:8]))  # the imports
        methods = {
            f"ffmpeg, {cores} threads": partial(in_process, partial(bare, threads=cores), tasks),
            "1 worker": lambda: sum(single.map(timed, tasks)),
            f"{cores} workers": lambda: sum(full.map(timed, tasks)),
        }
        results = measure(methods, runs)
    print("\nthe whole machine, clips of 10 s, 8 frames")
    show(results, len(tasks))
    alone, together = results["1 worker"], results[f"{cores} workers"]
    print(
        f"  {cores} workers against one: {alone['wall'] / together['wall']:.2f} by wall time; if every worker had its",
        end="",
    )
    print(f" own core: {cores * alone['processor'] / together['processor']:.2f}")
    return results


def in_process(method: Callable[[Task], object], tasks: list[Task]) -> float:
    """Runs the tasks in this process or its children; returns the processor time elsewhere, 0."""
    for task in tasks:
        method(task)
    return 0.0


def timed(task: Task) -> float:
    """The processor time of a task, in a worker."""
    started = time.process_time()
    ours(task)
    return time.process_time() - started


def measure(methods: dict[str, Callable[[], float]], runs: int) -> dict[str, dict[str, float]]:
    """Median wall and processor time of each method in seconds. A method returns its processor time outside of this
    process. The methods take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(runs):
        for name, method in methods.items():
            wall, processor = time.perf_counter(), processor_time()
            elsewhere = method()
            times[name].append((time.perf_counter() - wall, processor_time() - processor + elsewhere))
    median: dict[str, dict[str, float]] = {}
    for name, pairs in times.items():
        wall, processor = (statistics.median(each) for each in zip(*pairs, strict=True))
        median[name] = {"wall": wall, "processor": processor}
    return median


def processor_time() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def show(results: dict[str, dict[str, float]], clips: int) -> None:
    base = next(iter(results.values()))
    print(f"  {'':20} {'clips/s':>8} {'of base':>8} {'processor ms':>13} {'of base':>8}")
    for name, each in results.items():
        speed, work = base["wall"] / each["wall"], base["processor"] / max(each["processor"], 1e-9)
        line = (
            f"  {name:20} {clips / each['wall']:8.1f} {speed:8.2f} {each['processor'] / clips * 1000:13.1f} {work:8.2f}"
        )
        print(line)


def ours(task: Task) -> int:
    clip = decode_video(task.file, task.count, SIZE, task.start, task.end, decoder="pyav")
    assert len(clip.frames) == task.count
    return len(clip.frames)


def bare(task: Task, threads: int = 1) -> None:
    window = [] if task.start is None else ["-ss", str(task.start), "-t", str((task.end or 0.0) - task.start)]
    command = [ffmpeg_binary(), "-v", "error", "-threads", str(threads), *window, "-i", str(task.file)]
    subprocess.run([*command, "-an", "-f", "null", "-"], check=True)


def every_frame(task: Task) -> list[np.ndarray]:
    """Decodes all frames from the key frame before the window; returns the pixels of the requested ones."""
    requested, results = requested_times(task), []
    with av.open(str(task.file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if task.start:
            container.seek(int(task.start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if requested and frame.time >= requested[0] - 1e-3:
                results.append(pixels(frame))
                requested.pop(0)
            if task.end is not None and frame.time >= task.end:
                break
    return results


def seek_each(task: Task) -> list[np.ndarray]:
    results = []
    with av.open(str(task.file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for requested in requested_times(task):
            container.seek(int(requested / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time >= requested - 1e-3:
                    results.append(pixels(frame))
                    break
    return results


def requested_times(task: Task) -> list[float]:
    with av.open(str(task.file)) as container:
        stream = container.streams.video[0]
        end = float(stream.duration * stream.time_base) if task.end is None else task.end
    start = task.start or 0.0
    return [start + i * (end - start) / task.count for i in range(task.count)]


def pixels(frame: av.VideoFrame) -> np.ndarray:
    return frame.reformat(SIZE, SIZE, "rgb24", interpolation="BICUBIC").to_ndarray()


def render(
    path: Path,
    spacing: int,
    frames: int,
    seed: int,
    size: tuple[int, int] = (640, 360),
    coder: tuple[str, dict[str, str]] = ("libx264", OPTIONS),
) -> Path:
    """Moving noise, with a key frame every `spacing` frames."""
    width, height = size
    texture = np.random.default_rng(seed).integers(0, 255, (90, 400, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(coder[0], rate=30, options=coder[1] | {"g": str(spacing)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            left = number * 3 % (texture.shape[1] - width)
            frame = np.ascontiguousarray(texture[:height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    if hasattr(os, "sched_setscheduler"):  # libsvtav1 sets the calling thread to real-time priority
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def lengthen(path: Path, film: Path) -> Path:
    """Repeats the video for an hour, without encoding it again."""
    command = [ffmpeg_binary(), "-v", "error", "-stream_loop", "71", "-i", str(path), "-c", "copy", str(film)]
    subprocess.run(command, check=True)
    return film


if __name__ == "__main__":
    sys.exit(main())
