"""Decodes videos with PyAV, in this process.

Timestamps are read first, without decoding. They determine the requested frames, which are then
decoded from the key frame before each, or from the frame before it if no key frame lies in between.
Frames are bit-exact with those of decoding everything (tests/shards/test_decoding_formats.py).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
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
from alpro.shards.interlaced import as_progressive
from alpro.shards.sampling import last_frame_seconds
from alpro.shards.schema import MAX_SECONDS

OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
# Codecs whose bitstream marks unreferenced frames. HEVC marks them only within a temporal layer;
# VP9 and AV1 carry statistics from every frame to the next.
CODECS_WITH_UNREFERENCED_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
FAR_SECONDS = 10.0  # a window that starts later is read from BACK_SECONDS before it
BACK_SECONDS = 5.0


@dataclass(frozen=True)
class _Timeline:
    """What the packets tell of a video's frames, in units of the stream's time base.

    shown (n,): when the frames that the window needs are presented, ascending.
    keys (k, 2): when the key frames are presented and decoded, in the order of the file.
    origin: when the video's first frame is presented.
    is_complete: the packets were read from the first one on.
    by_order: the decoder reorders the frames, and the container states only the order in which they
    are decoded, as an MP4 without composition offsets does. The frame that the decoder returns k-th
    is then shown at shown[k].
    """

    shown: np.ndarray
    keys: np.ndarray
    origin: int
    is_complete: bool
    by_order: bool


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    return av


def _open(path: Path, seconds: float, options: dict[str, str] | None = None) -> Any:
    """The container at `path`; opening it and each read may take `seconds`.

    Texts of the container that are not UTF-8, such as a title in Latin-1, are not an error.
    """
    return _pyav().open(
        str(path),
        options=OPEN_OPTIONS | (options or {}),
        timeout=(seconds, seconds),
        metadata_errors="ignore",
    )


def decode_with_pyav(request: ClipRequest) -> Clip:
    """Raises DecodeError with the reason, and InputError if PyAV is not installed."""
    av = _pyav()
    limits = request.limits
    max_pixels = {"max_pixels": str(limits.max_pixels)}
    try:
        with _open(request.path, request.seconds_left(), max_pixels) as container:
            stream = _video_stream(container)
            codec = stream.codec_context
            limits.check_size(codec.width, codec.height)
            # FFmpeg probes frames for the size if the container has none, within the limit.
            if not codec.width:
                raise DecodeError("unreadable", "frames without a size, or larger than the limit")

            # All of the margin that a stream hides is cut off, as ffmpeg does. Otherwise up to 31
            # columns of it would stay, to keep rows aligned in memory.
            codec.flags |= av.codec.context.Flags.unaligned
            codec.thread_count = 1  # a pool has a worker per core
            codec.thread_type = "NONE"
            codec.options = max_pixels  # of the codec, too: the size may change within the video

            timeline = _read_timeline(container, stream, request)
            seconds = (timeline.shown - timeline.origin) * float(stream.time_base)
            indices, duration = request.choose(seconds)
            # With fewer frames than segments, a frame is decoded once and repeated.
            wanted, inverse = np.unique(indices, return_inverse=True)

            decode = _frames_by_order if timeline.by_order else _frames_by_time
            decoded = decode(container, stream, wanted, timeline, request)
            frames, width, height = _draw(decoded, len(wanted), request)
            return Clip(frames[inverse], duration, width, height)
    except av.error.ExitError:  # FFmpeg's error for the timeout of av.open
        raise limits.too_slow() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", error_text(error)) from error


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover or thumbnail. Raises DecodeError without one."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    for stream in container.streams.video:
        if not stream.disposition & pictures:
            if stream.codec_context is None:
                raise DecodeError("unreadable", "no decoder for the video's codec")
            return stream
    raise DecodeError("no video")


def video_seconds(path: Path, timeout: float = Limits().timeout) -> float:
    """The length of a video by the times of its packets, without decoding frames.

    A length that the container states is only a hint: it may be missing, as in a stream of a
    browser, or wrong. The packets from shortly before it are read; all of them, if it leads
    nowhere.

    0 if the file has no length that packets tell in `timeout` seconds: decoding it tells why.
    Raises InputError if PyAV is not installed.
    """
    av = _pyav()
    deadline = time.monotonic() + timeout
    try:
        with _open(path, timeout) as container:
            seconds = _seconds_from_end(container, _video_stream(container), deadline)
        if not seconds:
            with _open(path, timeout) as container:
                seconds = _seconds_of_packets(container, _video_stream(container), None, deadline)
    except (av.FFmpegError, OSError, ValueError, DecodeError):
        return 0.0
    return seconds if seconds <= MAX_SECONDS else 0.0


def _seconds_from_end(container: Any, stream: Any, deadline: float) -> float:
    """The length of a video, from the packets around the end that the container states.

    0 if it states none, or if there are no packets.
    """
    av = _pyav()
    if stream.duration:
        stated = float(stream.duration * stream.time_base)
    else:
        stated = (container.duration or 0) / av.time_base
    if stated <= 0 or stream.start_time is None:
        return 0.0

    near_end = max(0.0, stated - BACK_SECONDS) / float(stream.time_base)
    try:
        # An edit list hides packets before `start_time`; in an AVI with B frames, it is a frame
        # early.
        first = next(container.demux(stream)).pts
        origin = stream.start_time if first is None else max(first, stream.start_time)
        container.seek(origin + int(near_end), stream=stream)
        return _seconds_of_packets(container, stream, origin, deadline)
    except (av.FFmpegError, OverflowError):  # a container without an index, or a senseless length
        return 0.0


def _seconds_of_packets(container: Any, stream: Any, origin: int | None, deadline: float) -> float:
    """The seconds from `origin`, or from the first frame, to the end of the last packet's frame.

    0 with fewer than two packets, or, from `origin`, if a frame has no time of presentation. Raises
    DecodeError after the deadline.
    """
    shown: list[int | None] = []
    decoded: list[int | None] = []
    for packet in container.demux(stream):
        if time.monotonic() > deadline:
            raise DecodeError("too slow")
        if packet.size and not packet.is_discard:
            shown.append(packet.pts)
            decoded.append(packet.dts)

    # The packets of some containers only have times of decoding; those of a bare stream have none.
    has_times = None not in shown
    if len(shown) < 2 or (origin is not None and not has_times):
        return 0.0
    times = [value for value in (shown if has_times else decoded) if value is not None]
    if len(times) < 2:
        return float(len(shown) / stream.guessed_rate) if stream.guessed_rate else 0.0
    seconds = np.sort(np.array(times, np.int64)) * float(stream.time_base)
    first = seconds[0] if origin is None else origin * float(stream.time_base)
    return float(seconds[-1] - first + last_frame_seconds(seconds))


def _read_timeline(container: Any, stream: Any, request: ClipRequest) -> _Timeline:
    """The timeline of the frames that the window needs. Raises DecodeError.

    A window far from the start is read from a key frame before it.
    """
    # A seek in a program stream may lead to another frame. B frames in AVI are numbered in the
    # order of the file.
    container_format = container.format.name
    codec = stream.codec_context
    if container_format == "mpeg" or (container_format == "avi" and codec.has_b_frames):
        raise DecodeError("unreadable", "no unique timestamps to seek")
    # MOV and AVI give the palette with the first packet that is read, and not again after a seek:
    # frames would be black.
    if codec.pix_fmt == "pal8":
        raise DecodeError("unreadable", "a palette, which a seek loses")

    is_far = (request.start or 0.0) > FAR_SECONDS
    timeline = _read_packets(container, stream, request, is_far)
    if timeline.by_order and not timeline.is_complete:
        # Frames are counted from the first one on.
        container.seek(stream.start_time or 0, stream=stream)
        timeline = _read_packets(container, stream, request, is_far=False)
    return timeline


def _read_packets(container: Any, stream: Any, request: ClipRequest, is_far: bool) -> _Timeline:
    """The timeline from the container's position, or, if `is_far`, from a key frame before the
    window, up to the first frame after the window."""
    codec = stream.codec_context
    is_mp4 = container.format.name.startswith("mov")
    is_vp8 = codec.name == "vp8"
    second = float(1 / stream.time_base)
    start = request.start or 0.0
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
    is_reordered = False
    latest = -np.inf
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
        is_reordered = is_reordered or packet.pts < latest
        latest = packet.pts

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

    by_order = is_mp4 and codec.has_b_frames and not is_reordered
    return _Timeline(
        shown=ascending,
        keys=np.array(keys),
        origin=origin,
        is_complete=not is_far,
        by_order=by_order,
    )


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


def _frames_by_time(
    container: Any,
    stream: Any,
    wanted: np.ndarray,
    timeline: _Timeline,
    request: ClipRequest,
) -> Iterator[Any]:
    """The frames with these indices into `timeline.shown`, ascending, found by their times.

    Those that the decoder does not return are left out. Raises DecodeError for a corrupt frame.
    """
    codec = stream.codec_context
    keys = timeline.keys

    def key_before(timestamp: int) -> list[int]:
        # A frame that is presented before the first key frame is decoded from it.
        following = int(np.searchsorted(keys[:, 0], timestamp, side="right"))
        key = keys[max(0, following - 1)]
        return key.tolist()

    for (presented, decoded), timestamps in groupby(timeline.shown[wanted].tolist(), key_before):
        group = list(timestamps)
        container.seek(decoded, stream=stream)
        # The decoder still holds frames of the last group.
        if codec.is_open:
            codec.flush_buffers()

        due = iter(group)
        next_due: int | None = next(due)
        latest = -np.inf
        for frame in _frames_from(container, stream, presented, set(group), request):
            if frame.pts is None or frame.pts <= latest:
                raise DecodeError("unreadable", "frame times are not ascending")
            latest = frame.pts
            # A corrupt frame is concealed and affects others. Those that are presented before the
            # key frame may refer to frames before it.
            if frame.is_corrupt and latest >= min(presented, group[0]):
                raise DecodeError("unreadable", "corrupt frames")

            if latest == next_due:
                yield frame
                next_due = next(due, None)


def _frames_by_order(
    container: Any,
    stream: Any,
    wanted: np.ndarray,
    timeline: _Timeline,
    request: ClipRequest,
) -> Iterator[Any]:
    """The frames with these indices into `timeline.shown`, ascending, counted from the first one.

    Raises DecodeError for a corrupt frame.
    """
    container.seek(int(timeline.keys[0, 1]), stream=stream)
    due = set(wanted.tolist())
    returned = 0
    for packet in container.demux(stream):  # the last packet is empty and flushes the decoder
        request.seconds_left()
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DecodeError("unreadable", "corrupt frames")
            if returned in due:
                yield frame
            returned += 1
        if returned > wanted[-1]:
            return


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


def _draw(decoded: Iterator[Any], count: int, request: ClipRequest) -> tuple[np.ndarray, int, int]:
    """Frames (count, size, size, 3) uint8, and the width and height of the last one when upright.

    Raises DecodeError if fewer frames were decoded.
    """
    canvas = _Canvas(request.limits)
    frames = np.empty((count, request.size, request.size, 3), np.uint8)
    drawn = 0
    width = height = 0
    for frame in decoded:
        width, height = canvas.draw(frame, frames[drawn])
        drawn += 1
    if drawn < count:
        detail = f"corrupt, or decoding skips frames ({drawn} of {count} were decoded)"
        raise DecodeError("unreadable", detail)
    return frames, width, height


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
            as_progressive(frame),
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
