"""Decodes what PyAV cannot open: ffmpeg, in a process of its own, makes a clean, lossless copy."""

import errno
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from alpro.errors import InputError
from alpro.shards.clip import Clip, ClipRequest, DecodeError, Limits
from alpro.shards.in_order import decode_in_order
from alpro.shards.video_file import CONTAINERS

MAX_COPY_BYTES = 4 << 30  # maximum size of the copy on disk
# As in `in_order`, a frame with a guessed time, or after a joint, follows the last one.
ASCENDING = "if(gte(PREV_OUTPTS,PTS),PREV_OUTPTS+1/(FRAME_RATE*TB),PTS)"


def decode_copy(request: ClipRequest) -> Clip:
    """Decode a clip from a copy by ffmpeg.

    Raises:
        DecodeError: With the reason.
        InputError: If ffmpeg or ffmpeg-python is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="alpro-") as folder:
        # A name that neither ffmpeg nor ffmpeg-python interprets.
        video = Path(folder) / "video"
        video.symlink_to(request.path)
        copy = video.with_suffix(".mkv")
        try:
            command = _copy_command(video, copy, request.limits)
        except (ImportError, RuntimeError) as error:  # there is no module, or no binary
            raise InputError(
                f"PyAV cannot open a video, and there is no ffmpeg ({error}): "
                "pip install ffmpeg-python imageio-ffmpeg"
            ) from error
        _run(command, log=video.with_suffix(".log"), request=request)
        clip = decode_in_order(replace(request, path=copy))
        if copy.stat().st_size >= MAX_COPY_BYTES:  # where ffmpeg stops
            raise DecodeError(
                "too large", f"a copy has more than {MAX_COPY_BYTES >> 30} GiB"
            )
        return clip


def _copy_command(video: Path, copy: Path, limits: Limits) -> list[str]:
    """Return the command that transcodes a video to FFV1 in Matroska, upright.

    The first error stops it: ffmpeg would conceal it with parts of other frames.
    """
    import ffmpeg

    stream = ffmpeg.input(
        str(video),
        max_pixels=limits.max_pixels,
        threads=1,  # a pool has a worker per core
        protocol_whitelist="file,pipe",
        format_whitelist=CONTAINERS,
    )["V:0"]  # the first video stream that is not a cover
    encoding = {"vcodec": "ffv1", "threads": 1, "fs": MAX_COPY_BYTES}
    timing = {"fps_mode": "passthrough", "enc_time_base": "1:1000000"}
    output = stream.filter("setpts", ASCENDING).output(str(copy), **encoding, **timing)

    # -copyts: without it, ffmpeg treats a gap of ten seconds in a transport stream as a clock
    # error. -timelimit: if this process is killed, nothing else stops ffmpeg.
    options = ("-nostdin", "-copyts", "-hide_banner", "-nostats", "-xerror")
    limit = ("-timelimit", int(limits.timeout) + 2, "-loglevel", "error")
    command = ffmpeg.compile(output.global_args(*options, *limit), cmd=ffmpeg_binary())
    return [str(word) for word in command]


def _run(command: list[str], log: Path, request: ClipRequest) -> None:
    """Run ffmpeg within the time limit of a request. Its messages go to the file `log`."""
    try:
        with log.open("wb") as file:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                timeout=request.seconds_left(),
            )
    except subprocess.TimeoutExpired:
        raise request.limits.too_slow() from None
    if ended.returncode:
        text = log.read_text("utf-8", "replace")
        raise ffmpeg_error(ended.returncode, text, request.limits)


def ffmpeg_error(code: int, log: str, limits: Limits) -> Exception:
    """Return the reason why ffmpeg failed."""
    if "No space left on device" in log:  # no fault of the file
        return OSError(errno.ENOSPC, "No space left for a copy", tempfile.gettempdir())
    if "Cannot allocate memory" in log or code == -signal.SIGKILL:  # by the kernel
        return limits.too_much_memory()
    if code < 0:
        return DecodeError("crashed", f"ffmpeg ended by {signal.Signals(-code).name}")

    # Later errors follow from the first. Before it are the names of parts of ffmpeg, after it may
    # be the path, which the row has.
    first_line = log.strip().partition("\n")[0]
    message = first_line.split("] ")[-1].split(" /")[0]
    return DecodeError("unreadable", message or "no frame could be decoded")


def ffmpeg_binary() -> str:
    """Return the ffmpeg in PATH, otherwise the one of imageio-ffmpeg.

    Raises:
        ImportError: If there is no imageio-ffmpeg either.
        RuntimeError: If it has no binary.
    """
    path = shutil.which("ffmpeg")
    if path:
        return path
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()
