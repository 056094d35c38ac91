"""Opens videos with PyAV, and draws their frames upright and scaled."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.shards.clip import MAX_SECONDS, ClipRequest, DecodeError, error_text

# Containers of media only. Playlists and scripts could refer to other files or hosts and are
# excluded; the only protocol is a plain file.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v"
# FFmpeg's flags: of the containers of bare streams, and of those whose clock may restart.
NO_TIMESTAMPS = 0x80
DISCONTINUOUS = 0x200
# FFmpeg's flags for scaling and color conversion; images use the same filter. Without accurate_rnd,
# a frame that already has the target size comes out darker by 1 of 255.
SCALING = 0x4 | 0x40000  # SWS_BICUBIC and SWS_ACCURATE_RND
# At the end of a complete file: a container may round its duration.
MAX_MISSING_SECONDS = 1.0


def import_av() -> Any:
    """Return PyAV. Raises InputError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"no PyAV ({error}): pip install av") from error
    return av


@contextmanager
def open_video(request: ClipRequest) -> Iterator[tuple[Any, Any]]:
    """Open the container of a request and its video stream, ready to decode in one thread.

    Raises:
        DecodeError: With the reason, also for any error of PyAV in the body.
        InputError: If PyAV is not installed.
    """
    av = import_av()
    limits = request.limits
    max_pixels = {"max_pixels": str(limits.max_pixels)}
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        with av.open(
            str(request.path),
            options=options | max_pixels,
            timeout=request.seconds_left(),  # for opening, and for each read
            metadata_errors="ignore",  # such as a title in Latin-1
        ) as container:
            stream = _find_video_stream(container)
            codec = stream.codec_context
            limits.check_size(codec.width, codec.height)

            # The margin that a stream hides is cut off exactly, as ffmpeg does. Otherwise up to 31
            # columns of it would stay, to keep rows aligned in memory.
            codec.flags |= av.codec.context.Flags.unaligned
            codec.thread_count = 1  # a pool has a worker per core
            codec.thread_type = "NONE"
            # The codec checks it as well: the size may change within the video.
            codec.options = max_pixels
            yield container, stream
    except av.error.ExitError:  # FFmpeg's error for the timeout of av.open
        raise limits.too_slow() from None
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError("unreadable", error_text(error)) from error


def _find_video_stream(container: Any) -> Any:
    """Return the first video stream that is not a cover or thumbnail. Raises DecodeError."""
    disposition = import_av().stream.Disposition
    pictures = disposition.attached_pic | disposition.timed_thumbnails
    for stream in container.streams.video:
        if not stream.disposition & pictures:
            if stream.codec_context is None:
                raise DecodeError("unreadable", "no decoder for the video's codec")
            return stream
    raise DecodeError("no video")


def read_packets(container: Any, request: ClipRequest, *streams: Any) -> Iterator[Any]:
    """Yield the packets of streams, by default of all, from the next key frame on. The last one of a
    stream is empty and flushes its decoder.

    Raises:
        DecodeError: After the time limit.
    """
    has_key = False
    # PyAV flushes the streams that it knows, and fails at those that the container began later.
    with suppress(IndexError):
        while request.seconds_left():
            # FFmpeg asks to be called again after each part of the padding of a transport stream.
            with suppress(BlockingIOError):
                for packet in container.demux(*streams):
                    request.seconds_left()
                    # Some decoders return frames of earlier ones, and do not mark them as corrupt.
                    has_key = has_key or packet.is_keyframe or not packet.size
                    if has_key:
                        yield packet
                return


def check_complete(
    container: Any, stream: Any, end: float, request: ClipRequest
) -> None:
    """Raise DecodeError if a video that was read to its end is shorter than its container states.

    Such a file was cut off, as by a download that stopped. MP4, Matroska, FLV and AVI state how
    long they are; for others, FFmpeg estimates it from the file as it is.

    Args:
        end: When the last frame is shown, in seconds of the container's clock.
    """
    if container.format.flags & (NO_TIMESTAMPS | DISCONTINUOUS):
        return
    # Matroska counts it from time 0, others from the first frame, which is later in few files.
    # Where an AVI lacks its index, only its number of frames is not estimated.
    container_seconds = (container.duration or 0) / import_av().time_base
    stated = max(container_seconds, float(stream.frames * stream.time_base))
    # FFmpeg states years in an AVI that it writes to a pipe.
    if not end + MAX_MISSING_SECONDS < stated <= MAX_SECONDS:
        return

    # The container states the duration of its longest stream, which may be the sound.
    container.seek(container.start_time or 0)
    for packet in read_packets(container, request):
        time = packet.dts if packet.pts is None else packet.pts
        if time is not None:
            packet_end = (time + (packet.duration or 0)) * packet.time_base
            end = max(end, float(packet_end))
    if stated > end + MAX_MISSING_SECONDS:
        raise DecodeError(
            "unreadable",
            f"truncated: it ends after {end:.1f} of {stated:.1f} s; if it is complete, remux it: "
            "ffmpeg -i FILE -c copy NEW.mkv",
        )


def draw(
    decoded: Iterator[Any], count: int, request: ClipRequest
) -> tuple[np.ndarray, int, int]:
    """Scale the first `count` frames of an iterator.

    Returns:
        Frames (count, size, size, 3) uint8, and the width and height of the last one when upright.

    Raises:
        DecodeError: If there are fewer frames.
    """
    scaler = import_av().video.reformatter.VideoReformatter()
    frames = np.empty((count, request.size, request.size, 3), np.uint8)
    drawn = 0
    width = height = 0
    matrix: tuple[int, ...] | None = None
    # `zip` asks for no frame after the last one, which would have to be decoded.
    for target, frame in zip(frames, decoded, strict=False):
        request.limits.check_size(frame.width, frame.height)
        matrix = matrix or _read_display_matrix(frame)
        width, height = _draw_frame(frame, matrix, scaler, target)
        drawn += 1
    if drawn < count:
        detail = f"corrupt, or decoding skips frames ({drawn} of {count} were decoded)"
        raise DecodeError("unreadable", detail)
    return frames, width, height


def _draw_frame(
    frame: Any, matrix: tuple[int, ...], scaler: Any, target: np.ndarray
) -> tuple[int, int]:
    """Write a frame to (size, size, 3) uint8. Returns its width and height when upright."""
    a, b, c, d = matrix
    is_rotated = abs(b) > abs(a)
    # The scales from the frame's axes to the picture's; a negative one mirrors.
    across, down = (c, b) if is_rotated else (a, d)
    if down < 0:
        target = target[::-1]
    if across < 0:
        target = target[:, ::-1]

    # Planar GBR: swscale interpolates chroma for it, and it is faster than rgb24.
    size = len(target)
    scaled = scaler.reformat(
        _as_progressive(frame),
        size,
        size,
        "gbrp",
        interpolation=SCALING,
        threads=1,
    )
    pixels = scaled.to_ndarray()
    if is_rotated:
        target[:] = pixels.transpose(1, 0, 2)
        return frame.height, frame.width
    target[:] = pixels
    return frame.width, frame.height


def _read_display_matrix(frame: Any) -> tuple[int, ...]:
    """Return the display matrix (a, b, c, d) of a frame, which shows (x, y) at
    (ax + cy, bx + dy)."""
    types = import_av().sidedata.sidedata.Type
    # For data of a type that it does not know, such as Exif, PyAV otherwise raises an error.
    types._missing_ = lambda _: types.VIDEO_HINT
    # Read from a small copy: a frame and its side data form a reference cycle until the next
    # garbage collection.
    copy = frame.reformat(16, 16, "gray", interpolation="POINT", threads=1)
    matrix = copy.side_data.get(types.DISPLAYMATRIX)
    if matrix is None:
        return (1, 0, 0, 1)
    values = np.frombuffer(matrix, np.int32)  # 9 values, row by row
    return tuple(values[[0, 1, 3, 4]].tolist())


def _as_progressive(frame: Any) -> Any:
    """Mark a frame as progressive.

    PyAV scales the two fields of an interlaced frame separately, so that moving edges become combs
    of single lines. The ffmpeg binary and other decoders scale the frame as it is.
    """
    if not frame.interlaced_frame:
        return frame

    graph = import_av().filter.Graph()
    graph.threads = 1  # threads of its own would not survive a fork
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        # Not every frame has one; none is read.
        time_base=frame.time_base or Fraction(1),
    )
    marked = graph.add("setfield", "prog")
    sink = graph.add("buffersink")
    source.link_to(marked)
    marked.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.pull()
