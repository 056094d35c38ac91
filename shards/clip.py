"""A clip of decoded frames, the request for it, its limits, and the reason why a file has none."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alpro.shards.sampling import frames_between, last_frame_seconds, segment_starts
from alpro.shards.schema import MAX_SECONDS, Reason

# Containers of media only. Playlists and scripts could refer to other files or hosts and are
# excluded; the only protocol is a plain file.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
)
# FFmpeg's flags for scaling and color conversion; images use the same filter. Without accurate_rnd,
# a frame that already has the target size comes out darker by 1 of 255.
SCALING = ("bicubic", "accurate_rnd")
MAX_SIDE_PIXELS = 32_768  # twice the maximum of H.264 and HEVC
TRANSPORT_STREAM = b"\x47"  # the first byte of each packet; in M2TS, after four bytes
PACKET_BYTES = (188, 192, 204)
PROGRAM_STREAM = b"\0\0\1\xba"  # the first bytes of an MPEG program stream
MATROSKA = b"\x1a\x45\xdf\xa3"


class DecodeError(Exception):
    """A file could not be decoded: a documented reason and details."""

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Clip:
    """Frames (n, size, size, 3) uint8, the duration in seconds, and the original width and height
    in pixels."""

    frames: np.ndarray
    duration: float
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """Limits for decoding one file."""

    timeout: float = 60.0  # seconds
    memory: int = 2 << 30  # bytes of the ffmpeg binary, on Linux
    max_pixels: int = 8192 * 8192  # of a frame; no side may be longer than MAX_SIDE_PIXELS

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels or max(width, height) > MAX_SIDE_PIXELS:
            raise DecodeError("too large", f"{width} x {height} pixels")

    def too_slow(self) -> DecodeError:
        return DecodeError("too slow", f"longer than {self.timeout:g} s")

    def too_much_memory(self) -> DecodeError:
        return DecodeError("too much memory", f"more than {self.memory / 2**20:.0f} MiB")


@dataclass(frozen=True)
class ClipRequest:
    """`count` frames of a file between `start` and `end` seconds, at `size` x `size` pixels.

    The time limit starts when the request is made.
    """

    path: Path
    count: int
    size: int
    start: float | None
    end: float | None
    limits: Limits
    began: float = field(default_factory=lambda: time.monotonic())

    def seconds_left(self) -> float:
        """Time until the limit. Raises DecodeError if it is over."""
        left = self.began + self.limits.timeout - time.monotonic()
        if left <= 0:
            raise self.limits.too_slow()
        return left

    def choose(self, times: np.ndarray) -> tuple[np.ndarray, float]:
        """The frames to decode, as indices into `times` (count,), and the duration in seconds.

        times (n,): seconds from the first frame, ascending. Raises DecodeError if no frame is in
        the window, or if the video would be absurdly long.
        """
        total = float(times[-1])
        if len(times) > 1:
            total += last_frame_seconds(times)
        if total > MAX_SECONDS:
            raise DecodeError("unreadable", f"it would last {total:.0f} seconds")

        start = self.start or 0.0
        first, last = frames_between(times, self.start, self.end)
        if first >= last:
            end_text = "the end" if self.end is None else f"{self.end:g}"
            detail = f"between {start:g} and {end_text} s; the video has {times[-1]:.2f} s"
            raise DecodeError("no frames", detail)

        # The window may be longer than the video, whose length then counts.
        end = total if self.end is None else min(total, self.end)
        duration = max(0.0, end - start)
        indices = first + np.array(segment_starts(last - first, self.count))
        return indices, duration


def error_text(error: BaseException) -> str:
    """The message of an error, without the file name (the row has it) and the error number."""
    message = getattr(error, "strerror", None) or error
    return str(message) or type(error).__name__


def remux_hint(path: Path, detail: str) -> str:
    """What a person can do if these are recordings that were joined byte by byte, else "". detail:
    why the file is not read.

    Their clocks start anew, and the packets around the joint look corrupt.
    """
    with open(path, "rb") as file:
        start = file.read(1024)
    if start.startswith(b"OggS"):
        return "; if it is a chain of Ogg files, take it apart"
    times_restart = "Non-monotonic" in detail
    if start.startswith(MATROSKA) and times_restart:
        return "; if it was joined from several files, take it apart"

    is_stream = start.startswith(PROGRAM_STREAM) and times_restart
    for size in PACKET_BYTES:
        offset = 4 if size == 192 else 0
        is_stream |= start[offset : offset + 3 * size : size] == TRANSPORT_STREAM * 3
    if is_stream:
        return "; if it was joined from recordings, remux it: ffmpeg -i FILE -c copy NEW.mkv"
    return ""
