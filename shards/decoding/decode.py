"""Decodes videos and images to frames: with PyAV in this process, and with the ffmpeg binary if PyAV fails.

Frames: the window lies between the frames nearest to `start` and `end`, relative to the video's first frame. Its frames
are divided into segments with equal numbers of frames, as in the paper, and exactly the first frame of each is decoded.
A video without a key frame at its start, such as a cut from a broadcast, starts at its first key frame.

Colours: as converted by FFmpeg's scaler. The stream's tags (matrix, range) are respected; untagged streams are BT.601
in the limited range, for any size. High dynamic range is not tone-mapped. Transparency is dropped in videos and
composited on white in images. Of an animated image, the first frame is used.
"""

import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from alpro.shards.decoding.ffmpeg_binary import decode_with_ffmpeg, ffmpeg_binary
from alpro.shards.decoding.pyav_decoder import decode_with_pyav
from alpro.shards.decoding.request import Clip, DecodeError, DecodeRequest, Limits, memory_limit

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Clip", "DecodeError", "Decoder", "Limits", "decode_image", "decode_video", "ffmpeg_binary"]

Decoder = Literal["auto", "pyav", "ffmpeg"]


def decode_video(
    path: Path,
    count: int,
    size: int,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Clip:
    """`count` frames of a video, each the first of one of `count` equal segments, resized to `size` x `size`.

    The segments divide the frames between `start` and `end` seconds; with fewer frames than segments, frames
    repeat. The aspect ratio is not kept, as in the paper. "auto" decodes with PyAV and, if the file is unreadable,
    with ffmpeg, whose error is reported if it fails too; the time limit applies to both together.

    Raises DecodeError with the reason, and InputError if the decoder is not installed.
    """
    path = path.absolute()  # ffmpeg takes a relative name with a colon for a protocol
    if _file_size(path) == 0:
        raise DecodeError("empty")
    request = DecodeRequest(path, count, size, start, end, limits)
    if decoder == "ffmpeg":
        return decode_with_ffmpeg(request)
    try:
        return decode_with_pyav(request)
    except DecodeError as error:
        if decoder == "pyav" or error.reason != "unreadable":
            raise
    return decode_with_ffmpeg(request)


def decode_image(path: Path, size: int, limits: Limits = Limits(), keep_ratio: bool = False) -> Clip:  # noqa: B008
    """A still image, upright, as one frame. Raises DecodeError with the reason.

    The frame is (1, size, size, 3). With `keep_ratio` it keeps its aspect ratio: its shorter side is `size` pixels, and
    a smaller image keeps its size.

    The decoder call cannot be interrupted, so only `limits.max_pixels` and `limits.memory` apply.
    """
    from PIL import Image, ImageOps

    if _file_size(path) == 0:
        raise DecodeError("empty")
    try:
        with (
            memory_limit(limits),
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as image,
        ):
            limits.check_size(*image.size)
            upright = ImageOps.exif_transpose(image)
            width, height = upright.size
            target = size, size
            if keep_ratio:
                scale = min(1.0, size / min(width, height))
                target = round(width * scale), round(height * scale)
            resized = _rgb(upright).resize(target, Image.Resampling.BICUBIC)
    except DecodeError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise DecodeError("too large", "more than 178 million pixels") from None
    except Exception as error:  # Pillow raises struct.error, KeyError, ZeroDivisionError for corrupt files
        raise DecodeError("unreadable", _message(error).split(" '/")[0]) from error
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def _rgb(image: "Image.Image") -> "Image.Image":
    """Converts to 8-bit RGB, with transparency composited on white."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _file_size(path: Path) -> int:
    """The size of a file. Raises DecodeError if it does not exist or is not a regular file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an invalid file name
        raise DecodeError("missing") from None
    except OSError as error:
        raise DecodeError("unreadable", _message(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("missing")
    return status.st_size


def _message(error: BaseException) -> str:
    """The message of an error, without the file name (the row has it) and the error number."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
