"""Compare decode_video with two alternatives: clips decoded per second.

    python benchmarks/decode.py [--runs 3] [--json FILE]

The program renders clips of 10 s (640 x 360, 30 frames per second, H.264) and a film of an hour
(320 x 180), each with a key frame every 250 and every 30 frames, and decodes 8 frames of each to
256 x 256; of the film, segments of 10 s. The methods, which take turns, each with one process and
one thread:

- ffmpeg: the binary decodes everything (for a segment, from the key frame before it) and discards
  it, without scaling: the minimum time of a program that reads every frame with it. This is the
  baseline of the ratios.
- PyAV: all frames are decoded in this process, and the requested ones are scaled.
- decode_video: the function of this project.

The tables have the medians of wall time and of processor time (of the process and its children). If
other programs use the machine, only processor time is reliable.
"""

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from alpro.shards.decoding import decode_video
from alpro.shards.ffmpeg_copy import ffmpeg_binary

# A file, and the first and last second to decode.
Task = tuple[Path, float | None, float | None]
COUNT = 8
SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each method; the median is printed"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for spacing in (250, 30):
            clips = [
                render(Path(name) / f"clip-{spacing}-{i}.mp4", spacing, 300, i)
                for i in range(4)
            ]
            part = Path(name) / f"part-{spacing}.mp4"
            film = Path(name) / f"film-{spacing}.mp4"
            render(part, spacing, 1500, 0, (320, 180))
            command = [
                ffmpeg_binary(),
                "-v",
                "error",
                "-stream_loop",
                "71",
                "-i",
                str(part),
                "-c",
                "copy",
                str(film),
            ]
            subprocess.run(command, check=True)
            starts = (400.0, 1234.5, 2000.0, 3333.3)
            tasks: dict[str, list[Task]] = {
                "clips of 10 s": [(clip, None, None) for clip in clips],
                "10 s of an hour": [(film, start, start + 10) for start in starts],
            }
            for title, each in tasks.items():
                title = f"{title}, key frame every {spacing}"
                figures[title] = measure(each, arguments.runs)
                show(title, figures[title], len(each))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(tasks: list[Task], runs: int) -> dict[str, dict[str, float]]:
    """Median wall and processor time of each method in seconds."""
    methods: dict[str, Callable[[Task], object]] = {
        "ffmpeg": bare,
        "PyAV": every_frame,
        "decode_video": ours,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(runs):
        for name, method in methods.items():
            wall = time.perf_counter()
            processor = processor_time()
            for task in tasks:
                method(task)
            times[name].append(
                (time.perf_counter() - wall, processor_time() - processor)
            )
    return {
        name: dict(
            zip(
                ("wall", "processor"),
                map(statistics.median, zip(*pairs, strict=True)),
                strict=True,
            )
        )
        for name, pairs in times.items()
    }


def processor_time() -> float:
    usages = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def show(title: str, results: dict[str, dict[str, float]], clips: int) -> None:
    print(
        f"\n{title}\n  {'':14} {'clips/s':>8} {'of base':>8} {'processor ms':>13} {'of base':>8}"
    )
    base = results["ffmpeg"]
    for name, each in results.items():
        speed = base["wall"] / each["wall"]
        work = base["processor"] / each["processor"]
        milliseconds = 1000 * each["processor"] / clips
        print(
            f"  {name:14} {clips / each['wall']:8.1f} {speed:8.2f} {milliseconds:13.1f} {work:8.2f}"
        )


def ours(task: Task) -> None:
    path, start, end = task
    assert (
        len(decode_video(path, COUNT, SIZE, start, end, decoder="seek").frames) == COUNT
    )


def bare(task: Task) -> None:
    path, start, end = task
    window = (
        []
        if start is None or end is None
        else ["-ss", str(start), "-t", str(end - start)]
    )
    command = [
        ffmpeg_binary(),
        "-v",
        "error",
        "-threads",
        "1",
        *window,
        "-i",
        str(path),
        "-an",
        "-f",
        "null",
        "-",
    ]
    subprocess.run(command, check=True)


def every_frame(task: Task) -> None:
    """Decode all frames from the key frame before the window, and scale the requested ones."""
    path, start, end = task
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        # Every file here tells both.
        assert stream.duration is not None
        assert stream.time_base is not None
        last = float(stream.duration * stream.time_base) if end is None else end
        requested = list(np.linspace(start or 0.0, last, COUNT, endpoint=False))
        if start:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if requested and frame.time >= requested[0] - 1e-3:
                frame.reformat(
                    SIZE, SIZE, "rgb24", interpolation="BICUBIC"
                ).to_ndarray()
                requested.pop(0)
            if frame.time >= last:
                break


def render(
    path: Path, spacing: int, frames: int, seed: int, size: tuple[int, int] = (640, 360)
) -> Path:
    """Write a video of moving noise with a key frame every `spacing` frames. Return its path."""
    width, height = size
    texture = (
        np.random.default_rng(seed)
        .integers(0, 255, (90, 400, 3), np.uint8)
        .repeat(4, 0)
        .repeat(4, 1)
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=30,
            options={"crf": "23", "preset": "veryfast", "g": str(spacing)},
        )
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            left = number * 3 % (texture.shape[1] - width)
            frame = np.ascontiguousarray(texture[:height, left : left + width])
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
            )
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
