"""Decodes still and animated images with Pillow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from alpro.shards.clip import Clip, ClipRequest, DecodeError, Limits, error_text

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF")
DEFAULT_FRAME_SECONDS = 0.1  # browsers show a frame without a duration this long


def decode_still(path: Path, size: int, limits: Limits, keep_ratio: bool) -> Clip:
    """Decode the first frame of an image, upright: see `decode_image`."""
    with _open_image(path, limits) as image:
        upright = _upright_rgb(image)
        width, height = upright.size
        target = (size, size)
        if keep_ratio:
            scale = min(1.0, size / min(width, height))
            target = (round(width * scale), round(height * scale))
        resized = upright.resize(target, Image.Resampling.BICUBIC)
    return Clip(np.asarray(resized)[None], 0.0, width, height)


def decode_animation(request: ClipRequest) -> Clip:
    """Decode a clip of an animated PNG, WebP or AVIF. Raises DecodeError with the reason."""
    wanted, inverse, duration = request.choose(animation_times(request))
    frames = []
    with _open_image(request.path, request.limits) as image:
        first = _first_frame(image)
        for number in wanted.tolist():
            request.seconds_left()
            image.seek(first + number)
            frames.append(square_frame(image, request.size))
        width, height = image.size
    return Clip(np.stack(frames)[inverse], duration, width, height)


def animation_times(request: ClipRequest) -> np.ndarray:
    """Return when the frames of an animated image are shown (n,), seconds. Raises DecodeError."""
    times = []
    seconds = 0.0
    with _open_image(request.path, request.limits) as image:
        for number in range(_first_frame(image), getattr(image, "n_frames", 1)):
            request.seconds_left()
            image.seek(number)
            image.load()
            times.append(seconds)
            seconds += image.info.get("duration", 0) / 1000 or DEFAULT_FRAME_SECONDS
    return np.array(times)


def _first_frame(image: Image.Image) -> int:
    """Return 1 for a PNG that begins with a still image, for programs that show no animations."""
    return int("default_image" in image.info)


@contextmanager
def _open_image(path: Path, limits: Limits) -> Iterator[Image.Image]:
    """Open an image whose size is within the limits.

    Raises:
        DecodeError: With the reason, also for any error of Pillow in the body.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Checked before any pixel is decoded: `open` reads only the header.
            limits.check_size(*image.size)
            yield image
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise DecodeError("too large", "more than 178 million pixels") from None
    except Exception as error:
        # For corrupt files, Pillow also raises struct.error, KeyError and ZeroDivisionError.
        raise DecodeError("unreadable", error_text(error).split(" '/")[0]) from error


def square_frame(image: Image.Image, size: int) -> np.ndarray:
    """Scale an image of Pillow to a frame (size, size, 3) uint8, upright."""
    scaled = _upright_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(scaled)


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of Pillow as its EXIF says, on white where it is transparent, 8 bits deep."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip at 255
        high_bytes = np.asarray(upright) >> 8
        upright = Image.fromarray(high_bytes.astype(np.uint8))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB")
