"""Measures how long videos are."""

from pathlib import Path
from typing import Any

import numpy as np

from alpro.shards.clip import MAX_SECONDS, ClipRequest, DecodeError, Limits
from alpro.shards.file_type import is_animated_file
from alpro.shards.images import animation_times
from alpro.shards.sampling import last_frame_seconds
from alpro.shards.video_file import open_video


def video_seconds(path: Path, timeout: float = Limits().timeout) -> float:
    """Measure the length of a video by the times of its packets, without decoding frames.

    The length that a container states may be missing, as in a stream of a browser, or wrong.

    Returns:
        Seconds; 0 if the packets show no length within `timeout` seconds. Decoding the file shows
        why.

    Raises:
        InputError: If PyAV is not installed.
    """
    request = ClipRequest(path, 1, 1, start=None, end=None, limits=Limits(timeout))
    try:
        if is_animated_file(path):
            times = animation_times(request)
        else:
            with open_video(request) as (container, stream):
                times = _packet_times(container, stream, request)
    except (DecodeError, OSError, OverflowError):
        return 0.0
    if len(times) < 2:
        return 0.0
    seconds = float(times[-1] - times[0] + last_frame_seconds(times))
    return seconds if seconds <= MAX_SECONDS else 0.0


def _packet_times(container: Any, stream: Any, request: ClipRequest) -> np.ndarray:
    """Return the times of the packets (n,), seconds, ascending. Raises DecodeError after the time
    limit."""
    times = []
    has_times = True
    for packet in container.demux(stream):
        request.seconds_left()
        if packet.size and not packet.is_discard:
            # Some containers only have times of decoding.
            time = packet.dts if packet.pts is None else packet.pts
            has_times = has_times and time is not None
            times.append(time)

    if not has_times:  # a bare stream
        return np.arange(len(times)) / float(stream.guessed_rate or 25)
    return np.sort(np.array(times, np.int64)) * float(stream.time_base)
