"""Crops and resizes stored frames to a model's input size, the same for every frame of a clip."""

import numpy as np
from PIL import Image

MAX_CROP_ATTEMPTS = 10  # attempts before the fallback to the largest central crop, as in torchvision


def squash(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 at size x size, without keeping the aspect ratio: (T, size, size, 3)."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.BICUBIC)) for f in frames])


def random_crop(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A crop of `share` of both sides (1: the whole frame) at a random place: (T, H, W, 3) to (T, h, w, 3)."""
    if share == 1:
        return frames
    height, width = frames.shape[1:3]
    h, w = round(height * share), round(width * share)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return frames[:, top : top + h, left : left + w]


def random_resized_crop(
    frame: np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A crop of a random share (`scale`) of the area and a random aspect ratio, resized: (H, W, 3) to (size, size, 3).

    As in torchvision: a crop that does not fit is drawn again, and after ten failures the largest central crop within
    the bounds of the aspect ratio is used. Bicubic.
    """
    left, top, width, height = crop_box(frame.shape[1], frame.shape[0], rng, scale, ratio)
    cropped = Image.fromarray(frame[top : top + height, left : left + width])
    return np.asarray(cropped.resize((size, size), Image.Resampling.BICUBIC))


def crop_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """The crop of `random_resized_crop`: left, top, width, height in pixels."""
    for _ in range(MAX_CROP_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h
