"""Decodes videos with the ffmpeg binary in a subprocess: for files that PyAV rejects or that crash it."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.decoding.request import CONTAINERS, SCALING, Clip, DecodeError, DecodeRequest, resource

SHOWINFO_LINE = re.compile(rb"\[Parsed_showinfo_\d+ @ \w+\] n: *\d+ pts:.* pts_time:(\S+) .* s:(\d+)x(\d+) ")
ERROR_WORDS = ("error", "invalid", "not found", "missing", "corrupt", "partial file")
# Lines that contain such words but not the cause: metadata of the file, and exit codes of ffmpeg's threads.
IGNORED_PREFIXES = ("Input #", "Parsed_", "Task finished", "Terminating thread")
FFMPEG_BYTES = 128 << 20  # memory that ffmpeg needs for itself
LOG_BYTES = 64 << 10  # of ffmpeg's log: the first error is the cause


def decode_with_ffmpeg(request: DecodeRequest) -> Clip:
    """Decodes in two passes: the times of all frames, then the requested frames. Both read the file from the start.

    The first error stops decoding: ffmpeg would conceal it with parts of other frames. Raises DecodeError with the
    reason, and InputError if ffmpeg or ffmpeg-python is not installed.
    """
    try:
        import ffmpeg
    except ImportError as error:
        raise InputError(f"no ffmpeg-python ({error}): pip install 'alpro-pipeline[video]'") from error
    source = ffmpeg.input(
        "",  # set later: ffmpeg-python only accepts UTF-8 names
        protocol_whitelist="file,pipe",
        format_whitelist=CONTAINERS,
        max_pixels=request.limits.max_pixels,
        threads=1,
    )["V"]  # video streams without cover images
    times, size = _frame_times(source.filter("showinfo", checksum=0), request)
    stamps = np.array(times) - times[0]
    indices = request.frame_indices(stamps)
    frames = _select_frames(source, sorted(set(indices)), request)
    position = {index: i for i, index in enumerate(sorted(set(indices)))}
    return Clip(frames[[position[i] for i in indices]], request.duration(stamps), *size)


def _frame_times(stream: Any, request: DecodeRequest) -> tuple[list[float], tuple[int, int]]:
    """The times of all frames, ascending, and the size of the last one. The log is long and read as a stream."""
    times: list[float] = []
    size, errors = (0, 0), b""
    with _ffmpeg(stream.output("pipe:", format="null", fps_mode="passthrough"), request, "info") as (process, _, log):
        for line in log:
            if shown := SHOWINFO_LINE.match(line):
                times.append(float(shown[1]))
                shown_size = int(shown[2]), int(shown[3])
                if shown_size != size:  # it can change within a video
                    request.limits.check_size(*shown_size)
                size = shown_size
            elif len(errors) < LOG_BYTES:
                errors += line
    if process.returncode or not times:
        raise _reason(process.returncode, errors, request)
    if (np.diff(times) < 0).any() or not np.isfinite(times).all():
        raise DecodeError("unreadable", "frame times are not ascending")
    return times, size


def _select_frames(source: Any, indices: list[int], request: DecodeRequest) -> np.ndarray:
    """The frames at the indices, which are ascending: (n, size, size, 3) uint8."""
    size = request.size
    condition = "+".join(f"eq(n,{i})" for i in indices)
    selected = source.filter("select", condition).filter("scale", size, size, flags="+".join(SCALING))
    frame_count = {"frames:v": len(indices)}
    output = selected.output("pipe:", format="rawvideo", pix_fmt="gbrp", fps_mode="passthrough", **frame_count)
    with _ffmpeg(output, request, "error") as (process, frames, log), ThreadPoolExecutor(1) as thread:
        errors = thread.submit(_read_log, log)
        planes = np.empty((len(indices), 3, size, size), np.uint8)  # green, blue, red
        filled = frames.readinto(planes.data.cast("B"))
    if process.returncode or filled < planes.nbytes:
        raise _reason(process.returncode, errors.result(), request)
    return np.ascontiguousarray(planes[:, [2, 0, 1]].transpose(0, 2, 3, 1))


@contextmanager
def _ffmpeg(
    output: Any, request: DecodeRequest, loglevel: str
) -> Iterator[tuple[subprocess.Popen[bytes], BufferedReader, BufferedReader]]:
    """Runs ffmpeg and yields the process, its output and its log. The process ends with the body: it is killed with its
    process group after the time limit or if the body fails. Its memory is limited."""
    import ffmpeg

    # -copyts: without it, ffmpeg treats a gap of ten seconds in a transport stream as a clock error.
    arguments = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-loglevel", loglevel, "-xerror")
    command = ffmpeg.compile(output.global_args(*arguments), cmd=ffmpeg_binary())
    command[command.index("-i") + 1] = str(request.path)
    left = request.seconds_left()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    timed_out = threading.Event()

    def kill() -> None:
        timed_out.set()
        _kill_group(process)

    timer = threading.Timer(left, kill)
    timer.start()
    try:
        if hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):  # it may have ended
                max_bytes = request.limits.memory + FFMPEG_BYTES
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (max_bytes, max_bytes))
                # If this process is killed, nothing else stops ffmpeg, which may run forever.
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(left) + 2, int(left) + 3))
        assert isinstance(process.stdout, BufferedReader)
        assert isinstance(process.stderr, BufferedReader)
        with process.stdout as frames, process.stderr as log:
            yield process, frames, log
        process.wait()
    finally:
        timer.cancel()
        _kill_group(process)
        process.wait()
    if timed_out.is_set():
        raise request.limits.timeout_error()


def _read_log(log: BufferedReader) -> bytes:
    """Reads the log to its end, so that ffmpeg never blocks, and returns its first LOG_BYTES."""
    start = log.read(LOG_BYTES)
    while log.read(LOG_BYTES):
        pass
    return start


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _reason(code: int, log: bytes, request: DecodeRequest) -> DecodeError:
    """The first error in ffmpeg's log: the later ones follow from it."""
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")
    text = log.decode("utf-8", errors="replace")
    if "matches no streams" in text:
        return DecodeError("no video")
    if size := re.search(r"size (\d+)x(\d+) (?:is invalid|exceeds)|max pixel count", text):
        if "0" in (size[1], size[2]):
            return DecodeError("unreadable", "frames without a size")
        return DecodeError("too large", f"{size[1]} x {size[2]} pixels" if size[1] else "")
    if "Cannot allocate memory" in text or "get_buffer() failed" in text:
        return request.limits.memory_error()
    for line in text.splitlines():
        message = line.strip().split("] ")[-1]
        if not message.startswith(IGNORED_PREFIXES) and any(word in message.lower() for word in ERROR_WORDS):
            return DecodeError("unreadable", message.split(" /")[0])
    return DecodeError("unreadable", "no frame could be decoded")


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version that the ffmpeg binary reports. Raises InputError if it is missing or does not run."""
    binary = ffmpeg_binary()
    try:
        output = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{binary}: does not run: {error}") from error
    return output.partition("\n")[0].removeprefix("ffmpeg version ").partition(" Copyright")[0]


@lru_cache(maxsize=1)
def ffmpeg_binary() -> str:
    """The ffmpeg in PATH, otherwise the one of imageio-ffmpeg. Raises InputError if there is none."""
    if path := shutil.which("ffmpeg"):
        return path
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: imageio-ffmpeg without a binary
        raise InputError("no ffmpeg: install it, or the extra alpro-pipeline[video]") from None
