"""Decodes videos with PyAV by seeks: only what the requested frames need.

Timestamps are read first, without decoding. They determine the requested frames, which are then
decoded from the key frame before each, or from the frame before it if no key frame lies in between.
Frames are bit-exact with decoding everything (tests/shards/test_decoding_formats.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from alpro.shards.clip import Clip, ClipRequest, DecodeError
from alpro.shards.video_file import (
    NO_TIMESTAMPS,
    check_complete,
    draw,
    import_av,
    open_video,
    read_packets,
)

# Codecs whose bitstream marks unreferenced frames. HEVC marks them only within a temporal layer;
# VP9 and AV1 carry statistics from every frame to the next.
CODECS_WITH_UNREFERENCED_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
FAR_SECONDS = 10.0  # a window that starts later is read from BACK_SECONDS before it
BACK_SECONDS = 5.0


def decode_by_seeks(request: ClipRequest) -> Clip:
    """Decode a clip from the key frames before its frames.

    Raises:
        DecodeError: With the reason; "unreadable" also if a seek may not lead to a frame.
        InputError: If PyAV is not installed.
    """
    with open_video(request) as (container, stream):
        timeline = _read_timeline(container, stream, request)
        seconds = (timeline.shown - timeline.origin) * float(stream.time_base)
        wanted, inverse, duration = request.choose(seconds)
        timestamps = timeline.shown[wanted].tolist()
        decoded = _seek_frames(container, stream, timestamps, timeline.keys, request)
        frames, width, height = draw(decoded, len(wanted), request)
    return Clip(frames[inverse], duration, width, height)


@dataclass(frozen=True)
class _Timeline:
    """The times of a video's frames, in units of the stream's time base.

    shown (n,): when the frames that the window needs are presented, ascending.
    keys (k, 2): when the key frames are presented and decoded, in the order of the file.
    origin: when the video's first frame is presented.
    """

    shown: np.ndarray
    keys: np.ndarray
    origin: int


def _is_seekable(container: Any, codec: Any) -> bool:
    """Return whether a seek in this container and codec leads to a frame."""
    name = container.format.name
    # A program stream may lead to another frame. A bare stream has no times. AVI only states when
    # frames are decoded.
    if (
        name == "mpeg"
        or container.format.flags & NO_TIMESTAMPS
        or (name == "avi" and codec.has_b_frames)
    ):
        return False
    # MOV and AVI give the palette with the first packet that is read, and not again after a seek:
    # frames would be black. Of Dirac, other frames than the key frame are garbage after a seek, and
    # not marked as corrupt.
    return codec.pix_fmt != "pal8" and codec.name != "dirac"


def _read_timeline(container: Any, stream: Any, request: ClipRequest) -> _Timeline:
    """Read the packets up to the first frame after the window, without decoding.

    A window far from the start is read from a key frame before it.

    Raises:
        DecodeError: If frames are corrupt, missing or without a unique time of presentation.
    """
    codec = stream.codec_context
    if not _is_seekable(container, codec):
        raise DecodeError("unreadable", "a seek may not lead to a frame")
    second = float(1 / stream.time_base)
    start = request.start or 0.0
    is_far = start > FAR_SECONDS
    origin = stream.start_time or 0
    if is_far:
        _seek_before(container, stream, int(origin + (start - BACK_SECONDS) * second))

    is_vp8 = codec.name == "vp8"
    times: list[int] = []
    keys: list[tuple[int, int]] = []
    first_after_window = np.inf
    has_offsets = False
    latest_decoded = -np.inf
    for packet in read_packets(container, request, stream):
        if not packet.size:
            continue
        if packet.is_corrupt or packet.pts is None:
            raise DecodeError(
                "unreadable", "frames that are corrupt or without a timestamp"
            )

        if packet.is_keyframe:
            decoded_at = packet.pts if packet.dts is None else packet.dts
            keys.append((packet.pts, decoded_at))
        has_offsets = has_offsets or packet.pts != packet.dts
        if packet.dts is not None:
            # FFmpeg's guess, for a codec that it cannot parse.
            if packet.dts < latest_decoded:
                raise DecodeError("unreadable", "times of decoding are not ascending")
            latest_decoded = packet.dts

        # Not shown are frames before the start of an edit list, and VP8's reference frames.
        is_reference = is_vp8 and not memoryview(packet)[0] >> 4 & 1
        if not packet.is_discard and not is_reference:
            # The container may state another start than its first frame has.
            if not is_far:
                origin = min(packet.pts, origin) if times else packet.pts
            times.append(packet.pts)
            if request.end is not None and packet.pts - origin >= request.end * second:
                first_after_window = min(first_after_window, packet.pts)

        # No later frame is in the window, nor the first after it.
        if packet.dts is not None and packet.dts >= first_after_window:
            break
    else:
        check_complete(container, stream, max(times, default=origin) / second, request)

    ascending = np.sort(np.array(times, np.int64))
    if not times or (is_far and ascending[0] > origin + start * second):
        raise DecodeError("unreadable", "no frames in the window")
    timeline = _Timeline(ascending, np.array(keys), origin)
    _check_times(timeline, container.format.name, codec, has_offsets)
    # Whether a decoder returns those that may refer to frames before the file is not known.
    if not is_far and ascending[0] < keys[0][0]:
        raise DecodeError("unreadable", "frames before the first key frame")
    return timeline


def _seek_before(container: Any, stream: Any, timestamp: int) -> None:
    """Seek to a key frame before a time, in a video that begins with one."""
    first_packet = next(container.demux(stream))
    if not first_packet.is_keyframe:
        raise DecodeError("unreadable", "no key frame at the start")
    container.seek(timestamp, stream=stream)


def _check_times(
    timeline: _Timeline, container_name: str, codec: Any, has_offsets: bool
) -> None:
    """Raise DecodeError if the times may not be those of presentation.

    Args:
        has_offsets: Whether a frame is presented at another time than it is decoded.
    """
    # An ASF has no composition offsets: FFmpeg guesses times, and other times after a seek.
    is_guess = container_name == "asf" and has_offsets
    lacks_offsets = (
        container_name.startswith("mov,") and codec.has_b_frames and not has_offsets
    )
    if is_guess or lacks_offsets:
        raise DecodeError(
            "unreadable", "no composition offsets: only times of decoding"
        )
    if (np.diff(timeline.shown) == 0).any():
        raise DecodeError("unreadable", "no frames with unique timestamps")


def _seek_frames(
    container: Any,
    stream: Any,
    timestamps: list[int],
    keys: np.ndarray,
    request: ClipRequest,
) -> Iterator[Any]:
    """Yield the frames that are presented at these times, ascending.

    Those that the decoder does not return are left out. Raises DecodeError for a corrupt frame.
    """
    codec = stream.codec_context
    intra = import_av().video.frame.PictureType.I

    def key_before(timestamp: int) -> list[int]:
        # A frame that is presented before the first key frame is decoded from it.
        following = int(np.searchsorted(keys[:, 0], timestamp, side="right"))
        key = keys[max(0, following - 1)]
        return key.tolist()

    for (presented, decoded), members in groupby(timestamps, key_before):
        group = list(members)
        container.seek(decoded, stream=stream)
        # The decoder still holds frames of the last group.
        if codec.is_open:
            codec.flush_buffers()

        latest = -np.inf
        for frame in _frames_from(container, stream, presented, set(group), request):
            if frame.pts is None or frame.pts <= latest:
                raise DecodeError("unreadable", "frame times are not ascending")
            latest = frame.pts
            # Some containers mark other frames as key frames.
            if latest == presented and frame.pict_type != intra:
                raise DecodeError(
                    "unreadable", "a key frame that depends on other frames"
                )
            # A corrupt frame is concealed and affects others. Those that are presented before the
            # key frame may refer to frames before it.
            if frame.is_corrupt and latest >= min(presented, group[0]):
                raise DecodeError("unreadable", "corrupt frames")

            if latest in group:
                yield frame


def _frames_from(
    container: Any,
    stream: Any,
    key: int,
    wanted: set[int],
    request: ClipRequest,
) -> Iterator[Any]:
    """Yield the frames from the key frame with this timestamp up to the last wanted one.

    Unreferenced ones are left out unless they are wanted.
    """
    codec = stream.codec_context
    marks_unreferenced = codec.name in CODECS_WITH_UNREFERENCED_FRAMES
    reached = False
    for packet in read_packets(container, request, stream):
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
