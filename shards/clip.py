"""A clip of decoded frames, the request for it, its limits, and the reason why a file has none."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from alpro.errors import Failure, one_line
from alpro.shards.sampling import frames_between, last_frame_seconds, segment_starts

# Maximum time in seconds, over eleven days: larger numbers are timestamps or in another unit.
MAX_SECONDS = 1_000_000
MAX_SIDE_PIXELS = 32_768  # twice the maximum of H.264 and HEVC

# All reasons for rejecting an item. docs/prepare_data.md explains each.
Reason = Literal[
    "missing",
    "empty",
    "unreadable",
    "no video",
    "no frames",
    "too large",
    "too slow",
    "too much memory",
    "crashed",
    "unexpected error",
    "no text",
    "bad row",
    "not fetched",
]


class DecodeError(Failure):
    """A file could not be decoded: a documented reason and details."""

    exit_status = 2

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
    memory: int = 2 << 30  # bytes that decoding may allocate, on Linux
    # Maximum pixels of a frame; no side exceeds MAX_SIDE_PIXELS.
    max_pixels: int = 8192 * 8192

    def check_size(self, width: int, height: int) -> None:
        """Raise DecodeError if a frame has too many pixels."""
        if width * height > self.max_pixels or max(width, height) > MAX_SIDE_PIXELS:
            raise DecodeError("too large", f"{width} x {height} pixels")

    def too_slow(self) -> DecodeError:
        return DecodeError("too slow", f"longer than {self.timeout:g} s")

    def too_much_memory(self) -> DecodeError:
        return DecodeError(
            "too much memory", f"more than {self.memory / 2**20:.0f} MiB"
        )


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
        """Return the time until the limit. Raises DecodeError if it is over."""
        left = self.began + self.limits.timeout - time.monotonic()
        if left <= 0:
            raise self.limits.too_slow()
        return left

    def choose(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Choose the frames to decode.

        Args:
            times: Seconds from the first frame to each frame (n,), ascending.

        Returns:
            Indices into `times` (n,), ascending; which of them each frame of the clip is (count,):
            with fewer frames than segments, a frame is decoded once and repeated; and the duration
            of the clip in seconds.

        Raises:
            DecodeError: If no frame is in the window, or if the video would be absurdly long.
        """
        total = float(times[-1])
        if len(times) > 1:
            total += last_frame_seconds(times)
        if total > MAX_SECONDS:
            raise DecodeError("unreadable", f"it would last {total:.0f} seconds")

        start = self.start or 0.0
        first, last = frames_between(times, self.start, self.end)
        if first >= last:
            window = f"{start:g} s to {self.end or 'the end'}"
            raise DecodeError("no frames", f"{window}; the video has {times[-1]:.2f} s")

        # If the window is longer than the video, the length of the video counts.
        end = total if self.end is None else min(total, self.end)
        duration = max(0.0, end - start)
        indices = first + np.array(segment_starts(last - first, self.count))
        wanted, inverse = np.unique(indices, return_inverse=True)
        return wanted, inverse, duration


def error_text(error: BaseException) -> str:
    """Return the message of an error without the file name (the row has it) and the number."""
    return getattr(error, "strerror", None) or one_line(error)
