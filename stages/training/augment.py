"""The official augmentation: RandAugment on clips and images, one draw a clip; random resized crops of images.

Clips: 2 of 10 operations at level 5; images: a random resized crop, a flip, then 2 of 8 operations at level 7. An
operation that was drawn is done in half of the cases. Departure: what is flipped never has "left" or "right" in its
text, since it would then say the opposite.
"""

import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

Picture = Image.Image
FILL = (128, 128, 128)
LEVELS = 10
SIDES = re.compile(r"\b(left|right)(wards?|most|-hand)?\b", re.IGNORECASE)


def augment(frames: np.ndarray, kind: str, text: str, rng: np.random.Generator) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of one clip, or of an image repeated, augmented alike: the same shape."""
    flip = not SIDES.search(text)
    if kind == "image":
        picture = resized_crop(Image.fromarray(frames[0]), rng)
        if flip and rng.random() < 0.5:
            picture = mirror(picture, 0)
        done = np.asarray(apply(draw(IMAGE_OPERATIONS, 7, rng), picture))
        return np.broadcast_to(done, frames.shape)
    drawn = draw(VIDEO_OPERATIONS if flip else VIDEO_OPERATIONS[:-1], 5, rng)
    return np.stack([np.asarray(apply(drawn, Image.fromarray(frame))) for frame in frames])


Operation = Callable[[Picture, float], Picture]


def draw(
    operations: list[Operation], level: int, rng: np.random.Generator, count: int = 2
) -> list[tuple[Operation, float]]:
    """The operations to do, each with its strength, -1 to 1."""
    chosen = []
    for number in rng.choice(len(operations), 2):
        if rng.random() < 0.5:
            chosen.append((operations[number], level / LEVELS * (1 if rng.random() < 0.5 else -1)))
    return chosen


def apply(drawn: list[tuple[Operation, float]], picture: Picture) -> Picture:
    for operation, strength in drawn:
        picture = operation(picture, strength)
    return picture


def each_operation(frames: np.ndarray, kind: str) -> list[tuple[str, np.ndarray]]:
    """Every operation by itself, to be looked at: its name, and two frames (T, H, W, 3) of a clip at its strength to
    the one side, then to the other: (4, H, W, 3)."""
    operations, level = (IMAGE_OPERATIONS, 7) if kind == "image" else (VIDEO_OPERATIONS, 5)
    pictures = [Image.fromarray(frame) for frame in (frames[0], frames[-1])]
    strengths = level / LEVELS, -level / LEVELS
    shown = []
    for operation in operations:
        done = [np.asarray(operation(picture, strength)) for strength in strengths for picture in pictures]
        shown.append((f"{operation.__name__}, {strengths[0]:+g} and {strengths[1]:+g}", np.stack(done)))
    return shown


def resized_crop(picture: Picture, rng: np.random.Generator) -> Picture:
    """20 to 100 % of the area, sides 3:4 to 4:3, resized to the whole (bicubic)."""
    width, height = picture.size
    area = rng.uniform(0.2, 1.0) * width * height
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return picture.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + w, top + h))


def affine(picture: Picture, *matrix: float) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def shifted(picture: Picture, right: float, down: float) -> Picture:
    """Moved by whole pixels, which needs no interpolation and an eighth of its time."""
    matrix = (1, 0, -round(right), 0, 1, -round(down))
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


def enhanced(kind: type) -> Operation:
    """Brightness, contrast or sharpness by a factor of 0.1 to 1.9: 1, no change, at half the levels."""

    def enhance(picture: Picture, strength: float) -> Picture:
        return kind(picture).enhance(abs(strength) * 1.8 + 0.1)

    enhance.__name__ = kind.__name__.lower()
    return enhance


def identity(picture: Picture, strength: float) -> Picture:
    return picture


def shear_x(picture: Picture, strength: float) -> Picture:
    return affine(picture, 1, 0.3 * strength, 0, 0, 1, 0)


def shear_y(picture: Picture, strength: float) -> Picture:
    return affine(picture, 1, 0, 0, 0.3 * strength, 1, 0)


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
