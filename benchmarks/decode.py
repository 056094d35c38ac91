"""Frames out of MP4 files: PyAV and ffmpeg-python, as decode_videos uses them, against a bare run of the ffmpeg binary.

    python benchmarks/decode.py [--json FILE]

Clips of 10 s at 640 x 360 are rendered, with key frames far apart and close together; each decoder takes 8 frames
of 256 x 256. Printed are the median times of three runs and their ratios to the baseline: ffmpeg decoding the whole
file and throwing it away, the least that a program can do that reads every frame with that binary.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from shards.decode import decode_video, ffmpeg_binary

RUNS = 3
CLIPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for spacing in (250, 30):
            files = [render(Path(folder) / f"{spacing}-{i}.mp4", spacing, seed=i) for i in range(CLIPS)]
            figures[f"key frame every {spacing}"] = measure(files)
    for title, times in figures.items():
        base = times["ffmpeg, whole file"]
        print(f"\n{title}, {CLIPS} clips, median of {RUNS} runs")
        for name, seconds in times.items():
            print(f"  {name:24} {seconds / CLIPS * 1000:7.1f} ms a clip   {seconds / base:5.2f} of the baseline")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(files: list[Path]) -> dict[str, float]:
    """The median seconds that each way takes for all files; the ways take turns."""
    ways: dict[str, Callable[[Path], object]] = {
        "ffmpeg, whole file": bare,
        "ffmpeg-python": lambda file: decode_video(file, 8, 256, decoder="ffmpeg"),
        "PyAV": lambda file: decode_video(file, 8, 256, decoder="pyav"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            started = time.perf_counter()
            for file in files:
                way(file)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def bare(file: Path) -> None:
    subprocess.run([ffmpeg_binary(), "-v", "error", "-i", file, "-f", "null", "-"], check=True)


def render(path: Path, spacing: int, seed: int) -> Path:
    """A clip of 300 frames of moving noise, with a key frame every `spacing` frames."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (90, 400, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=30, options={"crf": "23", "preset": "veryfast", "g": str(spacing)}
        )
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(300):
            frame = np.ascontiguousarray(texture[:, number * 3 : number * 3 + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
