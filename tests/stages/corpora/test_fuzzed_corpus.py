"""Randomly mutated files: none crashes or hangs the stage, and each is in a shard or in the rejects."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.shards.reader import ShardReader
from alpro.shards.schema import VIDEO_EXTENSIONS, Reason
from alpro.stages import decode_videos
from alpro.stages.execution.interface import Resources

# Name, codec, pixel format and options of a small video of each kind.
VIDEOS = [
    ("long.mp4", "libx264", "yuv420p", {"g": "250", "bf": "3"}),
    ("front.mp4", "libx264", "yuv420p", {"g": "5", "bf": "0"}),
    ("a.mkv", "libx264", "yuv444p", {"g": "8"}),
    ("a.mov", "mjpeg", "yuvj420p", {}),
    ("a.avi", "mpeg4", "yuv420p", {"g": "6"}),
    ("a.webm", "libvpx", "yuv420p", {"g": "10"}),
    ("a.ts", "libx264", "yuv420p", {"g": "6"}),
    ("a.mpg", "mpeg2video", "yuv420p", {"g": "6"}),
    ("a.gif", "gif", "rgb8", {}),
    ("a.flv", "flv1", "yuv420p", {"g": "6"}),
]
IMAGES = ["a.jpg", "a.png", "a.webp", "a.bmp"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    """A whole file of each kind: 20 frames of 64 x 48 with much going on, or one."""
    folder = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (12, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for name, codec, pixels, options in VIDEOS:
        front = {"movflags": "faststart"} if name == "front.mp4" else {}
        with av.open(str(folder / name), "w", options=front) as container:
            stream = container.add_stream(codec, rate=25 if name != "a.gif" else 10, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            for number in range(20):
                picture = np.ascontiguousarray(texture[number : number + 48, 4 * number : 4 * number + 64])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    for name in IMAGES:
        Image.fromarray(texture[:48, :64]).save(folder / name)
    return sorted(folder.iterdir())


def damage(data: bytearray, other: bytes, chance: random.Random) -> None:
    """Flips bits, or replaces a part: by nothing, by a part of another file or of this one, or by senseless numbers
    where sizes, times and tables are."""
    at = chance.randrange(min(len(data), chance.choice([64, 400, len(data)])))
    size = chance.choice([1, 4, 8, 200, 600, len(data)])
    if chance.random() < 0.35:
        for place in (chance.randrange(len(data)) for _ in range(chance.choice([1, 3, 30]))):
            data[place] ^= 1 << chance.randrange(8)
        return
    start = chance.randrange(len(other))
    inserted = [b"", other[start:], data[at : at + 2 * size], *(byte * size for byte in (b"\xff", b"\x00", b"\x7f"))]
    data[at : at + size] = chance.choice(inserted)


def mutate(seeds: list[Path], folder: Path, count: int) -> Path:
    """A manifest of `count` mutated files. Some have another kind's ending."""
    folder.mkdir()
    whole = {path: path.read_bytes() for path in seeds}
    chance = random.Random(7)
    rows = []
    for number in range(count):
        path, other = chance.choice(seeds), chance.choice(seeds)
        data = bytearray(whole[path])
        for _ in range(chance.choice([1, 1, 2])):
            if data:
                damage(data, whole[other], chance)
        ending = other.suffix if chance.random() < 0.1 else path.suffix
        name = f"{number:05d}-{path.stem}{ending}"
        (folder / name).write_bytes(data)
        row = {"id": f"{number:05d}", "path": name, "caption": f"number {number}", "split": "train"}
        if ending in VIDEO_EXTENSIONS and chance.random() < 0.3:
            row |= {"start": 0.2, "end": 0.6}
        rows.append(row)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_every_mutated_file_is_a_sample_or_a_reject(count, seeds, tmp_path):
    manifest, out = mutate(seeds, tmp_path / "data", count), tmp_path / "out"
    config = decode_videos.Config(frames=4, size=32, timeout=10, max_reject_share=1, samples_per_shard=64)
    counts = decode_videos.run(config, {"data": manifest}, out, Resources(workers=1)).counts
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    reasons = Counter(row["reason"] for row in rejects)
    print(f"{count} files: {counts['samples']} samples, {dict(reasons)}")
    assert counts["items"] == count
    assert reasons.keys() <= set(get_args(Reason))
    reader = ShardReader(out)
    ids = [*reader.column("id").to_pylist(), *(row["id"] for row in rejects)]
    assert sorted(ids) == [f"{number:05d}" for number in range(count)]
    for number in range(len(reader)):
        height, width, channels = reader[number].frames().shape[1:]
        assert channels == 3
        if reader[number].about["kind"] == "video":
            assert (height, width) == (32, 32)
        else:  # with its aspect ratio, and never enlarged
            assert 1 <= min(height, width) <= 32
    assert counts["samples"] > count / 10
    assert counts["rejected"] > count / 10
