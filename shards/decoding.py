"""Decodes videos and images to frames, within limits of time, memory and pixels.

PyAV decodes in this process; the ffmpeg binary decodes what PyAV cannot, in a process of its own.

Frames: the window lies between the frames nearest to `start` and `end`, relative to the video's first frame. Its frames
are divided into segments with equal numbers of frames, as in the paper, and exactly the first frame of each is decoded.
A video without a key frame at its start, such as a cut from a broadcast, starts at its first key frame.

Colors: as converted by FFmpeg's scaler. The stream's tags (matrix, range) are respected; untagged streams are BT.601
in the limited range, for any size. High dynamic range is not tone-mapped. Transparency is dropped in videos and
composited on white in images. Of an animated image, the first frame is used.
"""

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from alpro.errors import InputError
from alpro.shards.sampling import frames_between, last_frame_seconds, segment_starts
from alpro.shards.schema import MAX_SECONDS, Reason

Decoder = Literal["auto", "pyav", "ffmpeg"]
# Containers of media only. Playlists and scripts could refer to other files or hosts and are excluded; the only
# protocol is a plain file.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
)
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
# Codecs whose bitstream marks unreferenced frames. HEVC marks them only within a temporal layer; VP9 and AV1 carry
# statistics from every frame to the next.
CODECS_WITH_UNREFERENCED_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
# FFmpeg's flags for scaling and color conversion; images use the same filter. Without accurate_rnd, a frame that
# already has the target size comes out darker by 1 of 255.
SCALING = ("bicubic", "accurate_rnd")
FAR_SECONDS, BACK_SECONDS = 10.0, 5.0  # a window after the first is read from the second before it
MAX_SIDE_PIXELS = 32_768  # twice the maximum of H.264 and HEVC
MIN_BYTES_PER_SECOND = 100  # a still picture at one frame a second has more
FFMPEG_BYTES = 128 << 20  # memory that the ffmpeg binary needs for itself
# Frames of a program stream may have no time of their own. One whose guessed time is not after the last frame's follows
# that frame.
PROGRAM_STREAM = b"\0\0\1\xba"
ASCENDING = "if(between(PREV_OUTPTS-PTS,0,1/TB),PREV_OUTPTS+1/(FRAME_RATE*TB),PTS)"


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
class _Request:
    """`count` frames of a file between `start` and `end` seconds, at `size` x `size`. The time limit starts now."""

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
        """The frames to decode, as indices into times (seconds from the first frame, ascending), and the duration."""
        total = float(times[-1]) + (last_frame_seconds(times) if len(times) > 1 else 0.0)
        if total > MAX_SECONDS:
            raise DecodeError("unreadable", f"it would last {total:.0f} seconds")
        first, last = frames_between(times, self.start, self.end)
        if first >= last:
            window = f"between {self.start or 0:g} and {'the end' if self.end is None else f'{self.end:g}'} s"
            raise DecodeError("no frames", f"{window}; the video has {times[-1]:.2f} s")
        end = total if self.end is None else min(total, self.end)
        return first + np.array(segment_starts(last - first, self.count)), max(
            0.0, end - (self.start or 0.0)
        )


def decode_video(
    path: Path,
    count: int,
    size: int,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    limits: Limits = Limits(),
) -> Clip:
    """`count` frames of a video, each the first of one of `count` equal segments, resized to `size` x `size`.

    The segments divide the frames between `start` and `end` seconds; with fewer frames than segments, frames
    repeat. The aspect ratio is not kept, as in the paper. "auto" decodes with PyAV and, if the file is unreadable,
    with ffmpeg, whose error is reported if it fails too; the time limit applies to both together.

    Raises DecodeError with the reason, and InputError if the decoder is not installed.
    """
    path = path.absolute()  # ffmpeg takes a relative name with a colon for a protocol
    _check_file(path)
    request = _Request(path, count, size, start, end, limits)
    if decoder != "ffmpeg":
        try:
            return _decode_with_pyav(request)
        except DecodeError as error:
            if decoder == "pyav" or error.reason != "unreadable":
                raise
    return _decode_with_ffmpeg(request)


def decode_image(
    path: Path, size: int, limits: Limits = Limits(), keep_ratio: bool = False
) -> Clip:
    """A still image, upright, as one frame. Raises DecodeError with the reason.

    The frame is (1, size, size, 3). With `keep_ratio` it keeps its aspect ratio: its shorter side is `size` pixels, and
    a smaller image keeps its size. The decoder cannot be interrupted, so the time limit does not apply.
    """
    _check_file(path)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as image,
        ):
            limits.check_size(*image.size)
            upright = ImageOps.exif_transpose(image)
            width, height = upright.size
            scale = min(1.0, size / min(width, height))
            target = (round(width * scale), round(height * scale)) if keep_ratio else (size, size)
            if upright.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            resized = upright.convert("RGB").resize(target, Image.Resampling.BICUBIC)
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise DecodeError("too large", "more than 178 million pixels") from None
    except (
        Exception
    ) as error:  # Pillow raises struct.error, KeyError, ZeroDivisionError for corrupt files
        raise DecodeError("unreadable", _message(error).split(" '/")[0]) from error
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def _check_file(path: Path) -> None:
    """Raises DecodeError unless the path is a regular file that is not empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an invalid file name
        raise DecodeError("missing") from None
    except OSError as error:
        raise DecodeError("unreadable", _message(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("missing")
    if not status.st_size:
        raise DecodeError("empty")


def _message(error: BaseException) -> str:
    """The message of an error, without the file name (the row has it) and the error number."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Within the body, allocations of this process fail beyond `size` bytes more than it holds, and raise MemoryError:
    FFmpeg and numpy report the failure, and the process continues. For processes of one thread, on Linux."""
    own = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(FileNotFoundError):  # another system
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        limits = [limit for limit in (held + size, *own) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), own[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, own)


# PyAV: timestamps are read first, without decoding. They determine the requested frames, which are then decoded from
# the key frame before each, or from the frame before it if no key frame lies in between. Frames are bit-exact with
# those of decoding everything (tests/shards/test_decoding.py).


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    return av


def _decode_with_pyav(request: _Request) -> Clip:
    av, limits = _pyav(), request.limits
    max_pixels = {
        "max_pixels": str(limits.max_pixels)
    }  # also enforced if the size changes within the video
    left = request.seconds_left()
    try:
        with av.open(
            str(request.path), options=OPEN_OPTIONS | max_pixels, timeout=(left, left)
        ) as container:
            stream = _video_stream(container)
            codec = stream.codec_context
            limits.check_size(codec.width, codec.height)
            if (
                not codec.width
            ):  # FFmpeg probes frames for the size if the container has none, within the limit
                raise DecodeError("unreadable", "frames without a size, or larger than the limit")
            codec.thread_count, codec.thread_type, codec.options = (
                1,
                "NONE",
                max_pixels,
            )  # a pool has a worker per core
            times, keys, origin = _timestamps(container, stream, request)
            indices, duration = request.choose((times - origin) * float(stream.time_base))
            wanted, inverse = np.unique(times[indices], return_inverse=True)
            frames, *size = _decode(container, stream, wanted.tolist(), keys, request)
            return Clip(frames[inverse], duration, *size)
    except av.error.ExitError:  # FFmpeg's error for the timeout of av.open
        raise limits.too_slow() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", _message(error)) from error


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover or thumbnail."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
            if stream.codec_context is None:
                raise DecodeError("unreadable", "no decoder for the video's codec")
            return stream
    raise DecodeError("no video")


def video_seconds(path: Path) -> float:
    """The length of a video as its container states it, without reading the frames.

    0 if it is unknown, if the file cannot be read (decoding it tells why), or if a second would have less than
    MIN_BYTES_PER_SECOND, as after a flipped bit. Raises InputError if PyAV is not installed.
    """
    av = _pyav()
    try:
        with av.open(str(path), options=OPEN_OPTIONS) as container:
            stream = _video_stream(container)
            length = (
                stream.duration * stream.time_base
                if stream.duration
                else (container.duration or 0) / av.time_base
            )
        return float(length) if 0 < length * MIN_BYTES_PER_SECOND <= path.stat().st_size else 0.0
    except (av.FFmpegError, OSError, ValueError, DecodeError):
        return 0.0


def _timestamps(
    container: Any, stream: Any, request: _Request
) -> tuple[np.ndarray, np.ndarray, int]:
    """The timestamps of the frames that the window needs, ascending; those of key frames (n, 2), when they are
    presented and decoded; and that of the video's first frame. A far window is read from a key frame before it."""
    kind, codec = container.format.name, stream.codec_context
    # A seek in a program stream may lead to another frame. B frames in AVI are numbered in the order of the file.
    if kind == "mpeg" or (kind == "avi" and codec.has_b_frames):
        raise DecodeError("unreadable", "no unique timestamps to seek")
    second, vp8 = float(1 / stream.time_base), codec.name == "vp8"
    start, end, far = request.start or 0.0, request.end, (request.start or 0.0) > FAR_SECONDS
    origin, after = stream.start_time or 0, np.inf
    if far:
        if not next(container.demux(stream)).is_keyframe:
            raise DecodeError("unreadable", "no key frame at the start")
        container.seek(int(origin + (start - BACK_SECONDS) * second), stream=stream)
    times, keys, count = list[int](), list[tuple[int, int]](), 0
    for packet in container.demux(stream):
        request.seconds_left()
        if not packet.size or not (keys or packet.is_keyframe):
            continue
        if packet.is_corrupt or packet.pts is None:
            raise DecodeError("unreadable", "frames that are corrupt or without a timestamp")
        count += 1
        if packet.is_keyframe:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        # Not shown are frames before the start of an edit list, and VP8's reference frames.
        if not packet.is_discard and not (vp8 and not memoryview(packet)[0] >> 4 & 1):
            times.append(packet.pts)
            origin = origin if far else min(packet.pts, origin if len(times) > 1 else packet.pts)
            if end is not None and packet.pts >= origin + end * second:
                after = min(after, packet.pts)
        if (
            packet.dts is not None and packet.dts >= after
        ):  # no later frame is in the window, nor the first after it
            break
    else:
        # An edit list may omit whole groups of frames, which are then missing from MP4's index.
        index = stream.index_entries
        expected = len(index) if kind.startswith("mov") else stream.frames
        if (
            index[len(index) - 1].timestamp > max(times, default=0)
            if far and len(index)
            else count < expected
        ):
            raise DecodeError("unreadable", "truncated: frames in the index are missing")
    ascending = np.sort(np.array(times, np.int64))
    if (
        not times
        or (far and ascending[0] > origin + start * second)
        or (np.diff(ascending) == 0).any()
    ):
        raise DecodeError("unreadable", "no frames with unique timestamps")
    return ascending, np.array(keys), origin


def _decode(
    container: Any, stream: Any, wanted: list[int], keys: np.ndarray, request: _Request
) -> tuple[np.ndarray, int, int]:
    """The frames with these timestamps, which are ascending, and their width and height when upright.

    Raises DecodeError if one is missing or corrupt.
    """
    codec, canvas, drawn, size = stream.codec_context, _Canvas(request.limits), 0, (0, 0)
    frames = np.empty((len(wanted), request.size, request.size, 3), np.uint8)

    def key_before(timestamp: int) -> list[int]:
        return keys[max(0, int(np.searchsorted(keys[:, 0], timestamp, side="right")) - 1)].tolist()

    for (presented, decoded), group in groupby(wanted, key_before):
        run = list(group)
        container.seek(decoded, stream=stream)
        if codec.is_open:
            codec.flush_buffers()
        latest = -np.inf
        for frame in _frames_from(container, stream, presented, set(run), request):
            if frame.pts is None or frame.pts <= latest:
                raise DecodeError("unreadable", "frame times are not ascending")
            latest = frame.pts
            # A corrupt frame is concealed and affects others. Those that are presented before the key frame may refer
            # to frames before it.
            if frame.is_corrupt and latest >= min(presented, run[0]):
                raise DecodeError("unreadable", "corrupt frames")
            if drawn < len(wanted) and latest == wanted[drawn]:
                size = canvas.draw(frame, frames[drawn])
                drawn += 1
    if drawn < len(wanted):
        raise DecodeError(
            "unreadable",
            f"corrupt, or decoding skips frames ({drawn} of {len(wanted)} were decoded)",
        )
    return frames, *size


def _frames_from(
    container: Any, stream: Any, key: int, wanted: set[int], request: _Request
) -> Iterator[Any]:
    """The frames from the key frame with this timestamp up to the last wanted one; unreferenced ones only if they are
    wanted."""
    codec, reached = stream.codec_context, False
    for packet in container.demux(stream):
        request.seconds_left()
        reached = reached or packet.pts == key
        if reached:
            if codec.name in CODECS_WITH_UNREFERENCED_FRAMES:
                codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from codec.decode(packet)
            wanted.discard(packet.pts)
            if not wanted:
                yield from codec.decode(None)  # those that the decoder holds
                return


class _Canvas:
    """Draws the frames of a video upright and scaled. It keeps the scaler and the orientation from frame to frame."""

    def __init__(self, limits: Limits) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.limits, self.scaler = limits, VideoReformatter()
        self.matrix: tuple[int, ...] | None = None
        self.scaling = sum(Interpolation[name.upper()] for name in SCALING)

    def draw(self, frame: Any, out: np.ndarray) -> tuple[int, int]:
        """Writes a frame to (size, size, 3) uint8. Returns its width and height when upright."""
        self.limits.check_size(frame.width, frame.height)
        a, b, c, d = self.matrix = self.matrix or _display_matrix(frame)
        rotated = abs(b) > abs(a)
        across, down = (c, b) if rotated else (a, d)
        out = out[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        # Planar GBR: swscale interpolates chroma for it, and it is faster than rgb24.
        scaled = self.scaler.reformat(
            frame, len(out), len(out), "gbrp", interpolation=self.scaling, threads=1
        )
        out[:] = scaled.to_ndarray().transpose((1, 0, 2) if rotated else (0, 1, 2))
        return (frame.height, frame.width) if rotated else (frame.width, frame.height)


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """The display matrix (a, b, c, d) of a frame: the point (x, y) is shown at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import Type

    # Read from a small copy: a frame and its side data form a reference cycle until the next garbage collection.
    side = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1).side_data.get(
        Type.DISPLAYMATRIX
    )
    return (
        (1, 0, 0, 1)
        if side is None
        else tuple(np.frombuffer(side, np.int32)[[0, 1, 3, 4]].tolist())
    )


# The ffmpeg binary, in two passes from the start of the file: the times of all frames, then the requested frames.


def _decode_with_ffmpeg(request: _Request) -> Clip:
    """Raises DecodeError with the reason, and InputError if ffmpeg or ffmpeg-python is not installed."""
    try:
        import ffmpeg
    except ImportError as error:
        raise InputError(
            f"no ffmpeg-python ({error}): pip install 'alpro-pipeline[video]'"
        ) from error
    allowed = {"protocol_whitelist": "file,pipe", "format_whitelist": CONTAINERS}
    source = ffmpeg.input("", max_pixels=request.limits.max_pixels, threads=1, **allowed)[
        "V"
    ]  # no cover images
    # One line a frame: stream, times of decoding and presentation (microseconds), duration, bytes, checksum.
    listing = {"format": "framecrc", "enc_time_base": "1:1000000", "fps_mode": "passthrough"}
    with open(request.path, "rb") as file:
        timed = source.filter("setpts", ASCENDING) if file.read(4) == PROGRAM_STREAM else source
    lines = _ffmpeg(timed.output("pipe:", **listing), request).decode().splitlines()
    times = np.array([int(line.split(",")[2]) for line in lines if not line.startswith("#")]) / 1e6
    if not len(times) or (np.diff(times) < 0).any():
        raise DecodeError(
            "unreadable",
            "frame times are not ascending" if len(times) else "no frame could be decoded",
        )
    width, height = map(
        int, next(line for line in lines if line.startswith("#dimensions")).split()[2].split("x")
    )
    request.limits.check_size(width, height)
    indices, duration = request.choose(times - times[0])
    wanted, inverse = np.unique(indices, return_inverse=True)
    frames = source.filter("select", "+".join(f"eq(n,{i})" for i in wanted))
    frames = frames.filter("scale", request.size, request.size, flags="+".join(SCALING))
    raw = {
        "format": "rawvideo",
        "pix_fmt": "gbrp",
        "fps_mode": "passthrough",
        "frames:v": len(wanted),
    }
    planes = np.frombuffer(_ffmpeg(frames.output("pipe:", **raw), request), np.uint8)
    if planes.size != len(wanted) * 3 * request.size**2:
        raise DecodeError("unreadable", "frames are missing")
    green_blue_red = planes.reshape(len(wanted), 3, request.size, request.size)[inverse]
    return Clip(
        np.ascontiguousarray(green_blue_red[:, [2, 0, 1]].transpose(0, 2, 3, 1)),
        duration,
        width,
        height,
    )


def _ffmpeg(output: Any, request: _Request) -> bytes:
    """What ffmpeg writes, with limits of time and memory. The first error stops it: it would conceal errors with parts
    of other frames. Raises DecodeError."""
    import ffmpeg

    # -copyts: without it, ffmpeg treats a gap of ten seconds in a transport stream as a clock error.
    options = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-loglevel", "error", "-xerror")
    command = ffmpeg.compile(output.global_args(*options), cmd=ffmpeg_binary())
    command[command.index("-i") + 1] = str(request.path)  # ffmpeg-python only accepts UTF-8 names
    left, pipe = request.seconds_left(), subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        if hasattr(resource, "prlimit"):  # Linux
            with suppress(ProcessLookupError):  # it may have ended
                max_bytes = request.limits.memory + FFMPEG_BYTES
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (max_bytes, max_bytes))
                # If this process is killed, nothing else stops ffmpeg, which may run forever.
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(left) + 2, int(left) + 3))
        written, log = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        raise request.limits.too_slow() from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise _ffmpeg_error(
            process.returncode, log.decode("utf-8", errors="replace"), request.limits
        )
    return written


def _ffmpeg_error(code: int, log: str, limits: Limits) -> DecodeError:
    """The first error in ffmpeg's log: the later ones follow from it."""
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")
    if "matches no streams" in log:
        return DecodeError("no video")
    if size := re.search(r"size (\d+)x(\d+) (?:is invalid|exceeds)", log):
        empty = "0" in size.groups()
        return DecodeError("unreadable" if empty else "too large", f"{size[1]} x {size[2]} pixels")
    if "Cannot allocate memory" in log or "get_buffer() failed" in log:
        return limits.too_much_memory()
    # Not the cause are the exit codes of ffmpeg's threads.
    messages = [line.strip().split("] ")[-1] for line in log.splitlines()]
    causes = [
        text
        for text in messages
        if text and not text.startswith(("Task finished", "Terminating thread"))
    ]
    return DecodeError(
        "unreadable", causes[0].split(" /")[0] if causes else "no frame could be decoded"
    )


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version that the ffmpeg binary reports. Raises InputError if it is missing or does not run."""
    binary = ffmpeg_binary()
    try:
        output = subprocess.run(
            [binary, "-version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{binary}: does not run: {error}") from error
    return output.partition("\n")[0].removeprefix("ffmpeg version ").partition(" Copyright")[0]


@lru_cache(maxsize=1)
def ffmpeg_binary() -> str:
    """The ffmpeg in PATH, otherwise the one of imageio-ffmpeg. Raises InputError if neither exists."""
    if path := shutil.which("ffmpeg"):
        return path
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: imageio-ffmpeg without a binary
        raise InputError("no ffmpeg: install it, or the extra alpro-pipeline[video]") from None
