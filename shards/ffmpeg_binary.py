"""Frames of a video by the ffmpeg binary, in processes of its own: for what PyAV refuses, and what crashes it."""

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
from alpro.shards.clip import CONTAINERS, SCALING, Clip, DecodeError, Request, resource

SHOWN = re.compile(rb"\[Parsed_showinfo_\d+ @ \w+\] n: *\d+ pts:.* pts_time:(\S+) .* s:(\d+)x(\d+) ")
COMPLAINTS = ("error", "invalid", "not found", "missing", "corrupt", "partial file")
# Lines that contain such words but not the cause: the file's metadata, and exit codes of ffmpeg's threads.
NO_CAUSE = ("Input #", "Parsed_", "Task finished", "Terminating thread")
OWN_BYTES = 128 << 20  # that ffmpeg takes for itself, whatever it decodes
LOG_BYTES = 64 << 10  # of what ffmpeg complains of, its first word is what counts


def by_ffmpeg(request: Request) -> Clip:
    """Two passes: the times of all frames, then the wanted ones; both decode everything from the beginning.

    The first error ends it: what ffmpeg shows after one is patched from other frames, and nobody filmed that.
    Raises DecodeError with the reason, and InputError where ffmpeg or ffmpeg-python is missing.
    """
    try:
        import ffmpeg
    except ImportError as error:
        raise InputError(f"no ffmpeg-python ({error}): pip install 'alpro-pipeline[video]'") from error
    source = ffmpeg.input(
        "",  # the name comes later: ffmpeg-python takes none that is not UTF-8
        protocol_whitelist="file,pipe",
        format_whitelist=CONTAINERS,
        max_pixels=request.limits.max_pixels,
        threads=1,
    )["V"]  # moving pictures, no covers
    times, size = _shown_frames(source.filter("showinfo", checksum=0), request)
    stamps = np.array(times) - times[0]
    wanted = request.wanted(stamps)
    frames = _pick(source, sorted(set(wanted)), request)
    place = {index: i for i, index in enumerate(sorted(set(wanted)))}
    return Clip(frames[[place[i] for i in wanted]], request.duration(stamps), *size)


def _shown_frames(stream: Any, request: Request) -> tuple[list[float], tuple[int, int]]:
    """The times of all frames, ascending, and the size of the last. The log is read as it comes: it is long."""
    times: list[float] = []
    size, told = (0, 0), b""
    with _ffmpeg(stream.output("pipe:", format="null", fps_mode="passthrough"), request, "info") as (process, _, log):
        for line in log:
            if shown := SHOWN.match(line):
                times.append(float(shown[1]))
                shown_size = int(shown[2]), int(shown[3])
                if shown_size != size:  # it may change within a video
                    request.limits.check_size(*shown_size)
                size = shown_size
            elif len(told) < LOG_BYTES:
                told += line
    if process.returncode or not times:
        raise _reason(process.returncode, told, request)
    if (np.diff(times) < 0).any() or not np.isfinite(times).all():
        raise DecodeError("unreadable", "frames whose times do not ascend")
    return times, size


def _pick(source: Any, wanted: list[int], request: Request) -> np.ndarray:
    """The frames of the given numbers, ascending: (n, size, size, 3) uint8."""
    size = request.size
    chosen = "+".join(f"eq(n,{i})" for i in wanted)
    picked = source.filter("select", chosen).filter("scale", size, size, flags="+".join(SCALING))
    most = {"frames:v": len(wanted)}
    output = picked.output("pipe:", format="rawvideo", pix_fmt="gbrp", fps_mode="passthrough", **most)
    with _ffmpeg(output, request, "error") as (process, pictures, log), ThreadPoolExecutor(1) as beside:
        told = beside.submit(_beginning, log)
        planes = np.empty((len(wanted), 3, size, size), np.uint8)  # green, blue, red
        filled = pictures.readinto(planes.data.cast("B"))
    if process.returncode or filled < planes.nbytes:
        raise _reason(process.returncode, told.result(), request)
    return np.ascontiguousarray(planes[:, [2, 0, 1]].transpose(0, 2, 3, 1))


@contextmanager
def _ffmpeg(
    output: Any, request: Request, loglevel: str
) -> Iterator[tuple[subprocess.Popen[bytes], BufferedReader, BufferedReader]]:
    """A run of ffmpeg: the process, what it gives and what it says. Behind the body it has ended: it is killed with
    its group when the time is over or the body fails, and gets no more memory than the limit."""
    import ffmpeg

    # -copyts: or ffmpeg takes a pause of ten seconds in a transport stream for a mistake of its clock.
    arguments = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-loglevel", loglevel, "-xerror")
    command = ffmpeg.compile(output.global_args(*arguments), cmd=ffmpeg_binary())
    command[command.index("-i") + 1] = str(request.path)
    left = request.seconds_left()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    late = threading.Event()

    def end_it() -> None:
        late.set()
        _kill_group(process)

    timer = threading.Timer(left, end_it)
    timer.start()
    try:
        if hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):  # it may have ended
                most = request.limits.memory + OWN_BYTES
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (most, most))
                # If this process is killed nobody ends that one, which may never come to an end by itself.
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(left) + 2, int(left) + 3))
        assert isinstance(process.stdout, BufferedReader)
        assert isinstance(process.stderr, BufferedReader)
        with process.stdout as pictures, process.stderr as log:
            yield process, pictures, log
        process.wait()
    finally:
        timer.cancel()
        _kill_group(process)
        process.wait()
    if late.is_set():
        raise request.limits.too_slow()


def _beginning(log: BufferedReader) -> bytes:
    """Reads to the end, so that who writes never waits, and keeps the first that was said."""
    found = log.read(LOG_BYTES)
    while log.read(LOG_BYTES):
        pass
    return found


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _reason(code: int, log: bytes, request: Request) -> DecodeError:
    """The first thing that ffmpeg complained of: what follows it is consequence."""
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")
    said = log.decode("utf-8", errors="replace")
    if "matches no streams" in said:
        return DecodeError("no video")
    if refused := re.search(r"size (\d+)x(\d+) (?:is invalid|exceeds)|max pixel count", said):
        if "0" in (refused[1], refused[2]):
            return DecodeError("unreadable", "pictures of no size")
        return DecodeError("too large", f"{refused[1]} x {refused[2]} pixels" if refused[1] else "")
    if "Cannot allocate memory" in said or "get_buffer() failed" in said:
        return request.limits.too_much()
    for line in said.splitlines():
        message = line.strip().split("] ")[-1]
        if not message.startswith(NO_CAUSE) and any(word in message.lower() for word in COMPLAINTS):
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
    """The ffmpeg of the system, or the one that imageio-ffmpeg brings. Raises InputError where there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: imageio-ffmpeg came without the binary
        raise InputError("no ffmpeg: install it, or the extra alpro-pipeline[video]") from None
