"""One bad file never stops a worker: what is too large, too slow or takes too much memory is refused, and the next
one is decoded."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alpro.shards.decoding import pyav_decoder
from alpro.shards.decoding.decode import Clip, DecodeError, Limits, decode_video
from alpro.shards.decoding.request import memory_limit

pytest.importorskip("av")
pytest.importorskip("ffmpeg")

Make = Callable[..., Path]
Numbers = Callable[[Clip], list[int]]

decoders = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process holds")


def refusal(path: Path, decoder, limits: Limits = Limits()) -> str:  # noqa: B008
    with pytest.raises(DecodeError) as error:
        decode_video(path, 4, 32, decoder=decoder, limits=limits)
    return str(error.value)


class Clock:
    """Stands still, or jumps far ahead after `stops_at` readings."""

    def __init__(self, stops_at: float = np.inf):
        self.readings, self.stops_at, self.ahead = 0, stops_at, 0.0

    def monotonic(self) -> float:
        self.readings += 1
        return 1e6 if self.readings > self.stops_at else self.ahead


@pytest.fixture
def clock(monkeypatch) -> Callable[..., Clock]:
    """clock(stops_at): replaces the clock that limits decoding."""

    def set_clock(stops_at: float = np.inf) -> Clock:
        fake = Clock(stops_at)
        monkeypatch.setattr("alpro.shards.decoding.request.time", fake)
        return fake

    return set_clock


def test_a_slow_decoder_is_stopped_at_any_point(make_video: Make, clock):
    """Before it opens the file, while it reads packets and while it decodes."""
    path, whole = make_video("a.mp4", 24), clock()
    decode_video(path, 4, 32, decoder="pyav")
    assert whole.readings > 24
    for readings in range(1, whole.readings):
        clock(readings)
        assert refusal(path, "pyav", Limits(timeout=10)) == "too slow: longer than 10 s"
    assert refusal(path, "ffmpeg", Limits(timeout=0)) == "too slow: longer than 0 s"


@decoders
def test_the_time_limit_holds_in_any_thread(make_video: Make, decoder):
    """Dask workers run tasks outside of their main thread."""
    path, results = make_video("a.mp4", 24), []
    thread = threading.Thread(target=lambda: results.append(refusal(path, decoder, Limits(timeout=0))))
    thread.start()
    thread.join()
    assert results == ["too slow: longer than 0 s"]


def test_both_decoders_share_the_time_limit(make_video: Make, monkeypatch, clock):
    path, time = make_video("a.mp4", 24), clock()

    def slow(request):
        time.ahead = 0.5
        raise DecodeError("unreadable")

    monkeypatch.setattr("alpro.shards.decoding.decode.decode_with_pyav", slow)
    assert refusal(path, "auto", Limits(timeout=0.4)) == "too slow: longer than 0.4 s"
    time.ahead = 0.0
    assert len(decode_video(path, 4, 32, limits=Limits(timeout=60)).frames) == 4


def test_a_hanging_ffmpeg_is_killed_with_its_children(tmp_path: Path, make_video: Make, monkeypatch, wait_for_end):
    stuck, child = tmp_path / "stuck", tmp_path / "child"
    os.mkfifo(f"{child}.started")
    stuck.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {child}; echo > {child}.started\nwait\n")
    stuck.chmod(0o755)

    class Timer(threading.Thread):
        """The time limit is reached after ffmpeg has started its child process."""

        def __init__(self, seconds: float, act: Callable[[], None]):
            super().__init__(target=lambda: (Path(f"{child}.started").read_text(), act()), daemon=True)

        def cancel(self) -> None:
            pass

    monkeypatch.setattr("alpro.shards.decoding.ffmpeg_binary.threading.Timer", Timer)
    monkeypatch.setattr("alpro.shards.decoding.ffmpeg_binary.ffmpeg_binary", lambda: str(stuck))
    assert refusal(make_video("a.mp4", 4), "ffmpeg", Limits(timeout=60)) == "too slow: longer than 60 s"
    wait_for_end(int(child.read_text()))


def test_each_video_has_its_own_time_limit(make_video: Make, numbers: Numbers):
    path = make_video("a.mp4", 24)
    refusal(path, "pyav", Limits(timeout=0))
    assert numbers(decode_video(path, 2, 32, decoder="pyav")) == [0, 12]


def test_a_video_with_too_many_pixels_is_rejected(make_video: Make):
    for name, codec in (("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mjpeg")):
        path = make_video(name, 2, codec=codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p", size=(640, 480))
        for decoder in ("pyav", "ffmpeg"):
            reason = refusal(path, decoder, Limits(max_pixels=640 * 480 - 1))
            # Motion JPEG's size is looked up in its frames, and FFmpeg then does not say why it did not.
            assert reason.startswith(
                ("too large", "unreadable: frames without a size") if codec == "mjpeg" else "too large"
            )
            decode_video(path, 2, 32, decoder=decoder, limits=Limits(max_pixels=640 * 480))


@decoders
def test_a_video_a_million_pixels_wide_is_rejected(make_video: Make, decoder):
    """MP4 stores the size in two bytes, Matroska in any number of bytes."""
    content = make_video("a.mkv", 2, codec="ffv1", pixels="bgr0").read_bytes()
    path = make_video("b.mkv", 1)
    at = content.find(b"\xb0\x81\x40\xba\x81\x30")  # PixelWidth 64, PixelHeight 48
    assert at > 0
    path.write_bytes(content[:at] + b"\xb0\x83\x0f\x42\x40" + content[at + 3 :])
    assert refusal(path, decoder).startswith(("too large: 1000000 x 48", "unreadable"))


@decoders
def test_frames_that_grow_within_a_video_are_rejected(make_video: Make, decoder):
    """Two concatenated transport streams: the header has the small size."""
    small, large = make_video("a.ts", 12), make_video("b.ts", 12, size=(640, 480))
    both = small.with_name("both.ts")
    both.write_bytes(small.read_bytes() + large.read_bytes())
    assert refusal(both, decoder, Limits(max_pixels=100_000)).startswith(("too large", "unreadable"))


@on_linux
def test_the_memory_limit_fails_allocations_and_the_process_survives():
    """In a new process: this one may reuse memory that it has freed."""
    program = """
import resource
import numpy as np
from alpro.shards.decoding.request import DecodeError, Limits, memory_limit
before, limits = resource.getrlimit(resource.RLIMIT_DATA), Limits(memory=64 << 20)
try:
    with memory_limit(limits):
        np.ones(100 << 20, np.uint8)
except DecodeError as error:
    print(error)
assert resource.getrlimit(resource.RLIMIT_DATA) == before
with memory_limit(limits):
    np.ones(10 << 20, np.uint8)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "too much memory: more than 64 MiB\n"


@on_linux
def test_each_decoding_thread_has_its_own_memory_limit():
    limits, inside, filled = Limits(memory=128 << 20), threading.Barrier(2), threading.Barrier(2)
    results = []

    def hold() -> None:
        with memory_limit(limits):
            inside.wait()
            try:
                results.append(np.ones(100 << 20, np.uint8)[-1])
            finally:
                filled.wait()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1, 1]
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@on_linux
def test_a_video_that_exceeds_the_memory_limit_is_rejected(make_video: Make):
    path = make_video("a.mp4", 2, size=(3840, 2160), options={"preset": "ultrafast"})
    program = f"""
from pathlib import Path
from alpro.shards.decoding.decode import *
import av
try:
    decode_video(Path({str(path)!r}), 2, 32, decoder="pyav", limits=Limits(memory=20 << 20))
except DecodeError as error:
    print(error.reason)
print(decode_video(Path({str(path)!r}), 2, 32, decoder="pyav").frames.shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    reason, then = done.stdout.splitlines()
    assert reason in ("too much memory", "unreadable")  # some of FFmpeg's decoders call want of memory bad data
    assert then == "(2, 32, 32, 3)"


@on_linux
def test_the_ffmpeg_binary_has_a_memory_limit(tmp_path: Path, make_video: Make, monkeypatch):
    asked = tmp_path / "ffmpeg"
    most = (100 + 128) * 1024  # KiB, with what ffmpeg itself takes
    asked.write_text(f"#!/bin/sh\nuntil [ $(ulimit -d) = {most} ]; do :; done\necho {most} > {tmp_path}/limit\n")
    asked.chmod(0o755)
    monkeypatch.setattr("alpro.shards.decoding.ffmpeg_binary.ffmpeg_binary", lambda: str(asked))
    refusal(make_video("a.mp4", 4), "ffmpeg", Limits(memory=100 << 20))
    assert int((tmp_path / "limit").read_text()) == most


@decoders
def test_only_regular_files_are_opened(tmp_path: Path, decoder):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "zero.mp4"):
        assert refusal(tmp_path / name, decoder) == "missing"


@decoders
def test_an_endless_gif_is_decoded_once(tmp_path: Path, numbers: Numbers, make_video: Make, decoder):
    from PIL import Image

    pictures = [Image.new("RGB", (64, 48), (40 * (n % 6) + 20, 40 * (n // 6) + 20, 128)) for n in range(6)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    clip = decode_video(tmp_path / "a.gif", 6, 32, decoder=decoder)
    assert numbers(clip) == list(range(6))
    assert clip.duration == pytest.approx(0.6)


def test_corrupt_frames_are_not_kept(make_video: Make):
    """Forty changed bytes of a film: if PyAV accepts the file, ffmpeg reports no error either."""
    path = make_video("a.mp4", 24, {"g": "24", "bf": "0"}, picture=noise)
    content = path.read_bytes()
    begin = content.find(b"mdat") + 1000
    refused = []
    for seed in range(30):
        at = int(np.random.default_rng(seed).integers(begin, len(content) - 2500))
        path.write_bytes(content[:at] + bytes(40) + content[at + 40 :])
        try:
            frames = decode_video(path, 24, 32, decoder="pyav").frames
        except DecodeError as error:
            refused.append(error.reason)
        else:
            assert np.abs(frames.astype(int) - decode_video(path, 24, 32, decoder="ffmpeg").frames).mean() < 8
    assert len(refused) > 10
    assert set(refused) == {"unreadable"}


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)


def test_a_missing_segment_is_rejected(make_video: Make, monkeypatch):
    """The index at the beginning names frames that were cut off."""
    monkeypatch.setattr(pyav_decoder, "MIN_SEEK_SECONDS", 0.5)
    content = make_video("a.mp4", 60, {"g": "5"}, faststart=True, picture=noise).read_bytes()
    path = make_video("b.mp4", 1)
    path.write_bytes(content[: len(content) * 8 // 10])
    assert len(decode_video(path, 4, 32, 2.0, 3.0, decoder="pyav").frames) == 4
    with pytest.raises(DecodeError, match="unreadable"):
        decode_video(path, 4, 32, 4.0, 6.0, decoder="pyav")
