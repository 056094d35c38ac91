"""Decodes videos with PyAV from the first frame on: those in which a seek does not lead to a frame.

Two passes: the times of the frames, then the requested frames.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from alpro.shards.clip import Clip, ClipRequest, DecodeError
from alpro.shards.video_file import (
    NO_TIMESTAMPS,
    check_complete,
    draw,
    open_video,
    read_packets,
)

# Seconds that are read beyond the end of a window, for frames out of order.
MARGIN_SECONDS = 1.0
SENSELESS_SECONDS = 1e12  # FFmpeg's for the frames before the first page of an Ogg file


class NothingDecoded(DecodeError):
    """PyAV cannot decode a single frame. Another program may."""


def decode_in_order(request: ClipRequest) -> Clip:
    """Decode a clip by counting frames.

    Raises:
        DecodeError: With the reason; NothingDecoded before the first frame.
        InputError: If PyAV is not installed.
    """
    seconds = _read_times(request)
    wanted, inverse, duration = request.choose(seconds - seconds[0])
    due = set(wanted.tolist())
    with open_video(request) as (container, stream):
        numbered = enumerate(_frames(container, stream, request))
        chosen = (frame for number, (_, frame) in numbered if number in due)
        drawn, width, height = draw(chosen, len(wanted), request)
    return Clip(drawn[inverse], duration, width, height)


def _frames(
    container: Any, stream: Any, request: ClipRequest
) -> Iterator[tuple[Any, Any]]:
    """Yield all frames that are shown, each with the packet that completed it.

    The first error ends them: the decoder would conceal it with parts of other frames.
    """
    for packet in read_packets(container, request, stream):
        if packet.is_corrupt:
            raise DecodeError("unreadable", "corrupt packets")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DecodeError("unreadable", "corrupt frames")
            yield packet, frame


def _read_times(request: ClipRequest) -> np.ndarray:
    """Return when the frames are shown (n,), seconds, ascending: up to the end of the window."""
    times: list[float] = []
    packet_times: list[int] = []
    try:
        with open_video(request) as (container, stream):
            step = float(1 / (stream.guessed_rate or 25))
            has_times = not container.format.flags & NO_TIMESTAMPS
            for packet, frame in _frames(container, stream, request):
                # FFmpeg guesses the rate of bare streams, which may be the field rate.
                if not times and packet.duration:
                    step = float(packet.duration * stream.time_base)
                time = frame.time if has_times else None
                if time is None or abs(time) > SENSELESS_SECONDS:
                    time = times[-1] + step if times else 0.0
                times.append(time)
                if packet.pts is not None:
                    packet_times.append(packet.pts)
                if (
                    request.end is not None
                    and times[-1] - times[0] > request.end + MARGIN_SECONDS
                ):
                    break
            else:
                if times:
                    check_complete(container, stream, times[-1], request)
    except DecodeError as error:
        if error.reason == "unreadable" and not times:
            raise NothingDecoded(error.reason, error.detail) from error
        raise
    if not times:
        raise NothingDecoded("unreadable", "no frame could be decoded")

    # Packets are in the order of decoding. If their times ascend, the container does not state when
    # frames are shown: the decoder puts the frames in order, but not their times.
    if packet_times == sorted(packet_times):
        times.sort()
    # A frame whose time is a guess, or after a joint where the clock restarts, follows the last.
    for i in range(1, len(times)):
        if times[i] <= times[i - 1]:
            times[i] = times[i - 1] + step
    return np.array(times)
