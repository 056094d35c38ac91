"""Videos and images to frames: PyAV in process where it can, the ffmpeg binary (by ffmpeg-python) where it cannot."""

import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from shards.sampling import segment_starts
from shards.schema import InputError

Decoder = Literal["auto", "pyav", "ffmpeg"]

# Containers that hold media and nothing else: playlists and scripts, which could name other files or hosts, are
# not among them, and no protocol but a plain file is opened.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


class DecodeError(Exception):
    """Why no frames came from a file."""


@dataclass(frozen=True)
class Clip:
    """Frames (n, size, size, 3) uint8 and what was seen of the file: seconds and pixels."""

    frames: np.ndarray
    duration: float
    width: int
    height: int


def decode_video(
    path: Path,
    count: int,
    size: int,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    timeout: float = 60.0,
) -> Clip:
    """`count` frames of a video, each the first of one of `count` equal segments, resized to `size` x `size`.

    The segments divide the frames between `start` and `end` seconds; where there are fewer frames than segments
    some come twice. Sizes are not kept in proportion, as in the paper. "auto" decodes by PyAV and, where that
    fails, by ffmpeg, whose reason is reported if it fails too.

    Raises DecodeError with the reason, and InputError where the decoder itself is missing.
    """
    path = path.absolute()  # a relative name with a colon would be a protocol to ffmpeg
    if _bytes_of(path) == 0:
        raise DecodeError("the file is empty")
    if decoder == "ffmpeg":
        return _by_ffmpeg(path, count, size, start, end, timeout)
    try:
        with _time_limit(timeout):
            return _by_pyav(path, count, size, start, end)
    except DecodeError as error:
        if decoder == "pyav" or not error.args[0].startswith("unreadable"):
            raise
    return _by_ffmpeg(path, count, size, start, end, timeout)


def decode_image(path: Path, size: int) -> Clip:
    """A still image as one frame (1, size, size, 3). Raises DecodeError with the reason."""
    from PIL import Image, ImageOps

    _bytes_of(path)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as image:
            upright = ImageOps.exif_transpose(image)
            width, height = upright.size
            resized = upright.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # whatever a broken file brings up in Pillow: struct.error, KeyError, ZeroDivisionError
        raise DecodeError(f"unreadable image: {_reason(error)}".split(" '/")[0]) from error
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def _bytes_of(path: Path) -> int:
    """The size of a file. Raises DecodeError where there is none."""
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise DecodeError("no such file") from None
    except OSError as error:
        raise DecodeError(f"unreadable: {_reason(error)}") from None
    if not stat.S_ISREG(about.st_mode):
        raise DecodeError("no such file")
    return about.st_size


@dataclass(frozen=True)
class _Timeline:
    """The frames of a video stream as the container lists them, times in seconds of the first frame's clock."""

    stamps: list[int]  # presentation stamps in order
    keys: list[int]  # those of the key frames
    times: np.ndarray


def _by_pyav(path: Path, count: int, size: int, start: float | None, end: float | None) -> Clip:
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    try:
        with av.open(str(path), options=OPTIONS) as container:
            if not container.streams.video:
                raise DecodeError("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            timeline = _timeline(container, stream)
            wanted = _wanted(timeline.times, count, start, end)
            frames, turned = _frames_at(container, stream, timeline, wanted, size)
            width, height = stream.codec_context.width, stream.codec_context.height
            if turned:
                width, height = height, width
    except (av.FFmpegError, ValueError, EOFError, MemoryError) as error:
        raise DecodeError(f"unreadable: {_reason(error)}") from error
    duration = _duration(timeline.times, start, end)
    return Clip(frames, duration, width, height)


def _timeline(container, stream) -> _Timeline:
    """Reads every packet's stamp without decoding any."""
    packets = [(p.pts, p.is_keyframe, p.is_corrupt) for p in container.demux(stream) if p.size and not p.is_discard]
    if not packets:
        raise DecodeError("unreadable: no frames in the video stream")
    if any(corrupt for _, _, corrupt in packets) or len(packets) < stream.frames:
        raise DecodeError(f"unreadable: cut short, {len(packets)} of {stream.frames or 'its'} frames are there")
    # AVI numbers packets in the order in which they lie, which is not that of the frames where some are bidirectional.
    timeless = container.format.name == "avi" and stream.codec_context.has_b_frames
    if timeless or any(p[0] is None for p in packets) or len({p[0] for p in packets}) < len(packets):
        raise DecodeError("unreadable: frames without times of their own")
    stamps = sorted(pts for pts, _, _ in packets)
    times = (np.array(stamps, np.float64) - stamps[0]) * float(stream.time_base)
    return _Timeline(stamps, sorted(pts for pts, key, _ in packets if key), times)


def _wanted(times: np.ndarray, count: int, start: float | None, end: float | None) -> list[int]:
    """The frames to take, as indices into times (seconds, ascending)."""
    inside = np.flatnonzero((times >= (start or 0.0) - 1e-6) & (times < (np.inf if end is None else end) - 1e-6))
    if not len(inside):
        raise DecodeError(
            f"no frames between {start or 0:g} and {'the end' if end is None else f'{end:g}'} s; "
            f"the video has {times[-1]:.2f} s"
        )
    return [int(inside[i]) for i in segment_starts(len(inside), count)]


def _duration(times: np.ndarray, start: float | None, end: float | None) -> float:
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    whole = float(times[-1]) + step
    return min(whole, whole if end is None else end) - (start or 0.0)


def _frames_at(container, stream, timeline: _Timeline, wanted: list[int], size: int) -> tuple[np.ndarray, bool]:
    """Decodes the wanted frames, jumping to a key frame wherever one lies between two of them; and tells whether the
    video is to be shown on its side."""
    targets = [timeline.stamps[i] for i in wanted]
    found: dict[int, np.ndarray] = {}
    turns = 0
    for segment in _segments(sorted(set(targets)), timeline.keys):
        container.seek(segment[0], stream=stream, backward=True, any_frame=False)
        pending = set(segment)
        last = None
        for frame in container.decode(stream):
            if last is not None and frame.pts is not None and frame.pts <= last:
                raise DecodeError("unreadable: frames whose times do not ascend")
            last = frame.pts
            if frame.pts in pending:
                turns = round((frame.rotation or 0) / 90) % 4
                found[frame.pts] = _pixels(frame, size, turns)
                pending.discard(frame.pts)
            if not pending or (frame.pts is not None and frame.pts > segment[-1]):
                break
        if pending:
            share = len(found) / len(set(targets))
            raise DecodeError(
                f"unreadable: decoding ends early or skips frames ({share:.0%} of the wanted frames decoded)"
            )
    return np.stack([found[stamp] for stamp in targets]), turns % 2 == 1


def _segments(targets: list[int], keys: list[int]) -> list[list[int]]:
    """Targets in runs that one seek serves: a new run begins where a key frame lies between two targets."""
    runs = [[targets[0]]]
    for last, this in pairwise(targets):
        if any(last < key <= this for key in keys):
            runs.append([this])
        else:
            runs[-1].append(this)
    return runs


def _pixels(frame, size: int, turns: int) -> np.ndarray:
    """A decoded frame as (size, size, 3) uint8, after `turns` quarter turns to the left."""
    pixels = frame.reformat(width=size, height=size, format="rgb24", interpolation="BICUBIC").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _by_ffmpeg(path: Path, count: int, size: int, start: float | None, end: float | None, timeout: float) -> Clip:
    """Two passes of the ffmpeg binary in processes of their own: the times of all frames, then the wanted ones.

    The first error ends it: what ffmpeg shows after one is patched from other frames, and nobody filmed that.
    """
    try:
        import ffmpeg
    except ImportError as error:
        raise InputError(f"no ffmpeg-python ({error}): pip install 'alpro-pipeline[video]'") from error
    source = ffmpeg.input(str(path), protocol_whitelist="file,pipe", format_whitelist=CONTAINERS)
    shown = _run(source.video.filter("showinfo").output("pipe:", format="null", fps_mode="passthrough"), timeout)
    times, width, height = _shown_frames(shown.stderr.decode("utf-8", errors="replace"))
    if not times or shown.returncode:
        raise DecodeError(_ffmpeg_reason(shown.stderr))
    stamps = np.array(times) - times[0]
    wanted = _wanted(stamps, count, start, end)
    chosen = "+".join(f"eq(n,{i})" for i in sorted(set(wanted)))
    picked = source.video.filter("select", chosen).filter("scale", size, size, flags="bicubic")
    result = _run(picked.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough"), timeout)
    frames = np.frombuffer(result.stdout, np.uint8)
    if len(frames) != len(set(wanted)) * size * size * 3:
        raise DecodeError(_ffmpeg_reason(result.stderr))
    place = {index: i for i, index in enumerate(sorted(set(wanted)))}
    frames = frames.reshape(-1, size, size, 3)[[place[i] for i in wanted]]
    return Clip(frames, _duration(stamps, start, end), width, height)


def _run(stream, timeout: float) -> subprocess.CompletedProcess[bytes]:
    import ffmpeg

    command = ffmpeg.compile(stream.global_args("-nostdin", "-hide_banner", "-xerror"), cmd=ffmpeg_binary())
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise DecodeError(f"unreadable: ffmpeg took longer than {timeout:g} s") from None


def _shown_frames(log: str) -> tuple[list[float], int, int]:
    """The times, width and height of the frames in the log of ffmpeg's showinfo filter."""
    times, width, height = [], 0, 0
    for line in log.splitlines():
        if "Parsed_showinfo" not in line or " pts_time:" not in line:
            continue
        times.append(float(line.split(" pts_time:")[1].split()[0]))
        width, height = map(int, line.split(" s:")[1].split()[0].split("x"))
    return times, width, height


def _ffmpeg_reason(stderr: bytes) -> str:
    """The first thing that ffmpeg complained of: what follows it is consequence."""
    for line in stderr.decode("utf-8", errors="replace").splitlines():
        said = line.strip().split("] ")[-1]
        if "matches no streams" in said:
            return "no video stream"
        told = not said.startswith(("Input #", "Parsed_")) and "showinfo" not in line
        if told and any(word in said.lower() for word in ("error", "invalid", "not found", "missing", "corrupt")):
            return f"unreadable: {said.split(' /')[0]}"
    return "unreadable: ffmpeg gave no frames and no reason"


def _reason(error: BaseException) -> str:
    """What FFmpeg said, without the file's name (it is in the row) and the number of the error."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


@lru_cache(maxsize=1)
def ffmpeg_binary() -> str:
    """The ffmpeg of the system, or the one that imageio-ffmpeg brings. Raises InputError where there is none."""
    import shutil

    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: imageio-ffmpeg came without the binary
        raise InputError("no ffmpeg: install it, or the extra alpro-pipeline[video]") from None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends the body with DecodeError after `seconds`. Only a process's main thread can be told so; others run on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(signum, frame):
        raise DecodeError(f"unreadable: decoding took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
