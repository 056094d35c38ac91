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
FAR_SECONDS = 10.0  # a window that starts later is read from BACK_SECONDS before it
BACK_SECONDS = 5.0
MIN_BYTES_PER_SECOND = 100  # a still picture at one frame a second has more


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    return av


def decode_with_pyav(request: ClipRequest) -> Clip:
    """Raises DecodeError with the reason, and InputError if PyAV is not installed."""
    av = _pyav()
    limits = request.limits
    max_pixels = {"max_pixels": str(limits.max_pixels)}
    left = request.seconds_left()
    try:
        with av.open(
            str(request.path), options=OPEN_OPTIONS | max_pixels, timeout=(left, left)
        ) as container:
            stream = _video_stream(container)
            codec = stream.codec_context
            limits.check_size(codec.width, codec.height)
            # FFmpeg probes frames for the size if the container has none, within the limit.
            if not codec.width:
                raise DecodeError("unreadable", "frames without a size, or larger than the limit")

            codec.thread_count = 1  # a pool has a worker per core
            codec.thread_type = "NONE"
            codec.options = max_pixels  # of the codec, too: the size may change within the video

            times, keys, origin = _timestamps(container, stream, request)
            seconds = (times - origin) * float(stream.time_base)
            indices, duration = request.choose(seconds)
            # With fewer frames than segments, a frame is decoded once and repeated.
            wanted, inverse = np.unique(times[indices], return_inverse=True)
            frames, width, height = _decode(container, stream, wanted.tolist(), keys, request)
            return Clip(frames[inverse], duration, width, height)
    except av.error.ExitError:  # FFmpeg's error for the timeout of av.open
        raise limits.too_slow() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", error_text(error)) from error


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover or thumbnail."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    for stream in container.streams.video:
        if not stream.disposition & pictures:
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
            seconds = (container.duration or 0) / av.time_base
            # A container may last longer than its video, by its sound.
            if stream.duration:
                seconds = stream.duration * stream.time_base

        is_plausible = 0 < seconds * MIN_BYTES_PER_SECOND <= path.stat().st_size
        return float(seconds) if is_plausible else 0.0
    except (av.FFmpegError, OSError, ValueError, DecodeError):
        return 0.0


def _timestamps(
    container: Any,
    stream: Any,
    request: ClipRequest,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The timestamps of the frames that the window needs, ascending; those of key frames (n, 2),
    when they are presented and decoded; and that of the video's first frame. A far window is read
    from a key frame before it."""
    container_format = container.format.name
    codec = stream.codec_context
    # A seek in a program stream may lead to another frame. B frames in AVI are numbered in the
    # order of the file.
    if container_format == "mpeg" or (container_format == "avi" and codec.has_b_frames):
        raise DecodeError("unreadable", "no unique timestamps to seek")
    # MOV and AVI give the palette with the first packet that is read, and not again after a seek:
    # frames would be black.
    if codec.pix_fmt == "pal8":
        raise DecodeError("unreadable", "a palette, which a seek loses")

    is_vp8 = codec.name == "vp8"
    second = float(1 / stream.time_base)
    start = request.start or 0.0
    is_far = start > FAR_SECONDS
    origin = stream.start_time or 0
    if is_far:
        first_packet = next(container.demux(stream))
        if not first_packet.is_keyframe:
            raise DecodeError("unreadable", "no key frame at the start")
        target = origin + (start - BACK_SECONDS) * second
        container.seek(int(target), stream=stream)

    times: list[int] = []
    keys: list[tuple[int, int]] = []
    first_after_window = np.inf
    packet_count = 0
    for packet in container.demux(stream):
        request.seconds_left()
        # Nothing can be decoded before the first key frame; the last packet of a stream is empty.
        if not packet.size or not (keys or packet.is_keyframe):
            continue
        if packet.is_corrupt or packet.pts is None:
            raise DecodeError("unreadable", "frames that are corrupt or without a timestamp")

        packet_count += 1
        if packet.is_keyframe:
            decoded_at = packet.pts if packet.dts is None else packet.dts
            keys.append((packet.pts, decoded_at))

        # Not shown are frames before the start of an edit list, and VP8's reference frames.
        is_reference = is_vp8 and not memoryview(packet)[0] >> 4 & 1
        if not packet.is_discard and not is_reference:
            # The container may state another start than its first frame has.
            if not is_far:
                origin = min(packet.pts, origin) if times else packet.pts
            times.append(packet.pts)
            if request.end is not None and packet.pts >= origin + request.end * second:
                first_after_window = min(first_after_window, packet.pts)

        # No later frame is in the window, nor the first after it.
        if packet.dts is not None and packet.dts >= first_after_window:
            break
    else:
        _check_complete(container, stream, times, packet_count, is_far)

    ascending = np.sort(np.array(times, np.int64))
    starts_late = bool(times) and is_far and ascending[0] > origin + start * second
    has_duplicates = (np.diff(ascending) == 0).any()
    if not times or starts_late or has_duplicates:
        raise DecodeError("unreadable", "no frames with unique timestamps")
    return ascending, np.array(keys), origin


def _check_complete(
    container: Any,
    stream: Any,
    times: list[int],
    packet_count: int,
    is_far: bool,
) -> None:
    """Raises DecodeError if a video that was read to its end has fewer frames than its index."""
    index = stream.index_entries
    if is_far and len(index):
        last_entry = index[len(index) - 1]
        is_truncated = last_entry.timestamp > max(times, default=0)
    else:
        # An edit list may omit whole groups of frames, which are then missing from MP4's index.
        is_mp4 = container.format.name.startswith("mov")
        frame_count = len(index) if is_mp4 else stream.frames
        is_truncated = packet_count < frame_count
    if is_truncated:
        raise DecodeError("unreadable", "truncated: frames in the index are missing")


def _decode(
    container: Any,
    stream: Any,
    wanted: list[int],
    keys: np.ndarray,
    request: ClipRequest,
) -> tuple[np.ndarray, int, int]:
    """The frames with these timestamps, which are ascending, and their width and height when
    upright.

    Raises DecodeError if one is missing or corrupt.
    """
    codec = stream.codec_context
    canvas = _Canvas(request.limits)
    frames = np.empty((len(wanted), request.size, request.size, 3), np.uint8)

    def key_before(timestamp: int) -> list[int]:
        # A frame that is presented before the first key frame is decoded from it.
        following = int(np.searchsorted(keys[:, 0], timestamp, side="right"))
        key = keys[max(0, following - 1)]
        return key.tolist()

    drawn = 0
    width = height = 0
    for (presented, decoded), timestamps in groupby(wanted, key_before):
        group = list(timestamps)
        container.seek(decoded, stream=stream)
        # The decoder still holds frames of the last group.
        if codec.is_open:
            codec.flush_buffers()

        latest = -np.inf
        for frame in _frames_from(container, stream, presented, set(group), request):
            if frame.pts is None or frame.pts <= latest:
                raise DecodeError("unreadable", "frame times are not ascending")
            latest = frame.pts
            # A corrupt frame is concealed and affects others. Those that are presented before the
            # key frame may refer to frames before it.
            if frame.is_corrupt and latest >= min(presented, group[0]):
                raise DecodeError("unreadable", "corrupt frames")

            if drawn < len(wanted) and latest == wanted[drawn]:
                width, height = canvas.draw(frame, frames[drawn])
                drawn += 1

    if drawn < len(wanted):
        raise DecodeError(
            "unreadable",
            f"corrupt, or decoding skips frames ({drawn} of {len(wanted)} were decoded)",
        )
    return frames, width, height


def _frames_from(
    container: Any,
    stream: Any,
    key: int,
    wanted: set[int],
    request: ClipRequest,
) -> Iterator[Any]:
    """The frames from the key frame with this timestamp up to the last wanted one; unreferenced
    ones only if they are wanted."""
    codec = stream.codec_context
    marks_unreferenced = codec.name in CODECS_WITH_UNREFERENCED_FRAMES
    reached = False
    for packet in container.demux(stream):
        request.seconds_left()
        reached = reached or packet.pts == key
        if not reached:
            continue

        if marks_unreferenced:
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

        self.limits = limits
        self.scaler = VideoReformatter()
        self.matrix: tuple[int, ...] | None = None
        self.scaling = sum(Interpolation[name.upper()] for name in SCALING)

    def draw(self, frame: Any, out: np.ndarray) -> tuple[int, int]:
        """Writes a frame to (size, size, 3) uint8. Returns its width and height when upright."""
        self.limits.check_size(frame.width, frame.height)
        self.matrix = self.matrix or _display_matrix(frame)
        a, b, c, d = self.matrix
        is_rotated = abs(b) > abs(a)
        # The scales from the frame's axes to those of the picture; a negative one mirrors.
        across, down = (c, b) if is_rotated else (a, d)
        target = out
        if down < 0:
            target = target[::-1]
        if across < 0:
            target = target[:, ::-1]

        # Planar GBR: swscale interpolates chroma for it, and it is faster than rgb24.
        size = len(target)
        scaled = self.scaler.reformat(
            frame,
            size,
            size,
            "gbrp",
            interpolation=self.scaling,
            threads=1,
        )

        pixels = scaled.to_ndarray()
        if is_rotated:
            target[:] = pixels.transpose(1, 0, 2)
            return frame.height, frame.width
        target[:] = pixels
        return frame.width, frame.height


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """The display matrix (a, b, c, d) of a frame, which shows (x, y) at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import Type

    # Read from a small copy: a frame and its side data form a reference cycle until the next
    # garbage collection.
    copy = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1)
    matrix = copy.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return (1, 0, 0, 1)
    values = np.frombuffer(matrix, np.int32)  # of 3 x 3
    return tuple(values[[0, 1, 3, 4]].tolist())
