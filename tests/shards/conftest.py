"""Shared by the tests of media: small videos with known frames, rows, clips and manifests."""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alpro.shards.clip import Clip, DecodeError, Limits
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.schema import Reject, Row
from alpro.shards.tar import tar_members

BLOCK = 512


def color(number: int) -> tuple[int, int, int]:
    """The color of frame `number` (0 to 35) of a test video, far from all others."""
    return 40 * (number % 6) + 20, 40 * (number // 6) + 20, 128


@pytest.fixture(scope="session")
def numbers():
    """numbers(clip): the frame numbers in the test video, by color."""
    palette = np.array([color(number) for number in range(36)])

    def identify(clip):
        means = clip.frames.reshape(len(clip.frames), -1, 3).mean(axis=1)
        return [int(np.abs(palette - mean).sum(axis=1).argmin()) for mean in means]

    return identify


def flat(number: int) -> np.ndarray:
    return np.full((48, 64, 3), color(number), np.uint8)


@pytest.fixture
def make_video(tmp_path):
    """make_video(name, count, options, ...): by default H.264, 64 x 48, 10 frames a second, each
    frame of its own flat color. `stamps`: when each frame is shown, milliseconds. `tags`:
    attributes of the encoder, as its color range."""
    import av

    def make(
        name: str,
        count: int = 24,
        options: dict[str, str] | None = None,
        picture: Callable[[int], np.ndarray] = flat,
        codec: str = "libx264",
        pixels: str = "yuv420p",
        size: tuple[int, int] = (64, 48),
        rate: int = 10,
        stamps: list[int] | None = None,
        tags: dict[str, int] | None = None,
        container: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=container or {}) as out:
            stream = out.add_stream(codec, rate=rate, options=options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            if stamps:
                stream.codec_context.time_base = Fraction(1, 1000)
            for tag, value in (tags or {}).items():
                setattr(stream.codec_context, tag, value)
            for number in range(count):
                shown = Image.fromarray(picture(number)).resize(size)
                frame = av.VideoFrame.from_image(shown)
                # The colors of the tags.
                conversion = {
                    f"dst_{tag}": value for tag, value in (tags or {}).items()
                }
                frame = frame.reformat(format=pixels, **conversion)
                if stamps:
                    frame.pts = stamps[number]
                    frame.time_base = Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        if hasattr(os, "sched_setscheduler"):
            # libsvtav1 gives the thread that calls it real-time priority, which all later processes
            # would inherit: two of them that wait for each other in a loop, such as gloo's, would
            # stop the machine.
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return path

    return make


class Clock:
    """Stands still, or jumps far ahead after `stops_at` readings."""

    def __init__(self, stops_at: float = np.inf):
        self.readings = 0
        self.stops_at = stops_at

    def monotonic(self) -> float:
        self.readings += 1
        return 1e6 if self.readings > self.stops_at else 0.0


@pytest.fixture
def make_row():
    """make_row(id, ...): a row of a manifest with a caption. Keywords replace other values."""

    def make(name, **more):
        defaults = {
            "path": Path(f"/data/{name}.mp4"),
            "kind": "video",
            "captions": (f"about {name}",),
            "group": name,
        }
        return Row(id=name, **(defaults | {"split": "train"} | more))

    return make


@pytest.fixture
def smooth_clip():
    """smooth_clip(seed, count): frames (count, 32, 32, 3) of smooth color gradients, as in
    photographs."""

    def make(seed, count=3):
        rng = np.random.default_rng(seed)
        start, along, down = (rng.uniform(0, 120, (count, 1, 1, 3)) for _ in range(3))
        at = np.linspace(0, 1, 32)
        frames = (
            start + along * at[None, :, None, None] + down * at[None, None, :, None]
        )
        return Clip(
            np.clip(frames, 0, 255).astype(np.uint8),
            duration=2.5004,
            width=64,
            height=48,
        )

    return make


@pytest.fixture
def small_row_groups(monkeypatch):
    """Units span several row groups of a manifest, and row groups have rows of several units."""
    for module in ("manifest", "plan"):
        monkeypatch.setattr(f"alpro.shards.sources.{module}.ROW_GROUP", 5)


def refusal(
    path: Path, decoder: str, limits: Limits = Limits(), kind: str = "video", **window
) -> str:
    """Return why a file is not decoded, in a line without its path, which the row has."""
    decode = partial(
        decode_video, path, 4, 32, decoder=decoder, limits=limits, **window
    )
    if kind == "image":
        decode = partial(decode_image, path, 32, limits)
    with pytest.raises(DecodeError) as error:
        decode()
    assert "\n" not in str(error.value)
    assert str(path) not in str(error.value)
    return str(error.value)


def rows_and_rejects(records: Iterable[Row | Reject]) -> tuple[list[Row], list[Reject]]:
    records = list(records)
    return [r for r in records if isinstance(r, Row)], [
        r for r in records if isinstance(r, Reject)
    ]


def pack(
    *members: tuple[str, bytes | tarfile.TarInfo],
    form: int = tarfile.PAX_FORMAT,
    **header,
) -> bytes:
    """A tar of these files; a TarInfo is a member without data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            is_special = isinstance(content, tarfile.TarInfo)
            info = content if is_special else tarfile.TarInfo()
            data = b"" if is_special else content
            info.name = name
            info.size = len(data)
            info.pax_headers = dict(header)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def headers_of(content: bytes) -> list[int]:
    return [member.offset - BLOCK for member in tar_members(io.BytesIO(content))]


def damaged(content: bytes, headers: list[int]) -> Iterator[bytes]:
    """The tar with flipped bits (in the headers, and anywhere), holes of zeros, cut at blocks and
    members, joined."""
    rng = random.Random(0)
    places = [
        at + byte
        for at in headers
        for byte in (0, 3, 101, 124, 135, 148, 156, 257, 400)
    ]
    for at in places + [rng.randrange(len(content)) for _ in range(40)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    for at in range(0, len(content), 3 * BLOCK):
        yield content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]
        yield content[:at]
    yield from (
        content[: at + extra] for at in headers for extra in (0, 100, BLOCK, 700)
    )
    yield from (
        content + content,
        content + bytes(20_000),
        content + b"x" * BLOCK,
        b"",
        b"x" * 600,
    )
