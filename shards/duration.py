"""Measures how long videos are."""

from pathlib import Path
from typing import Any

import numpy as np

from alpro.shards.clip import MAX_SECONDS, ClipRequest, DecodeError, Limits
from alpro.shards.file_type import is_animated_file
from alpro.shards.images import animation_times
from alpro.shards.sampling import last_frame_seconds
from alpro.shards.video_file import import_av, open_video

BEFORE_END_SECONDS = 5.0  # that are read before the stated end


def video_seconds(path: Path, timeout: float = Limits().timeout) -> float:
    """Measure the length of a video by the times of its packets, without decoding frames.

    A length that the container states is only a hint: it may be missing, as in a stream of a
    browser, or wrong. The packets from shortly before it are read; all of them, if it leads
    nowhere.

    Returns:
        Seconds; 0 if the packets show no length within `timeout` seconds. Decoding the file shows
        why.

    Raises:
        InputError: If PyAV is not installed.
    """
    request = ClipRequest(path, 1, 1, start=None, end=None, limits=Limits(timeout))
    if is_animated_file(path):
        try:
            times = animation_times(request)
        except DecodeError:
            return 0.0
        return float(times[-1] + last_frame_seconds(times))

    for measure in (_measure_end, _measure_all):
        try:
            with open_video(request) as (container, stream):
                seconds = measure(container, stream, request)
        except (DecodeError, OSError, OverflowError):
            continue
        if 0 < seconds <= MAX_SECONDS:
            return seconds
    return 0.0


def _measure_end(container: Any, stream: Any, request: ClipRequest) -> float:
    """Return the length of a video by the packets around the end that the container states.

    0 if it states none.
    """
    stated = (container.duration or 0) / import_av().time_base
    first = next(container.demux(stream)).pts
    if stated <= 0 or first is None:
        return 0.0

    # An edit list hides packets before `start_time`; in an AVI with B frames, it is a frame early.
    origin = max(first, stream.start_time or first)
    near_end = max(0.0, stated - BEFORE_END_SECONDS) / float(stream.time_base)
    container.seek(origin + int(near_end), stream=stream)
    return _measure_all(container, stream, request, origin)


def _measure_all(
    container: Any, stream: Any, request: ClipRequest, origin: int | None = None
) -> float:
    """Return the seconds from `origin`, or from the first frame, to the end of the last frame.

    0 with fewer than two packets. Raises DecodeError after the time limit.
    """
    count = 0
    times = []
    for packet in container.demux(stream):
        request.seconds_left()
        if packet.size and not packet.is_discard:
            count += 1
            # Some containers only have times of decoding.
            time = packet.dts if packet.pts is None else packet.pts
            times += [] if time is None else [time]

    if len(times) < 2:  # a bare stream
        return float(count / (stream.guessed_rate or 25)) if count > 1 else 0.0
    seconds = np.sort(np.array(times, np.int64)) * float(stream.time_base)
    first = seconds[0] if origin is None else origin * float(stream.time_base)
    return float(seconds[-1] - first + last_frame_seconds(seconds))
