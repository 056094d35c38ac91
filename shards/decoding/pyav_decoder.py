"""Decodes videos with PyAV in this process.

Packets are read first, without decoding: their timestamps determine the requested frames and the packets these need. A
decoding run starts at a key frame, ends at a requested frame, and continues to the next one unless a key frame lies in
between. Within a run, unreferenced frames are skipped unless requested. The result is bit-exact with decoding all
frames (tests/shards/decoding/test_decode_exact.py); benchmarks/decode.py has the measurements. One thread per video: a
pool has one worker per core.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.decoding.request import CONTAINERS, SCALING, Clip, DecodeError, DecodeRequest, memory_limit

# Packets are kept in memory between reading and decoding up to this size; beyond it they are read again.
MAX_HELD_BYTES = 64 << 20
MAX_HELD_BYTES_WITHOUT_SEEKING = 512 << 20  # for files without seeking, whose packets cannot be read again
# The distance from which seeking is faster than reading on.
MIN_SEEK_SECONDS = 10.0
# Containers in which every packet has a timestamp, so that reading can start anywhere.
SEEKABLE_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "avi"}
# Codecs whose bitstream marks unreferenced frames. HEVC marks them only within a temporal layer; VP9 and AV1 carry
# statistics from every frame to the next.
CODECS_WITH_UNREFERENCED_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}


OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}  # of av.open


class _SeekFailed(Exception):
    """Seeking to a key frame failed: the video is decoded from its first frame instead."""


def pyav_version() -> str:
    """The version of PyAV. Raises InputError if it is not installed, or if its libraries cannot be loaded."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    return av.__version__


def decode_with_pyav(request: DecodeRequest) -> Clip:
    """Decodes a clip with PyAV. Raises DecodeError with the reason, and InputError if PyAV is not installed."""
    pyav_version()
    import av

    try:
        with memory_limit(request.limits):
            try:
                return _clip(request, seeking=True)
            except _SeekFailed:
                return _clip(request, seeking=False)
    except MemoryError:
        raise request.limits.memory_error() from None
    except av.error.ExitError:  # FFmpeg's error for the timeout of av.open
        raise request.limits.timeout_error() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", str(getattr(error, "strerror", None) or error)) from error


MIN_BYTES = 100  # in a second of a video; a still picture at one frame a second has more


def video_seconds(path: Path) -> float:
    """The length of a video as its container states it, without reading the frames; 0 if that is unknown, would be less
    than MIN_BYTES a second, as after a flipped bit, or if the file cannot be read: decoding it tells why. Raises
    InputError if PyAV is not installed."""
    pyav_version()
    import av

    try:
        with av.open(str(path), options=OPTIONS) as container:
            stream = _video_stream(container)
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
        return float(length) if 0 < length * MIN_BYTES <= path.stat().st_size else 0.0
    except (av.FFmpegError, OSError, ValueError, DecodeError):
        return 0.0


def _clip(request: DecodeRequest, seeking: bool) -> Clip:
    import av

    max_pixels = {"max_pixels": str(request.limits.max_pixels)}  # also enforced if the size changes within the video
    left = request.seconds_left()
    with av.open(str(request.path), options=OPTIONS | max_pixels, timeout=(left, left)) as container:
        stream = _video_stream(container)
        codec = stream.codec_context
        request.limits.check_size(codec.width, codec.height)
        if not codec.width:  # FFmpeg probes frames for the size if the container has none, within the limit
            raise DecodeError("unreadable", "frames without a size, or larger than the limit")
        codec.thread_count, codec.thread_type, codec.options = 1, "NONE", max_pixels
        packets = _read(container, stream, request, seeking)
        shown = packets.in_presentation_order()
        times = (packets.timestamps()[shown] - packets.origin) * float(stream.time_base)
        indices, inverse = np.unique(request.frame_indices(times), return_inverse=True)
        decoding = _Decoding(codec, packets, shown[indices], request)
        for run in decoding.runs() if seeking else decoding.single_run():
            decoding.decode(run, packets.of_run(container, stream, run))
        if decoding.missing() and seeking:
            raise _SeekFailed
        if decoding.missing():
            detail = f"corrupt, or decoding skips frames ({decoding.missing()} of {len(indices)} requested)"
            raise DecodeError("unreadable", detail)
        frames = decoding.frames if len(indices) == len(inverse) else decoding.frames[inverse]
        return Clip(frames, request.duration(times), *decoding.display_size)


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover or thumbnail."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    for stream in container.streams.video:
        if not stream.disposition & still:
            if stream.codec_context is None:
                raise DecodeError("unreadable", "no decoder for the video's codec")
            return stream
    raise DecodeError("no video")


@dataclass(frozen=True)
class _Run:
    """Consecutive packets to decode: from `first`, a key frame, to `last`, a requested frame."""

    first: int
    last: int
    whole_from: float  # timestamp; earlier frames may refer to frames before `first`


class _Packets:
    """Packets of a video stream in decoding order, starting at a key frame. A packet's position is its index."""

    def __init__(self, request: DecodeRequest, stream: Any, seeking: bool, origin: int | None = None) -> None:
        """seeking: whether packets can be read again; origin: timestamp of the first frame, if not included."""
        self._request = request
        self._second = float(1 / stream.time_base)
        self._timestamps = array("q")
        self._keys = bytearray()
        self._shown = bytearray()  # False for frames before an edit list's start and VP8's reference frames
        self._held: list[Any] | None = []
        self._bytes = 0
        self._max_held_bytes = MAX_HELD_BYTES if seeking else MAX_HELD_BYTES_WITHOUT_SEEKING
        self._can_seek = seeking
        self._last_dts: int | None = None
        self._ordered = True  # no frame is presented before it is decoded
        self._origin_known = origin is not None
        self.origin = origin

    def add(self, packet: Any, shown: bool) -> None:
        if packet.is_corrupt:
            raise DecodeError("unreadable", "the container marks a frame as corrupt")
        if packet.pts is None:
            raise DecodeError("unreadable", "frames without unique timestamps")
        self._timestamps.append(packet.pts)
        self._keys.append(packet.is_keyframe)
        self._shown.append(shown)
        self._bytes += packet.size
        if self._bytes > self._max_held_bytes:
            if not self._can_seek:
                raise DecodeError("unreadable", "file too long for a format without seeking")
            self._held = None
        if self._held is not None:
            self._held.append(packet)
        self._last_dts = packet.dts
        self._ordered &= packet.dts is None or packet.dts <= packet.pts
        if not self._origin_known and shown:
            self.origin = packet.pts if self.origin is None else min(self.origin, packet.pts)
            # No later frame can precede the first.
            self._origin_known = self._ordered and packet.dts is not None and packet.dts >= self.origin

    def __len__(self) -> int:
        return len(self._timestamps)

    def start(self) -> float:
        """The timestamp at which the window starts."""
        return (self.origin or 0) + (self._request.start or 0.0) * self._second

    def is_far(self) -> bool:
        """Whether the window is far enough for seeking to be faster."""
        return (
            self._origin_known
            and self._last_dts is not None
            and self.start() - self._last_dts > MIN_SEEK_SECONDS * self._second
        )

    def is_complete(self) -> bool:
        """Whether no later frame can be in the window or be the first frame after it."""
        if not (self._origin_known and self._ordered) or self._request.end is None or self._last_dts is None:
            return False
        end = (self.origin or 0) + self._request.end * self._second
        return self._last_dts > end and any(end <= timestamp <= self._last_dts for timestamp in self._timestamps)

    def check_end(self, stream: Any) -> None:
        """Raises DecodeError if the file ends before its index does."""
        index = stream.index_entries
        if len(index) and index[len(index) - 1].timestamp > max(self._timestamps):
            raise DecodeError("unreadable", "truncated: frames in the index are missing")

    def last_step_known(self) -> bool:
        """Whether there are enough packets to derive the duration of the last frame."""
        return self._ordered and sum(self._shown) >= 17

    def timestamps(self) -> np.ndarray:
        return np.frombuffer(self._timestamps, np.int64)

    def keys(self) -> np.ndarray:
        """The positions of the key frames, ascending."""
        return np.flatnonzero(np.frombuffer(self._keys, np.uint8))

    def in_presentation_order(self) -> np.ndarray:
        """The positions of the frames in presentation order. Raises DecodeError if two have the same timestamp."""
        shown = np.flatnonzero(np.frombuffer(self._shown, np.uint8))
        if not len(shown):
            raise DecodeError("unreadable", "no frames in the video stream")
        timestamps = self.timestamps()[shown]
        order = np.argsort(timestamps)
        if (np.diff(timestamps[order]) == 0).any():
            raise DecodeError("unreadable", "frames without unique timestamps")
        return shown[order]

    def of_run(self, container: Any, stream: Any, run: _Run) -> Iterator[Any]:
        """The packets of a run, from memory or read again."""
        if self._held is not None:
            yield from self._held[run.first : run.last + 1]
            return
        container.seek(self._timestamps[run.first], stream=stream)
        position = None
        for packet in container.demux(stream):
            if position is None and packet.size and packet.pts == self._timestamps[run.first]:
                position = run.first
            if position is not None and packet.size:
                yield packet
                position += 1
                if position > run.last:
                    return
        raise _SeekFailed


def _from_key_frame(container: Any, stream: Any, request: DecodeRequest) -> Iterator[tuple[Any, bool]]:
    """The stream's packets from the next key frame on, and whether each is presented."""
    vp8 = stream.codec_context.name == "vp8"
    before_key_frame = True
    for packet in container.demux(stream):
        request.seconds_left()
        before_key_frame = before_key_frame and not packet.is_keyframe
        if packet.size and not before_key_frame:
            yield packet, not packet.is_discard and not (vp8 and not memoryview(packet)[0] >> 4 & 1)


def _read(container: Any, stream: Any, request: DecodeRequest, seeking: bool) -> _Packets:
    """Reads the packets that the window needs, without decoding: of an hour-long file only the head and the segment."""
    # AVI numbers packets in file order, which is not the order of the frames if some are bidirectional.
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise DecodeError("unreadable", "frames without unique timestamps")
    seeking = seeking and container.format.name in SEEKABLE_CONTAINERS
    packets = _Packets(request, stream, seeking)
    for packet, shown in _from_key_frame(container, stream, request):
        packets.add(packet, shown)
        if seeking and packets.is_far():
            return _read_segment(container, stream, request, packets)
        if packets.is_complete():
            return packets
    # An edit list may omit whole groups of frames, which are then missing from MP4's index.
    expected = len(stream.index_entries) if container.format.name.startswith("mov") else stream.frames
    if len(packets) < expected:
        raise DecodeError("unreadable", f"truncated: {len(packets)} of {expected} frames")
    return packets


def _read_segment(container: Any, stream: Any, request: DecodeRequest, head: _Packets) -> _Packets:
    """Reads from the last key frame before the window. Raises _SeekFailed if the container cannot seek there."""
    for back in (0.0, 1.0, 5.0, 20.0):  # seconds: some containers seek by decoding time, or approximately
        target = int(head.start() - back / float(stream.time_base))
        if head.origin is None or target <= head.origin:
            break
        container.seek(target, stream=stream)
        packets = _Packets(request, stream, True, head.origin)
        for packet, shown in _from_key_frame(container, stream, request):
            if not len(packets) and (packet.pts is None or packet.pts > head.start()):
                break
            packets.add(packet, shown)
            if packets.is_complete():
                return packets
        if len(packets):
            packets.check_end(stream)
        if packets.last_step_known():
            return packets
    raise _SeekFailed


class _Decoding:
    """Decodes runs of packets into frames."""

    def __init__(self, codec: Any, packets: _Packets, requested: np.ndarray, request: DecodeRequest) -> None:
        """requested: unique positions of packets, in presentation order."""
        from av.video.reformatter import Interpolation, VideoReformatter

        self._requested = requested
        self.frames = np.empty((len(requested), request.size, request.size, 3), np.uint8)
        self.display_size = (codec.width, codec.height)
        self._codec = codec
        self._packets = packets
        self._request = request
        self._slots = {int(timestamp): slot for slot, timestamp in enumerate(packets.timestamps()[requested])}
        self._skips_unreferenced = codec.name in CODECS_WITH_UNREFERENCED_FRAMES
        self._reformatter = VideoReformatter()
        self._scaling = sum(Interpolation[name.upper()] for name in SCALING)
        self._corrupt = False
        self._matrix: tuple[int, int, int, int] | None = None

    def runs(self) -> list[_Run]:
        """A new run starts if a key frame lies between two requested frames."""
        keys, timestamps = self._packets.keys(), self._packets.timestamps()
        runs: list[_Run] = []
        for position in np.sort(self._requested).tolist():
            at = int(np.searchsorted(keys, position, side="right")) - 1
            while at >= 0 and timestamps[keys[at]] > timestamps[position]:
                at -= 1  # presented before that key frame, it may refer to earlier frames
            first, last = int(keys[max(at, 0)]), position
            whole_from = timestamps[first] if at >= 0 else -np.inf
            while runs and first <= runs[-1].last:
                earlier = runs.pop()
                if earlier.first <= first:
                    first, whole_from = earlier.first, earlier.whole_from
                last = max(last, earlier.last)
            runs.append(_Run(first, last, whole_from))
        return runs

    def single_run(self) -> list[_Run]:
        return [_Run(0, int(self._requested.max()), -np.inf)]

    def decode(self, run: _Run, packets: Iterator[Any]) -> None:
        codec, last = self._codec, None
        if codec.is_open:
            codec.flush_buffers()
        for packet in chain(packets, [None]):  # None flushes the decoder
            self._request.seconds_left()
            if self._skips_unreferenced and packet is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in self._slots else "NONREF"
            for frame in codec.decode(packet):
                if frame.pts is None or (last is not None and frame.pts <= last):
                    raise DecodeError("unreadable", "frame times are not ascending")
                last = frame.pts
                # A corrupt frame is concealed and affects others, including earlier ones that refer to it.
                self._corrupt |= frame.is_corrupt and last >= run.whole_from
                if last in self._slots:
                    self._draw(frame, self.frames[self._slots.pop(last)])

    def missing(self) -> int:
        """The number of requested frames that are unavailable: all of them if any decoded frame is corrupt."""
        return len(self._requested) if self._corrupt else len(self._slots)

    def _draw(self, frame: Any, out: np.ndarray) -> None:
        """Writes a frame, rotated upright, to (size, size, 3) uint8."""
        self._request.limits.check_size(frame.width, frame.height)
        if self._matrix is None:
            self._matrix = _display_matrix(frame)
        a, b, c, d = self._matrix
        rotated = abs(b) > abs(a)
        across, down = (c, b) if rotated else (a, d)
        self.display_size = (frame.height, frame.width) if rotated else (frame.width, frame.height)
        out = out[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        out = out.transpose(1, 0, 2) if rotated else out
        # Planar GBR: swscale interpolates chroma for it, and it is faster than rgb24.
        size = self._request.size
        scaled = self._reformatter.reformat(frame, size, size, "gbrp", interpolation=self._scaling, threads=1)
        for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):
            out[:, :, channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(size, -1)[:, :size]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The display matrix (a, b, c, d) of a frame: the point (x, y) is shown at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import Type

    # Read from a small copy: a frame and its side data form a reference cycle until the next garbage collection.
    small = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1)
    side = small.side_data.get(Type.DISPLAYMATRIX)
    if side is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(side, np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])
