"""Videos and images to frames: by PyAV in this process where it can, by the ffmpeg binary where it cannot.

Which frames: the window is that between the frames nearest to `start` and to `end`, times counted from the video's
first frame; its frames, however unequal in time, are divided into equal segments, as in the paper, and the first of
each is taken, exactly that one. A video that begins in the middle, as one cut out of a broadcast, begins with its first
key frame.

Which colours: as FFmpeg's own scaler gives them. The stream's tags (matrix, range) are obeyed; what is not tagged is
BT.601 in the limited range, for any size. High dynamic range is not mapped. Transparency is dropped in videos, and laid
on white in images; of an animated image the first picture is taken.
"""

import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from alpro.shards.clip import Clip, DecodeError, Limits, Request, memory_limit
from alpro.shards.ffmpeg_binary import by_ffmpeg, ffmpeg_binary
from alpro.shards.pyav_decoder import by_pyav

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

    The segments divide the frames between `start` and `end` seconds; where there are fewer frames than segments
    some come twice. Sizes are not kept in proportion, as in the paper. "auto" decodes by PyAV and, where that finds
    the file unreadable, by ffmpeg, whose reason is reported if it fails too; the time limit is for both together.

    Raises DecodeError with the reason, and InputError where the decoder itself is missing.
    """
    path = path.absolute()  # a relative name with a colon would be a protocol to ffmpeg
    if _bytes_of(path) == 0:
        raise DecodeError("empty")
    request = Request(path, count, size, start, end, limits)
    if decoder == "ffmpeg":
        return by_ffmpeg(request)
    try:
        return by_pyav(request)
    except DecodeError as error:
        if decoder == "pyav" or error.reason != "unreadable":
            raise
    return by_ffmpeg(request)


def decode_image(path: Path, size: int, limits: Limits = Limits(), keep_ratio: bool = False) -> Clip:  # noqa: B008
    """A still image, upright, as one frame. Raises DecodeError with the reason.

    The frame is (1, size, size, 3). With `keep_ratio` it keeps its aspect ratio, its shorter side is `size` pixels, and
    one that is smaller keeps its size.

    It is decoded in one call that nothing ends before its time, so only `limits.max_pixels` and `limits.memory` hold.
    """
    from PIL import Image, ImageOps

    if _bytes_of(path) == 0:
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
    except Image.DecompressionBombError:  # Pillow's own limit, of twice as many pixels
        raise DecodeError("too large", "more than 178 million pixels") from None
    except Exception as error:  # whatever a broken file brings up in Pillow: struct.error, KeyError, ZeroDivisionError
        raise DecodeError("unreadable", _said(error).split(" '/")[0]) from error
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def _rgb(image: "Image.Image") -> "Image.Image":
    """In three colours of eight bits; what is transparent is white."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _bytes_of(path: Path) -> int:
    """The size of a file. Raises DecodeError where there is none."""
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise DecodeError("missing") from None
    except OSError as error:
        raise DecodeError("unreadable", _said(error)) from None
    if not stat.S_ISREG(about.st_mode):
        raise DecodeError("missing")
    return about.st_size


def _said(error: BaseException) -> str:
    """What an error says, without the file's name (it is in the row) and the number of the error."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
