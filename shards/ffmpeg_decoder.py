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
from functools import lru_cache
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.clip import CONTAINERS, SCALING, Clip, ClipRequest, DecodeError, Limits

FFMPEG_BYTES = 128 << 20  # memory that the ffmpeg binary needs for itself
# Frames of a program stream may have no time of their own. One whose guessed time is not after the
# last frame's follows that frame.
PROGRAM_STREAM = b"\0\0\1\xba"
ASCENDING = "if(between(PREV_OUTPTS-PTS,0,1/TB),PREV_OUTPTS+1/(FRAME_RATE*TB),PTS)"


def decode_with_ffmpeg(request: ClipRequest) -> Clip:
    """Raises DecodeError with the reason, and InputError if ffmpeg or ffmpeg-python is not
    installed."""
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
        protocol_whitelist="file,pipe",
        format_whitelist=CONTAINERS,
    )
    video = opened["V"]  # no cover images

    times, width, height = _list_frames(video, request)
    request.limits.check_size(width, height)
    indices, duration = request.choose(times - times[0])
    # With fewer frames than segments, a frame is decoded once and repeated.
    wanted, inverse = np.unique(indices, return_inverse=True)

    is_wanted = "+".join(f"eq(n,{i})" for i in wanted)
    frames = video.filter("select", is_wanted)
    frames = frames.filter("scale", request.size, request.size, flags="+".join(SCALING))

    # Planar GBR, as in `pyav_decoder`: swscale interpolates chroma for it. Without
    # passthrough, ffmpeg repeats and drops frames of rawvideo for a constant rate.
    raw = {
        "format": "rawvideo",
        "pix_fmt": "gbrp",
        "fps_mode": "passthrough",
        "frames:v": len(wanted),
    }
    written = _ffmpeg(frames.output("pipe:", **raw), request)
    planes = np.frombuffer(written, np.uint8)
    if planes.size != len(wanted) * 3 * request.size**2:
        raise DecodeError("unreadable", "frames are missing")

    planes = planes.reshape(len(wanted), 3, request.size, request.size)
    green_blue_red = planes[inverse]
    rgb = green_blue_red[:, [2, 0, 1]].transpose(0, 2, 3, 1)
    return Clip(np.ascontiguousarray(rgb), duration, width, height)


def _list_frames(video: Any, request: ClipRequest) -> tuple[np.ndarray, int, int]:
    """The times of all frames (n,), seconds, and their width and height. Raises DecodeError."""
    with open(request.path, "rb") as file:
        is_program_stream = file.read(4) == PROGRAM_STREAM
    if is_program_stream:
        video = video.filter("setpts", ASCENDING)

    # A frame is a line: stream, times of decoding and presentation (microseconds), duration, bytes,
    # checksum.
    listing = {
        "format": "framecrc",
        "enc_time_base": "1:1000000",
        "fps_mode": "passthrough",
    }
    written = _ffmpeg(video.output("pipe:", **listing), request)
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
    return times, int(width), int(height)


def _ffmpeg(output: Any, request: ClipRequest) -> bytes:
    """What ffmpeg writes, with limits of time and memory. The first error stops it: it would
    conceal errors with parts of other frames. Raises DecodeError."""
    import ffmpeg

    # -copyts: without it, ffmpeg treats a gap of ten seconds in a transport stream as a clock
    # error.
    options = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-loglevel", "error", "-xerror")
    compiled = ffmpeg.compile(output.global_args(*options), cmd=ffmpeg_binary())
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
        written, log = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        raise request.limits.too_slow() from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    if process.returncode:
        text = log.decode("utf-8", errors="replace")
        raise _ffmpeg_error(process.returncode, text, request.limits)
    return written


def _ffmpeg_error(code: int, log: str, limits: Limits) -> DecodeError:
    """The first error in ffmpeg's log: the later ones follow from it."""
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")
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
