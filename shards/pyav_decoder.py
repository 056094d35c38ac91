"""Decodes videos with PyAV, in this process.

Timestamps are read first, without decoding. They determine the requested frames, which are then
decoded from the key frame before each, or from the frame before it if no key frame lies in between.
Frames are bit-exact with those of decoding everything (tests/shards/test_decoding.py).
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.clip import (
    CONTAINERS,
    SCALING,
    Clip,
    ClipRequest,
    DecodeError,
    Limits,
    error_text,
)

OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
# Codecs whose bitstream marks unreferenced frames. HEVC marks them only within a temporal layer;
# VP9 and AV1 carry statistics from every frame to the next.
CODECS_WITH_UNREFERENCED_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
FAR_SECONDS, BACK_SECONDS = 10.0, 5.0  # a window after the first is read from the second before it
MIN_BYTES_PER_SECOND = 100  # a still picture at one frame a second has more


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    return av


def decode_with_pyav(request: ClipRequest) -> Clip:
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
        raise DecodeError("unreadable", error_text(error)) from error


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

    0 if it is unknown, if the file cannot be read (decoding it tells why), or if a second would
    have less than MIN_BYTES_PER_SECOND, as after a flipped bit. Raises InputError if PyAV is not
    installed.
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
    container: Any, stream: Any, request: ClipRequest
) -> tuple[np.ndarray, np.ndarray, int]:
    """The timestamps of the frames that the window needs, ascending; those of key frames (n, 2),
    when they are presented and decoded; and that of the video's first frame. A far window is read
    from a key frame before it."""
    kind, codec = container.format.name, stream.codec_context
    # A seek in a program stream may lead to another frame. B frames in AVI are numbered in the
    # order of the file.
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
    container: Any, stream: Any, wanted: list[int], keys: np.ndarray, request: ClipRequest
) -> tuple[np.ndarray, int, int]:
    """The frames with these timestamps, which are ascending, and their width and height when
    upright.

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
            # A corrupt frame is concealed and affects others. Those that are presented before the
            # key frame may refer to frames before it.
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
    container: Any, stream: Any, key: int, wanted: set[int], request: ClipRequest
) -> Iterator[Any]:
    """The frames from the key frame with this timestamp up to the last wanted one; unreferenced
    ones only if they are wanted."""
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
    """Draws the frames of a video upright and scaled. It keeps the scaler and the orientation from
    frame to frame."""

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

    # Read from a small copy: a frame and its side data form a reference cycle until the next
    # garbage collection.
    side = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1).side_data.get(
        Type.DISPLAYMATRIX
    )
    return (
        (1, 0, 0, 1)
        if side is None
        else tuple(np.frombuffer(side, np.int32)[[0, 1, 3, 4]].tolist())
    )
