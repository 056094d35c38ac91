"""Decodes videos with the ffmpeg binary, in a process of its own.

Two passes from the start of the file: the times of all frames, then the requested frames.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from alpro.errors import InputError
from alpro.shards.clip import (
    CONTAINERS,
    PROGRAM_STREAM,
    SCALING,
    Clip,
    ClipRequest,
    DecodeError,
    Limits,
    remux_hint,
)

FFMPEG_BYTES = 128 << 20  # memory that the ffmpeg binary needs for itself
# Frames of a program stream may have no time of their own. One whose guessed time is not after the
# last frame's follows that frame.
ASCENDING = "if(between(PREV_OUTPTS-PTS,0,1/TB),PREV_OUTPTS+1/(FRAME_RATE*TB),PTS)"


def decode_with_ffmpeg(request: ClipRequest) -> Clip:
    """Raises DecodeError with the reason, and InputError if ffmpeg or ffmpeg-python is not
    installed."""
    try:
        return _decode(request)
    except DecodeError as error:
        if error.reason != "unreadable":
            raise
        hint = remux_hint(request.path, error.detail)
        raise DecodeError(error.reason, error.detail + hint) from error


def _decode(request: ClipRequest) -> Clip:
    try:
        import ffmpeg
    except ImportError as error:
        raise InputError(
            f"no ffmpeg-python ({error}): pip install 'alpro-pipeline[video]'"
        ) from error
    # An empty name: `_ffmpeg` puts the file in.
    opened = ffmpeg.input(
        "",
        max_pixels=request.limits.max_pixels,
        threads=1,  # a pool has a worker per core
        # If the size of the picture changes, the filters stay: a new `select` would count from 0.
        reinit_filter=0,
        protocol_whitelist="file,pipe",
        format_whitelist=CONTAINERS,
    )
    video = opened["V:0"]  # the first video stream that is not a cover

    listing = _list_frames(video, request)
    request.limits.check_size(listing.width, listing.height)
    indices, duration = request.choose(listing.times - listing.times[0])
    # With fewer frames than segments, a frame is decoded once and repeated.
    wanted, inverse = np.unique(indices, return_inverse=True)

    frames = _select_frames(video, wanted, listing.is_rotated, request)
    return Clip(frames[inverse], duration, listing.width, listing.height)


@dataclass(frozen=True)
class _Listing:
    """The times of all frames (n,) in seconds, ascending, and the size of the first when upright.

    is_rotated: ffmpeg turns or mirrors the frames before it filters them.
    """

    times: np.ndarray
    width: int
    height: int
    is_rotated: bool


def _list_frames(video: Any, request: ClipRequest) -> _Listing:
    """Raises DecodeError if there is no frame, or if the times are not ascending."""
    with open(request.path, "rb") as file:
        is_program_stream = file.read(4) == PROGRAM_STREAM
    if is_program_stream:
        video = video.filter("setpts", ASCENDING)

    # A frame is a line: stream, times of decoding and presentation (microseconds), duration, bytes,
    # checksum.
    output = {
        "format": "framecrc",
        "enc_time_base": "1:1000000",
        "fps_mode": "passthrough",
    }
    written, log = _ffmpeg(video.output("pipe:", **output), request, "info")
    lines = written.decode().splitlines()
    microseconds = []
    for line in lines:
        if not line.startswith("#"):
            presented = line.split(",")[2]
            microseconds.append(int(presented))
    if not microseconds:
        raise DecodeError("unreadable", "no frame could be decoded")

    times = np.array(microseconds) / 1e6
    if (np.diff(times) < 0).any():
        raise DecodeError("unreadable", "frame times are not ascending")

    dimensions = next(line for line in lines if line.startswith("#dimensions"))
    width, height = dimensions.split()[2].split("x")
    is_rotated = re.search("display ?matrix: rotation", log, re.IGNORECASE) is not None
    return _Listing(times, width=int(width), height=int(height), is_rotated=is_rotated)


def _select_frames(
    video: Any,
    wanted: np.ndarray,
    is_rotated: bool,
    request: ClipRequest,
) -> np.ndarray:
    """The frames with these numbers (n, size, size, 3) uint8.

    Raises DecodeError if one is missing.
    """
    size = request.size
    is_wanted = "+".join(f"eq(n,{i})" for i in wanted)
    frames = video.filter("select", is_wanted)
    # The filter takes chroma to be centred between two pixels. PyAV and most players take it to be
    # on the left one, as MPEG-2 and H.264 define, which after a rotation is no longer on the left.
    position = {} if is_rotated else {"in_h_chr_pos": 0}
    frames = frames.filter("scale", size, size, flags="+".join(SCALING), **position)

    # Planar GBR, as in `pyav_decoder`: swscale interpolates chroma for it. Without
    # passthrough, ffmpeg repeats and drops frames of rawvideo for a constant rate.
    raw = {
        "format": "rawvideo",
        "pix_fmt": "gbrp",
        "fps_mode": "passthrough",
        "frames:v": len(wanted),
    }
    written, _ = _ffmpeg(frames.output("pipe:", **raw), request, "error")
    planes = np.frombuffer(written, np.uint8)
    if planes.size != len(wanted) * 3 * size**2:
        raise DecodeError("unreadable", "frames are missing")

    green_blue_red = planes.reshape(len(wanted), 3, size, size)
    rgb = green_blue_red[:, [2, 0, 1]].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rgb)


def _ffmpeg(
    output: Any, request: ClipRequest, level: Literal["error", "info"]
) -> tuple[bytes, str]:
    """What ffmpeg writes, and its log of this level, with limits of time and memory. The first
    error stops it: it would conceal errors with parts of other frames. Raises DecodeError."""
    import ffmpeg

    # -copyts: without it, ffmpeg treats a gap of ten seconds in a transport stream as a clock
    # error.
    options = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-xerror")
    logging = ("-loglevel", f"level+{level}")
    compiled = ffmpeg.compile(output.global_args(*options, *logging), cmd=ffmpeg_binary())
    command = [str(argument) for argument in compiled]
    command[command.index("-i") + 1] = str(request.path)  # ffmpeg-python only accepts UTF-8 names

    left = request.seconds_left()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # its children are killed with it
    )
    try:
        if hasattr(resource, "prlimit"):  # Linux
            with suppress(ProcessLookupError):  # it may have ended
                max_bytes = request.limits.memory + FFMPEG_BYTES
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (max_bytes, max_bytes))
                # If this process is killed, nothing else stops ffmpeg, which may run forever.
                max_seconds = (int(left) + 2, int(left) + 3)
                resource.prlimit(process.pid, resource.RLIMIT_CPU, max_seconds)
        written, log_bytes = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        raise request.limits.too_slow() from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    log = log_bytes.decode("utf-8", errors="replace")
    if process.returncode:
        raise ffmpeg_error(process.returncode, log, request.limits)
    return written, log


def ffmpeg_error(code: int, log: str, limits: Limits) -> DecodeError:
    """The first error in ffmpeg's log, whose lines have their level: the later ones follow from
    it."""
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")
    if code == -signal.SIGKILL:  # by the kernel, for memory
        return limits.too_much_memory()
    if code == -signal.SIGXCPU:
        return limits.too_slow()
    if "matches no streams" in log:
        return DecodeError("no video")

    size = re.search(r"size (\d+)x(\d+) (?:is invalid|exceeds)", log)
    if size:
        is_empty = "0" in size.groups()
        detail = f"{size[1]} x {size[2]} pixels"
        return DecodeError("unreadable" if is_empty else "too large", detail)
    if "Cannot allocate memory" in log or "get_buffer() failed" in log:
        return limits.too_much_memory()

    # Not the cause are the exit codes of ffmpeg's threads.
    consequences = ("Task finished", "Terminating thread")
    for line in log.splitlines():
        if "[error] " not in line and "[fatal] " not in line:
            continue
        message = line.strip().split("] ")[-1]
        if message and not message.startswith(consequences):
            # Without the path of the file, which the row has.
            return DecodeError("unreadable", message.split(" /")[0])
    return DecodeError("unreadable", "no frame could be decoded")


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version that the ffmpeg binary reports. Raises InputError if it is missing or does not
    run."""
    binary = ffmpeg_binary()
    try:
        process = subprocess.run(
            [binary, "-version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{binary}: does not run: {error}") from error
    first_line = process.stdout.partition("\n")[0]
    version = first_line.removeprefix("ffmpeg version ")
    return version.partition(" Copyright")[0]


@lru_cache(maxsize=1)
def ffmpeg_binary() -> str:
    """The ffmpeg in PATH, otherwise the one of imageio-ffmpeg. Raises InputError without either."""
    path = shutil.which("ffmpeg")
    if path:
        return path
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: imageio-ffmpeg without a binary
        raise InputError("no ffmpeg: install it, or the extra alpro-pipeline[video]") from None
