"""The official augmentation, the same for every frame of a clip: RandAugment, and for images a random resized crop.

Clips, after their crop: two different operations of ten, both applied, at level 5. Images: a random resized crop, a
flip, then two operations of eight, which may be the same, each applied in half of the cases, at level 7. All operations
act to one side. Departure: what has "left" or "right" in its text is never flipped, since the text would then be wrong.
"""

import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from alpro.shards.transforms import random_resized_crop

Picture = Image.Image
FILL = (128, 128, 128)
VIDEO_STRENGTH, IMAGE_STRENGTH = 0.5, 0.7  # levels 5 and 7 of 10
SIDES = re.compile(r"\b(left|right)(wards?|most|-hand)?\b", re.IGNORECASE)


def augment_video(frames: np.ndarray, text: str, rng: np.random.Generator) -> np.ndarray:
    """Cropped frames (T, H, W, 3) uint8 of a clip, all augmented alike: the same shape."""
    operations = VIDEO_OPERATIONS[:-1] if SIDES.search(text) else VIDEO_OPERATIONS
    drawn = [operations[number] for number in rng.choice(len(operations), 2, replace=False)]
    return np.stack([apply(drawn, frame, VIDEO_STRENGTH) for frame in frames])


def augment_image(frame: np.ndarray, size: int, text: str, rng: np.random.Generator) -> np.ndarray:
    """A stored image (H, W, 3) uint8, cropped at random, resized and augmented: (size, size, 3)."""
    frame = random_resized_crop(frame, size, rng)
    if rng.random() < 0.5 and not SIDES.search(text):
        frame = frame[:, ::-1]
    drawn = [IMAGE_OPERATIONS[number] for number in rng.choice(len(IMAGE_OPERATIONS), 2)]
    return apply([operation for operation in drawn if rng.random() < 0.5], frame, IMAGE_STRENGTH)


Operation = Callable[[Picture, float], Picture]


def apply(operations: list[Operation], frame: np.ndarray, strength: float) -> np.ndarray:
    picture = Image.fromarray(frame)
    for operation in operations:
        picture = operation(picture, strength)
    return np.asarray(picture)


def each_operation(frames: np.ndarray, kind: str) -> list[tuple[str, np.ndarray]]:
    """Every operation by itself, to be looked at: its name, and two frames (T, H, W, 3) of a clip after it: (2, H, W,
    3)."""
    operations, strength = (IMAGE_OPERATIONS, IMAGE_STRENGTH) if kind == "image" else (VIDEO_OPERATIONS, VIDEO_STRENGTH)
    two = frames[[0, -1]]
    return [(one.__name__, np.stack([apply([one], frame, strength) for frame in two])) for one in operations]


def affine(picture: Picture, *matrix: float) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def shifted(picture: Picture, right: float, down: float) -> Picture:
    """Moved by whole pixels, which needs no interpolation and an eighth of its time."""
    matrix = (1, 0, -round(right), 0, 1, -round(down))
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


def enhanced(kind: type) -> Operation:
    """Brightness, contrast or sharpness by a factor of 0.1 to 1.9: 1, no change, at half the levels."""

    def enhance(picture: Picture, strength: float) -> Picture:
        return kind(picture).enhance(strength * 1.8 + 0.1)

    enhance.__name__ = kind.__name__.lower()
    return enhance


def identity(picture: Picture, strength: float) -> Picture:
    return picture


def shear_x(picture: Picture, strength: float) -> Picture:
    return affine(picture, 1, -0.3 * strength, 0, 0, 1, 0)  # from where each pixel comes: lower rows move right


def shear_y(picture: Picture, strength: float) -> Picture:
    return affine(picture, 1, 0, 0, -0.3 * strength, 1, 0)


def translate_x(picture: Picture, strength: float) -> Picture:
    return shifted(picture, -10 * strength, 0)


def translate_y(picture: Picture, strength: float) -> Picture:
    return shifted(picture, 0, -10 * strength)


def rotate(picture: Picture, strength: float) -> Picture:
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL)


def mirror(picture: Picture, strength: float) -> Picture:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


BRIGHTNESS, SHARPNESS, CONTRAST = map(
    enhanced, (ImageEnhance.Brightness, ImageEnhance.Sharpness, ImageEnhance.Contrast)
)
IMAGE_OPERATIONS = [identity, BRIGHTNESS, SHARPNESS, shear_x, shear_y, translate_x, translate_y, rotate]
VIDEO_OPERATIONS = [*IMAGE_OPERATIONS, CONTRAST, mirror]  # mirror last: left out where the text names a side
