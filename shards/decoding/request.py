"""Decode requests, clips, limits and decode errors."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alpro.shards.sampling import frames_between, last_frame_seconds, segment_starts
from alpro.shards.schema import MAX_SECONDS, Reason

try:
    import resource
except ImportError:  # not a Unix: no memory limit
    resource = None  # type: ignore[assignment]

# Containers of media only. Playlists and scripts could refer to other files or hosts and are excluded; the only
# protocol is a plain file.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
# FFmpeg's flags for scaling and colour conversion; images use the same filter. Without accurate_rnd, a frame that
# already has the target size comes out darker by 1 of 255.
SCALING = ("bicubic", "accurate_rnd")
MAX_SIDE_PIXELS = 32_768  # pixels; twice the maximum of H.264 and HEVC


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
    """Frames (n, size, size, 3) uint8, the duration in seconds, and the original width and height in pixels."""

    frames: np.ndarray
    duration: float
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """Limits for decoding one file."""

    timeout: float = 60.0  # seconds
    memory: int = 2 << 30  # bytes, in addition to the process's current memory; enforced on Linux
    max_pixels: int = 8192 * 8192  # of a frame; no side may be longer than MAX_SIDE_PIXELS

    def check_size(self, width: int, height: int) -> None:
        """Raises DecodeError if a frame is too large."""
        if width * height > self.max_pixels or max(width, height) > MAX_SIDE_PIXELS:
            raise DecodeError("too large", f"{width} x {height} pixels")

    def timeout_error(self) -> DecodeError:
        return DecodeError("too slow", f"longer than {self.timeout:g} s")

    def memory_error(self) -> DecodeError:
        return DecodeError("too much memory", f"more than {self.memory / 2**20:.0f} MiB")


@dataclass(frozen=True)
class DecodeRequest:
    """`count` frames of a file between `start` and `end` seconds, at `size` x `size`. The time limit starts now."""

    path: Path
    count: int
    size: int
    start: float | None
    end: float | None
    limits: Limits
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_deadline", time.monotonic() + self.limits.timeout)

    def seconds_left(self) -> float:
        """Time until the limit. Raises DecodeError if it is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.limits.timeout_error()
        return left

    def frame_indices(self, times: np.ndarray) -> list[int]:
        """The frames to decode, as indices into times (seconds from the video's first frame, ascending)."""
        first, last = frames_between(times, self.start, self.end)
        if first >= last:
            window = f"between {self.start or 0:g} and {'the end' if self.end is None else f'{self.end:g}'} s"
            raise DecodeError("no frames", f"{window}; the video has {times[-1]:.2f} s")
        return [first + i for i in segment_starts(last - first, self.count)]

    def duration(self, times: np.ndarray) -> float:
        """Seconds from `start` to `end`, or to the end of the last frame.

        Raises DecodeError for a video that would last longer than MAX_SECONDS.
        """
        total = float(times[-1]) + (last_frame_seconds(times) if len(times) > 1 else 0.0)
        if total > MAX_SECONDS:
            raise DecodeError("unreadable", f"it would last {total:.0f} seconds")
        return max(0.0, min(total, total if self.end is None else self.end) - (self.start or 0.0))


_lock = threading.Lock()
_limited = 0  # how many threads are inside memory_limit
_before = (0, 0)  # RLIMIT_DATA before the first thread entered
_held = 0  # the process's bytes at that time


@contextmanager
def memory_limit(limits: Limits) -> Iterator[None]:
    """Limits the growth of the process's memory within the body to `limits.memory` for each thread in such a body.

    Beyond the limit, allocations fail and the body raises DecodeError: FFmpeg and numpy report the failure and the
    process continues. The limit applies to the process: allocations of other threads count too. Setting it takes 20
    microseconds. Only on Linux (elsewhere: no limit).
    """
    global _limited, _before, _held
    with _lock:
        if not _limited:
            _held = _process_bytes()
            _before = resource.getrlimit(resource.RLIMIT_DATA) if _held else (0, 0)
        _limited += 1
        _set_ceiling(limits.memory)
    try:
        yield
    except MemoryError:
        raise limits.memory_error() from None
    finally:
        with _lock:
            _limited -= 1
            _set_ceiling(limits.memory)


def _set_ceiling(memory: int) -> None:
    if not _held:
        return
    soft, hard = _before
    ceilings = [_held + _limited * memory] if _limited else []
    finite = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ceilings + finite) if ceilings else soft, hard))


def _process_bytes() -> int:
    """Bytes that count towards RLIMIT_DATA; 0 if unknown."""
    try:
        with open("/proc/self/statm", "rb") as pages:
            return int(pages.read().split()[5]) * resource.getpagesize()
    except (OSError, AttributeError):
        return 0
