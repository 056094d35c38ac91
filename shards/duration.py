"""Measures how long videos are."""

from pathlib import Path

import numpy as np

from alpro.shards.clip import MAX_SECONDS, ClipRequest, DecodeError, Limits
from alpro.shards.file_type import is_animated_file
from alpro.shards.images import animation_times
from alpro.shards.sampling import last_frame_seconds
from alpro.shards.video_file import open_video, read_packets

TIMEOUT = 600.0  # seconds: all packets are read, which takes a while on a slow disk


def video_seconds(path: Path) -> float:
    """Measure the length of a video by the times of its packets, without decoding frames.

    A length that the container states is only a hint: it may be missing, as in a stream of a
    browser, or wrong.

    Returns:
        Seconds; 0 if the packets show no length. Decoding the file shows why.

    Raises:
        InputError: If PyAV is not installed.
    """
    request = ClipRequest(path, 1, 1, start=None, end=None, limits=Limits(TIMEOUT))
    try:
        if is_animated_file(path):
            seconds = animation_times(request)
        else:
            seconds = _packet_times(request)
    except (DecodeError, OSError, OverflowError):
        return 0.0

    if len(seconds) < 2:
        return 0.0
    length = float(seconds[-1] - seconds[0] + last_frame_seconds(seconds))
    return length if length <= MAX_SECONDS else 0.0


def _packet_times(request: ClipRequest) -> np.ndarray:
    """Return when the frames of a video are shown (n,), seconds, ascending. Raises DecodeError."""
    times = []
    with open_video(request) as (container, stream):
        for packet in read_packets(container, request, stream):
            if packet.size and not packet.is_discard:
                # Some containers only have times of decoding.
                times.append(packet.dts if packet.pts is None else packet.pts)

        stated = [time for time in times if time is not None]
        if len(stated) < 2:  # a bare stream
            return np.arange(len(times)) / float(stream.guessed_rate or 25)
        return np.sort(np.array(stated, np.int64)) * float(stream.time_base)
