"""Frames of a video in this process, by PyAV.

Packets are read first, without decoding any: their stamps say which frames are wanted, and which packets those need. A
run of decoding goes from a key frame to a wanted frame, and on to the next one unless a key frame lies between; within
it, frames that no other refers to are passed over unless they are wanted. What comes out is, to the bit, what decoding
everything gives (tests/shards/test_decode_exact.py); benchmarks/decode.py has the figures. One thread a video: a pool
has as many workers as there are cores.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.clip import CONTAINERS, SCALING, Clip, DecodeError, Request, memory_limit

# Packets are kept from the first reading to the decoding while they are no more than this; then they are read again.
HELD_BYTES = 64 << 20
MOST_HELD_BYTES = 512 << 20  # where they cannot be read again
# A segment that begins later than this is sought; up to there reading on is as fast.
FAR_SECONDS = 10.0
# Containers whose every packet has a stamp of its own, so that reading may begin anywhere.
STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "avi"}
# Codecs whose bitstream says of a frame that no other refers to it. HEVC says so too, but within one temporal layer
# only; VP9 and AV1 carry statistics from every frame to the next.
SAYS_UNREFERENCED = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}


class _Lost(Exception):
    """Beginning at a key frame did not lead where it should: what is wanted is decoded from the video's first frame."""


def by_pyav(request: Request) -> Clip:
    """Raises DecodeError with the reason, and InputError where PyAV is missing."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install 'alpro-pipeline[video]'") from error
    try:
        with memory_limit(request.limits):
            try:
                return _clip(request, seeking=True)
            except _Lost:
                return _clip(request, seeking=False)
    except MemoryError:
        raise request.limits.too_much() from None
    except av.error.ExitError:  # what FFmpeg says when av.open's timeout is over
        raise request.limits.too_slow() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", str(getattr(error, "strerror", None) or error)) from error


def _clip(request: Request, seeking: bool) -> Clip:
    import av

    most = {"max_pixels": str(request.limits.max_pixels)}  # kept to where the size changes on the way, too
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, **most}
    left = request.seconds_left()
    with av.open(str(request.path), options=options, timeout=(left, left)) as container:
        stream = _video_stream(container)
        codec = stream.codec_context
        request.limits.check_size(codec.width, codec.height)
        if not codec.width:  # FFmpeg has looked into frames of a codec whose container says no size, within the limit
            raise DecodeError("unreadable", "pictures of no size, or of one beyond the limit")
        codec.thread_count, codec.thread_type, codec.options = 1, "NONE", most
        packets = _read(container, stream, request, seeking)
        shown = packets.in_order_shown()
        times = (packets.stamps()[shown] - packets.origin) * float(stream.time_base)
        wanted, again = np.unique(request.wanted(times), return_inverse=True)
        decoding = _Decoding(codec, packets, shown[wanted], request)
        for run in decoding.runs() if seeking else decoding.one_run():
            decoding.do(run, packets.of_run(container, stream, run))
        if decoding.missing() and seeking:
            raise _Lost
        if decoding.missing():
            told = f"damaged, or decoding skips frames ({decoding.missing()} of the {len(wanted)} wanted)"
            raise DecodeError("unreadable", told)
        frames = decoding.frames if len(wanted) == len(again) else decoding.frames[again]
        return Clip(frames, request.duration(times), *decoding.shown_size)


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures: a cover or a thumbnail is none."""
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
    """Packets that are decoded one after the other: from `first`, a key frame, to `last`, which is wanted."""

    first: int
    last: int
    whole_from: float  # stamp; a frame before it may refer to one before `first`


class _Packets:
    """Packets of a video stream in the order of decoding, all from a key frame on. A packet's place is its index."""

    def __init__(self, request: Request, stream: Any, seeking: bool, origin: int | None = None) -> None:
        """seeking: whether packets may be read again; origin: the stamp of the video's first frame, if not here."""
        self._request = request
        self._second = float(1 / stream.time_base)
        self._stamps = array("q")
        self._keys = bytearray()
        self._shown = bytearray()  # others are decoded and never shown: before an edit list's start, VP8's references
        self._held: list[Any] | None = []
        self._bytes = 0
        self._most_held = HELD_BYTES if seeking else MOST_HELD_BYTES
        self._readable_again = seeking
        self._last_dts: int | None = None
        self._ordered = True  # no frame is to be shown before it is decoded
        self._begun = origin is not None
        self.origin = origin

    def add(self, packet: Any, shown: bool) -> None:
        if packet.is_corrupt:
            raise DecodeError("unreadable", "the container says that a frame is damaged")
        if packet.pts is None:
            raise DecodeError("unreadable", "frames without times of their own")
        self._stamps.append(packet.pts)
        self._keys.append(packet.is_keyframe)
        self._shown.append(shown)
        self._bytes += packet.size
        if self._bytes > self._most_held:
            if not self._readable_again:
                raise DecodeError("unreadable", "too long a file of a kind that cannot be sought in")
            self._held = None
        if self._held is not None:
            self._held.append(packet)
        self._last_dts = packet.dts
        self._ordered &= packet.dts is None or packet.dts <= packet.pts
        if not self._begun and shown:
            self.origin = packet.pts if self.origin is None else min(self.origin, packet.pts)
            # None that comes can be before the first that was seen.
            self._begun = self._ordered and packet.dts is not None and packet.dts >= self.origin

    def __len__(self) -> int:
        return len(self._stamps)

    def start(self) -> float:
        """The stamp at which the window begins."""
        return (self.origin or 0) + (self._request.start or 0.0) * self._second

    def far(self) -> bool:
        """Whether the window is so far off that seeking pays."""
        return self._begun and self._last_dts is not None and self.start() - self._last_dts > FAR_SECONDS * self._second

    def enough(self) -> bool:
        """Whether no frame that comes can be in the window, or be the first behind it."""
        if not (self._begun and self._ordered) or self._request.end is None or self._last_dts is None:
            return False
        end = (self.origin or 0) + self._request.end * self._second
        return self._last_dts > end and any(end <= stamp <= self._last_dts for stamp in self._stamps)

    def check_end(self, stream: Any) -> None:
        """Raises DecodeError where the file ends before its own index does."""
        index = stream.index_entries
        if len(index) and index[len(index) - 1].timestamp > max(self._stamps):
            raise DecodeError("unreadable", "cut short: the index names frames that are not there")

    def tells_the_end(self) -> bool:
        """Whether these, the last, are enough to say how long the last frame stays."""
        return self._ordered and sum(self._shown) >= 17

    def stamps(self) -> np.ndarray:
        return np.frombuffer(self._stamps, np.int64)

    def keys(self) -> np.ndarray:
        """The places of the key frames, ascending."""
        return np.flatnonzero(np.frombuffer(self._keys, np.uint8))

    def in_order_shown(self) -> np.ndarray:
        """The places of the frames in the order of their times. Raises DecodeError where two have the same."""
        shown = np.flatnonzero(np.frombuffer(self._shown, np.uint8))
        if not len(shown):
            raise DecodeError("unreadable", "no frames in the video stream")
        stamps = self.stamps()[shown]
        order = np.argsort(stamps)
        if (np.diff(stamps[order]) == 0).any():
            raise DecodeError("unreadable", "frames without times of their own")
        return shown[order]

    def of_run(self, container: Any, stream: Any, run: _Run) -> Iterator[Any]:
        """The packets of a run: those kept, or read again."""
        if self._held is not None:
            yield from self._held[run.first : run.last + 1]
            return
        container.seek(self._stamps[run.first], stream=stream)
        place = None
        for packet in container.demux(stream):
            if place is None and packet.size and packet.pts == self._stamps[run.first]:
                place = run.first
            if place is not None and packet.size:
                yield packet
                place += 1
                if place > run.last:
                    return
        raise _Lost


def _from_key_frame(container: Any, stream: Any, request: Request) -> Iterator[tuple[Any, bool]]:
    """The stream's packets from the next key frame on, and whether they are to be shown."""
    vp8 = stream.codec_context.name == "vp8"
    waiting = True
    for packet in container.demux(stream):
        request.seconds_left()
        waiting = waiting and not packet.is_keyframe
        if packet.size and not waiting:
            yield packet, not packet.is_discard and not (vp8 and not memoryview(packet)[0] >> 4 & 1)


def _read(container: Any, stream: Any, request: Request, seeking: bool) -> _Packets:
    """Reads what the window needs, without decoding: of an hour-long file the head and the segment."""
    # AVI numbers packets in the order in which they lie, which is not that of the frames where some are bidirectional.
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise DecodeError("unreadable", "frames without times of their own")
    seeking = seeking and container.format.name in STAMPED
    packets = _Packets(request, stream, seeking)
    for packet, shown in _from_key_frame(container, stream, request):
        packets.add(packet, shown)
        if seeking and packets.far():
            return _read_segment(container, stream, request, packets)
        if packets.enough():
            return packets
    # An edit list may leave out whole groups of frames, of which MP4's index then says nothing.
    told = len(stream.index_entries) if container.format.name.startswith("mov") else stream.frames
    if len(packets) < told:
        raise DecodeError("unreadable", f"cut short, {len(packets)} of {told} frames are there")
    return packets


def _read_segment(container: Any, stream: Any, request: Request, head: _Packets) -> _Packets:
    """Reads on from the last key frame before the window. Raises _Lost where the container does not lead there."""
    for back in (0.0, 1.0, 5.0, 20.0):  # seconds: some containers are sought by the time of decoding, or roughly
        target = int(head.start() - back / float(stream.time_base))
        if head.origin is None or target <= head.origin:
            break
        container.seek(target, stream=stream)
        packets = _Packets(request, stream, True, head.origin)
        for packet, shown in _from_key_frame(container, stream, request):
            if not len(packets) and (packet.pts is None or packet.pts > head.start()):
                break
            packets.add(packet, shown)
            if packets.enough():
                return packets
        if len(packets):
            packets.check_end(stream)
        if packets.tells_the_end():
            return packets
    raise _Lost


class _Decoding:
    """Runs of a decoder over packets, and the pictures that come of them."""

    def __init__(self, codec: Any, packets: _Packets, wanted: np.ndarray, request: Request) -> None:
        """wanted: places of packets, each once, in the order in which they are shown."""
        from av.video.reformatter import Interpolation, VideoReformatter

        self._wanted = wanted
        self.frames = np.empty((len(wanted), request.size, request.size, 3), np.uint8)
        self.shown_size = (codec.width, codec.height)
        self._codec = codec
        self._packets = packets
        self._request = request
        self._slots = {int(stamp): slot for slot, stamp in enumerate(packets.stamps()[wanted])}
        self._passes_over = codec.name in SAYS_UNREFERENCED
        self._reformatter = VideoReformatter()
        self._scaling = sum(Interpolation[name.upper()] for name in SCALING)
        self._damaged = False
        self._matrix: tuple[int, int, int, int] | None = None

    def runs(self) -> list[_Run]:
        """A new run begins wherever a key frame lies between two wanted frames."""
        keys, stamps = self._packets.keys(), self._packets.stamps()
        runs: list[_Run] = []
        for place in np.sort(self._wanted).tolist():
            at = int(np.searchsorted(keys, place, side="right")) - 1
            while at >= 0 and stamps[keys[at]] > stamps[place]:
                at -= 1  # shown before that key frame, it may refer to frames before it
            first, last = int(keys[max(at, 0)]), place
            whole_from = stamps[first] if at >= 0 else -np.inf
            while runs and first <= runs[-1].last:
                earlier = runs.pop()
                if earlier.first <= first:
                    first, whole_from = earlier.first, earlier.whole_from
                last = max(last, earlier.last)
            runs.append(_Run(first, last, whole_from))
        return runs

    def one_run(self) -> list[_Run]:
        return [_Run(0, int(self._wanted.max()), -np.inf)]

    def do(self, run: _Run, packets: Iterator[Any]) -> None:
        """Decodes a run and keeps what is wanted of it."""
        codec, last = self._codec, None
        if codec.is_open:
            codec.flush_buffers()
        for packet in chain(packets, [None]):  # behind the last, what the decoder held back
            self._request.seconds_left()
            if self._passes_over and packet is not None:
                codec.skip_frame = "DEFAULT" if packet.pts in self._slots else "NONREF"
            for frame in codec.decode(packet):
                if frame.pts is None or (last is not None and frame.pts <= last):
                    raise DecodeError("unreadable", "frames whose times do not ascend")
                last = frame.pts
                # It is patched from others, and others from it, even some that came before: they refer to later ones.
                self._damaged |= frame.is_corrupt and last >= run.whole_from
                if last in self._slots:
                    self._draw(frame, self.frames[self._slots.pop(last)])

    def missing(self) -> int:
        """How many of the wanted frames cannot be had: all, where any that was decoded on the way is damaged."""
        return len(self._wanted) if self._damaged else len(self._slots)

    def _draw(self, frame: Any, out: np.ndarray) -> None:
        """A frame upright into (size, size, 3) uint8."""
        self._request.limits.check_size(frame.width, frame.height)
        if self._matrix is None:
            self._matrix = _display_matrix(frame)
        a, b, c, d = self._matrix
        turned = abs(b) > abs(a)
        across, down = (c, b) if turned else (a, d)
        self.shown_size = (frame.height, frame.width) if turned else (frame.width, frame.height)
        out = out[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        out = out.transpose(1, 0, 2) if turned else out
        # Planes of green, blue and red: to them swscale interpolates the colours, and it is faster than to rgb24.
        size = self._request.size
        scaled = self._reformatter.reformat(frame, size, size, "gbrp", interpolation=self._scaling, threads=1)
        for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):
            out[:, :, channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(size, -1)[:, :size]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """How a frame is to be shown: the point (x, y) at (ax + cy, bx + dy)."""
    from av.sidedata.sidedata import Type

    # Asked of a small copy: a frame and its side data hold each other until the garbage collector comes by.
    small = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1)
    side = small.side_data.get(Type.DISPLAYMATRIX)
    if side is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(side, np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])
