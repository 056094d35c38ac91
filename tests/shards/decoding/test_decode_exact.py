"""Skipping, buffering and seeking change nothing: frames are bit-identical to those of decoding everything."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpro.shards.decoding import pyav_decoder
from alpro.shards.decoding.decode import Clip, decode_video

av = pytest.importorskip("av")

Make = Callable[..., Path]
SIZE, FRAMES = 32, 40


def everything(path: Path) -> np.ndarray:
    """All frames of a video, decoded sequentially: (n, 32, 32, 3)."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = frame.reformat(SIZE, SIZE, "gbrp", interpolation="BICUBIC").to_ndarray()
            frames.append(planes)
    return np.stack(frames)


def moving(seed: int) -> Callable[[int], np.ndarray]:
    """Moving noise with cuts, which makes encoders use all kinds of frames."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (60, 200, 3), np.uint8)
    cuts = set(rng.integers(0, FRAMES, 2).tolist())

    def picture(number: int) -> np.ndarray:
        scene = sum(number >= cut for cut in cuts)
        return np.roll(texture, scene * 67, axis=1)[number // 8 : number // 8 + 48, number * 2 : number * 2 + 64]

    return picture


CODECS = {
    "libx264": ["a.mp4", "a.mkv", "a.ts", "a.flv"],
    "libx265": ["a.mp4", "a.ts"],
    "mpeg4": ["a.mp4", "a.mkv"],
    "mpeg2video": ["a.ts", "a.mkv"],
    "libvpx": ["a.webm"],
    "libvpx-vp9": ["a.webm"],
    "mjpeg": ["a.mov"],
}
LIBX264 = ["b-pyramid=none", "b-pyramid=strict", "b-pyramid=normal:open-gop=1", "intra-refresh=1", "interlaced=1"]


@st.composite
def recipes(draw) -> tuple[str, dict]:
    codec = draw(st.sampled_from(sorted(CODECS)))
    options = {"g": str(draw(st.sampled_from([1, 5, 12, 60])))}
    if codec == "libx264":
        options |= {"x264-params": draw(st.sampled_from(LIBX264)), "bf": str(draw(st.integers(0, 5))), "preset": "fast"}
    elif codec == "libx265":
        opened = draw(st.sampled_from([0, 1]))
        options["x265-params"] = f"log-level=none:keyint={options['g']}:bframes=3:open-gop={opened}:frame-threads=1"
    elif codec in ("mpeg4", "mpeg2video"):
        options["bf"] = str(draw(st.integers(0, 2)))
    elif codec == "libvpx":
        options |= {"auto-alt-ref": "1", "lag-in-frames": "12", "b": "200k", "deadline": "realtime"}
    elif codec == "libvpx-vp9":
        options |= {"b": "200k", "deadline": "realtime", "cpu-used": "8"}
    more = {"codec": codec, "options": options, "rate": 25, "picture": moving(draw(st.integers(0, 99)))}
    return draw(st.sampled_from(CODECS[codec])), more | {"pixels": "yuvj420p" if codec == "mjpeg" else "yuv420p"}


@pytest.fixture
def near_and_unheld(monkeypatch) -> Callable[[bool, bool], None]:
    """near_and_unheld(seek, small_memory): small films are read like hour-long ones."""

    def configure(seek: bool, small_memory: bool) -> None:
        monkeypatch.setattr(pyav_decoder, "MIN_SEEK_SECONDS", 0.05 if seek else 1e9)
        monkeypatch.setattr(pyav_decoder, "MAX_HELD_BYTES", 5000 if small_memory else 1 << 30)

    return configure


def check(
    path: Path, count: int, start: float | None, end: float | None, configure: Callable[[bool, bool], None]
) -> None:
    whole = everything(path)
    assert len(whole) == FRAMES
    first, last = round((start or 0) * 25), FRAMES if end is None else round(end * 25)
    wanted = [first + i * (last - first) // count for i in range(count)]
    for seek in (False, True):
        for small_memory in (False, True):
            configure(seek, small_memory)
            clip = decode_video(path, count, SIZE, start, end, decoder="pyav")
            assert (clip.frames == whole[wanted]).all(axis=(1, 2, 3)).all()


def assert_as_decoding_everything(
    make_video: Make, recipe: tuple[str, dict], window: tuple[int, int], count: int, configure
) -> None:
    name, more = recipe
    with tempfile.TemporaryDirectory() as folder:
        path = make_video(name, FRAMES, **more).rename(Path(folder) / name)
        start, end = (number / 25 for number in window)
        check(path, count, start or None, None if window[1] == FRAMES else end, configure)


windows = st.tuples(st.integers(0, FRAMES - 1), st.integers(1, FRAMES)).filter(lambda w: w[0] < w[1])
common = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=12, **common)
@given(recipe=recipes(), window=windows, count=st.integers(1, FRAMES))
def test_frames_equal_those_of_full_decoding(make_video: Make, near_and_unheld, recipe, window, count: int):
    assert_as_decoding_everything(make_video, recipe, window, count, near_and_unheld)


@pytest.mark.long
@settings(max_examples=400, **common)
@given(recipe=recipes(), window=windows, count=st.integers(1, FRAMES))
def test_frames_equal_those_of_full_decoding_exhaustively(make_video: Make, near_and_unheld, recipe, window, count):
    assert_as_decoding_everything(make_video, recipe, window, count, near_and_unheld)


def test_only_the_segment_of_a_long_file_is_read(make_video: Make, monkeypatch):
    """Neither what lies before its key frame nor what lies behind it is read."""
    path = make_video("a.mp4", 2000, {"g": "10", "bf": "2", "preset": "ultrafast"})
    read = []
    add = pyav_decoder._Packets.add
    monkeypatch.setattr(pyav_decoder._Packets, "add", lambda self, *more: (read.append(more[0].pts), add(self, *more)))
    clip = decode_video(path, 4, 32, 150.0, 151.0, decoder="pyav")
    assert isinstance(clip, Clip)
    assert len(read) < 40


class Counting:
    """A decoder that counts the frames that come out of it."""

    def __init__(self, codec) -> None:
        self.__dict__.update(codec=codec, count=0)

    def __getattr__(self, name: str):
        return getattr(self.codec, name)

    def __setattr__(self, name: str, value) -> None:
        setattr(self.codec, name, value)

    def decode(self, packet):
        frames = self.codec.decode(packet)
        self.__dict__["count"] += len(frames)
        return frames


def test_unneeded_frames_are_not_decoded(make_video: Make, monkeypatch):
    path = make_video("a.mp4", 40, {"g": "20", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0"})
    counters = []

    class Decoding(pyav_decoder._Decoding):
        def __init__(self, codec, *more) -> None:
            counters.append(Counting(codec))
            super().__init__(counters[-1], *more)

    monkeypatch.setattr(pyav_decoder, "_Decoding", Decoding)
    decode_video(path, 2, 32, decoder="pyav")  # frames 0 and 20: two key frames
    decode_video(path, 1, 32, 1.6, decoder="pyav")  # frame 16: four that it refers to, and itself
    assert [counter.count for counter in counters] == [2, 5]
