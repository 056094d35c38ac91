"""What is asked of a decoder, what it gives, what it may cost, and why it may give nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alpro.shards.sampling import frames_between, last_step, segment_starts
from alpro.shards.schema import MAX_SECONDS, Reason

try:
    import resource
except ImportError:  # not a Unix: no limit on memory there
    resource = None  # type: ignore[assignment]

# Containers that hold media and nothing else: playlists and scripts, which could name other files or hosts, are
# not among them, and no protocol but a plain file is opened.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
# What brings a picture to its size and colours, as FFmpeg calls it; images have the same filter. Without the second, a
# picture that has its size already comes out darker by 1 of 255.
SCALING = ("bicubic", "accurate_rnd")
LONGEST_SIDE = 32_768  # pixels; twice the longest that H.264 and HEVC know


class DecodeError(Exception):
    """Why no frames came from a file: one of the documented reasons, and what was seen."""

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Clip:
    """Frames (n, size, size, 3) uint8 and what was seen of the file: seconds and pixels."""

    frames: np.ndarray
    duration: float
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """What decoding one file may cost before it is given up."""

    timeout: float = 60.0  # seconds
    memory: int = 2 << 30  # bytes, beside what the process holds already; kept to on Linux
    max_pixels: int = 8192 * 8192  # of a picture; no side may be longer than LONGEST_SIDE

    def check_size(self, width: int, height: int) -> None:
        """Raises DecodeError for a picture that is too large to be decoded."""
        if width * height > self.max_pixels or max(width, height) > LONGEST_SIDE:
            raise DecodeError("too large", f"{width} x {height} pixels")

    def too_slow(self) -> DecodeError:
        return DecodeError("too slow", f"longer than {self.timeout:g} s")

    def too_much(self) -> DecodeError:
        return DecodeError("too much memory", f"more than {self.memory / 2**20:.0f} MiB")


@dataclass(frozen=True)
class Request:
    """`count` frames of a file between `start` and `end` seconds, at `size` x `size`; the clock runs from now on."""

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
        """Raises DecodeError when there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.limits.too_slow()
        return left

    def wanted(self, times: np.ndarray) -> list[int]:
        """The frames to take, as indices into times (seconds from the video's first frame, ascending)."""
        first, last = frames_between(times, self.start, self.end)
        if first >= last:
            window = f"between {self.start or 0:g} and {'the end' if self.end is None else f'{self.end:g}'} s"
            raise DecodeError("no frames", f"{window}; the video has {times[-1]:.2f} s")
        return [first + i for i in segment_starts(last - first, self.count)]

    def duration(self, times: np.ndarray) -> float:
        """Seconds that the clip shows: from `start` to `end`, or to the end of the last frame.

        Raises DecodeError for a video that would last longer than MAX_SECONDS.
        """
        whole = float(times[-1]) + (last_step(times) if len(times) > 1 else 0.0)
        if whole > MAX_SECONDS:
            raise DecodeError("unreadable", f"it would last {whole:.0f} seconds")
        return max(0.0, min(whole, whole if self.end is None else self.end) - (self.start or 0.0))


_guard = threading.Lock()
_limited = 0  # how many threads are inside memory_limit
_before = (0, 0)  # RLIMIT_DATA as it was before the first of them came, and the bytes that were held then
_held = 0


@contextmanager
def memory_limit(limits: Limits) -> Iterator[None]:
    """Lets the process's data grow by `limits.memory` within the body, by that for each thread that is inside one.

    Beyond it the system gives no more and the body ends with DecodeError: FFmpeg and numpy report it, and the process
    lives on. The limit is the process's own: another thread that allocates meanwhile counts too. Setting it costs
    20 microseconds. Only Linux tells how much is held (other systems: no limit).
    """
    global _limited, _before, _held
    with _guard:
        if not _limited:
            _held = _data_of_process()
            _before = resource.getrlimit(resource.RLIMIT_DATA) if _held else (0, 0)
        _limited += 1
        _set_ceiling(limits.memory)
    try:
        yield
    except MemoryError:
        raise limits.too_much() from None
    finally:
        with _guard:
            _limited -= 1
            _set_ceiling(limits.memory)


def _set_ceiling(memory: int) -> None:
    if not _held:
        return
    soft, hard = _before
    ceilings = [_held + _limited * memory] if _limited else []
    finite = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ceilings + finite) if ceilings else soft, hard))


def _data_of_process() -> int:
    """Bytes that RLIMIT_DATA counts; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as pages:
            return int(pages.read().split()[5]) * resource.getpagesize()
    except (OSError, AttributeError):
        return 0
