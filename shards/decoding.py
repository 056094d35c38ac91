"""Decodes videos and images to frames, within limits of time, memory and pixels.

PyAV decodes in this process; the ffmpeg binary decodes what PyAV cannot, in a process of its own.

Frames: the window lies between the frames nearest to `start` and `end`, relative to the video's
first frame. Its frames are divided into segments with equal numbers of frames, as in the paper, and
exactly the first frame of each is decoded. A video without a key frame at its start, such as a cut
from a broadcast, starts at its first key frame.

Colors: as converted by FFmpeg's scaler. The stream's tags (matrix, range) are respected; untagged
streams are BT.601 in the limited range, for any size. High dynamic range is not tone-mapped.
Transparency is dropped in videos and composited on white in images. Of an animated image, the first
frame is used.
"""

import resource
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from alpro.shards.clip import Clip, ClipRequest, DecodeError, Limits, error_text
from alpro.shards.ffmpeg_decoder import decode_with_ffmpeg
from alpro.shards.pyav_decoder import decode_with_pyav

Decoder = Literal["auto", "pyav", "ffmpeg"]


def decode_video(
    path: Path,
    count: int,
    size: int,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    limits: Limits = Limits(),
) -> Clip:
    """`count` frames of a video, each the first of one of `count` equal segments.

    The segments divide the frames between `start` and `end` seconds; with fewer frames than
    segments, frames repeat. Frames are resized to `size` x `size`: the aspect ratio is not kept, as
    in the paper.

    "auto" decodes with PyAV and, if the file is unreadable, with ffmpeg, whose error is reported if
    it fails too. The time limit applies to both together.

    Raises DecodeError with the reason, and InputError if the decoder is not installed.
    """
    path = path.absolute()  # ffmpeg takes a relative name with a colon for a protocol
    _check_file(path)
    request = ClipRequest(path, count, size, start=start, end=end, limits=limits)

    if decoder != "ffmpeg":
        try:
            return decode_with_pyav(request)
        except DecodeError as error:
            # Other reasons, such as too many pixels, hold for ffmpeg, too.
            if decoder == "pyav" or error.reason != "unreadable":
                raise
    return decode_with_ffmpeg(request)


def decode_image(
    path: Path,
    size: int,
    limits: Limits = Limits(),
    keep_ratio: bool = False,
) -> Clip:
    """A still image, upright, as one frame. Raises DecodeError with the reason.

    The frame is (1, size, size, 3). With `keep_ratio` it keeps its aspect ratio: its shorter side
    is `size` pixels, and a smaller image keeps its size. The decoder cannot be interrupted, so the
    time limit does not apply.
    """
    _check_file(path)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF")) as image,
        ):
            # Before any pixel is decoded: `open` reads the header alone.
            limits.check_size(*image.size)

            upright = ImageOps.exif_transpose(image)
            width, height = upright.size
            target = (size, size)
            if keep_ratio:
                scale = min(1.0, size / min(width, height))
                target = (round(width * scale), round(height * scale))

            if upright.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip at 255
                high_bytes = np.asarray(upright) >> 8
                upright = Image.fromarray(high_bytes.astype(np.uint8))
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)

            rgb = upright.convert("RGB")
            resized = rgb.resize(target, Image.Resampling.BICUBIC)
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise DecodeError("too large", "more than 178 million pixels") from None
    except Exception as error:
        # For corrupt files, Pillow also raises struct.error, KeyError and ZeroDivisionError.
        raise DecodeError("unreadable", error_text(error).split(" '/")[0]) from error
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def _check_file(path: Path) -> None:
    """Raises DecodeError unless the path is a regular file that is not empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an invalid file name
        raise DecodeError("missing") from None
    except OSError as error:
        raise DecodeError("unreadable", error_text(error)) from None

    # A pipe or a device could block forever.
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("missing")
    if not status.st_size:
        raise DecodeError("empty")


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Within the body, this process can allocate `size` bytes more than it holds.

    Further allocations raise MemoryError: FFmpeg and numpy report the failure, and the process
    continues. For processes of one thread, on Linux.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(FileNotFoundError):  # another system
        # Pages of data, which RLIMIT_DATA counts, and of the stack, which is small.
        data_pages = int(Path("/proc/self/statm").read_text().split()[5])
        allowed = data_pages * resource.getpagesize() + size
        limits = [limit for limit in (allowed, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))

    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
