"""Crops and resizes stored frames, and the augmentation of the official code, identical for every
frame of a clip.

RandAugment of clips, after their crop: two distinct operations out of ten, both applied, at level
5. Of images: a random resized crop, a flip, then two operations out of eight with replacement, each
applied with probability 0.5, at level 7. Operations have a fixed sign. Departure from the official
code: samples whose text names a side or a sense of rotation ("left", "rightside", "clockwise") are
never flipped.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance

# Attempts before the fallback to the largest central crop, as in torchvision.
MAX_CROP_ATTEMPTS = 10
CROP_SCALE = (0.2, 1.0)  # fraction of the area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
BOX_RATIO = (0.3, 3.3)  # width : height of a crop of patches


def squash(frames: np.ndarray, size: int) -> np.ndarray:
    """Resize frames (T, H, W, 3) uint8 to (T, size, size, 3), without keeping the aspect ratio."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([_resize(frame, size) for frame in frames])


def _resize(frame: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray(frame)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def random_crop(
    frames: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Crop frames (T, H, W, 3) to `fraction` of both sides (1: the whole frame) at a random position:
    (T, h, w, 3)."""
    if fraction == 1:
        return frames

    height, width = frames.shape[1:3]
    h = round(height * fraction)
    w = round(width * fraction)
    top = int(rng.integers(height - h + 1))
    left = int(rng.integers(width - w + 1))
    return frames[:, top : top + h, left : left + w]


def random_resized_crop(
    frame: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Crop a frame (H, W, 3) to a random fraction (CROP_SCALE) of its area with a random aspect
    ratio, and resize it to (size, size, 3).

    As in torchvision: a crop that does not fit is drawn again, and after ten failures the largest
    central crop within the bounds of the aspect ratio is used. Bicubic.
    """
    frame_height, frame_width = frame.shape[:2]
    left, top, width, height = crop_box(frame_width, frame_height, rng)
    cropped = frame[top : top + height, left : left + width]
    return _resize(cropped, size)


def crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = CROP_SCALE,
) -> tuple[int, int, int, int]:
    """Draw the crop of `random_resized_crop`: left, top, width, height in pixels."""
    for w, h in draw_sizes(MAX_CROP_ATTEMPTS, (width, height), scale, CROP_RATIO, rng):
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, w, h

    min_ratio, max_ratio = CROP_RATIO
    # The largest that the bounds of the ratio allow.
    w = min(width, round(height * max_ratio))
    h = min(height, round(width / min_ratio))
    left = (width - w) // 2
    top = (height - h) // 2
    return left, top, w, h


def draw_sizes(
    attempts: int,
    frame: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Iterator[tuple[int, int]]:
    """Yield random widths and heights of crops, which may be larger than the frame.

    Args:
        attempts: Number of sizes.
        frame: Width and height of the frame.
        scale: Range of the fraction of the area.
        ratio: Range of width to height.
    """
    width, height = frame
    for _ in range(attempts):
        area = rng.uniform(*scale) * width * height
        # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        yield round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))


def random_box(
    grid: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.3, 0.5),
) -> tuple[int, int, int, int]:
    """Sample a crop as random resized cropping does, rounded to the patch grid.

    A crop that rounds to an area outside the range is sampled again. After 100 failures, because the
    grid is too coarse, the result is the central half.

    Args:
        grid: Side of the grid in patches.
        area: Range of the fraction of the grid.

    Returns:
        left, top, width and height in patches.
    """
    smallest, largest = area
    for width, height in draw_sizes(100, (grid, grid), area, BOX_RATIO, rng):
        inside = 1 <= height <= grid and 1 <= width <= grid
        if inside and smallest <= height * width / grid**2 <= largest:
            top = int(rng.integers(0, grid - height + 1))
            left = int(rng.integers(0, grid - width + 1))
            return left, top, width, height
    return 0, grid // 4, grid, max(1, grid // 2)


Picture = Image.Image
FILL = (128, 128, 128)
VIDEO_STRENGTH = 0.5  # level 5 of 10
IMAGE_STRENGTH = 0.7
SIDES = re.compile(
    r"\b((left|right)(wards?|most|y|ies|-?hand(ed|er)?|-?sided?|-?sides)?"
    r"|(counter|anti)?-?clock-?wise)\b",
    re.IGNORECASE,
)


def augment_video(
    frames: np.ndarray, text: str, rng: np.random.Generator
) -> np.ndarray:
    """Augment the cropped frames (T, H, W, 3) uint8 of a clip identically. The shape is
    unchanged."""
    operations = VIDEO_OPERATIONS
    if SIDES.search(text):
        operations = VIDEO_OPERATIONS[:-1]  # without the last, which mirrors

    drawn = rng.choice(len(operations), 2, replace=False)
    chosen = [operations[i] for i in drawn]
    return np.stack([apply(chosen, frame, VIDEO_STRENGTH) for frame in frames])


def augment_image(
    frame: np.ndarray, size: int, text: str, rng: np.random.Generator
) -> np.ndarray:
    """Crop, flip and augment an image (H, W, 3) uint8 -> (size, size, 3)."""
    frame = random_resized_crop(frame, size, rng)
    # Drawn for any text, so that the draws after it do not depend on the text.
    if rng.random() < 0.5 and not SIDES.search(text):
        frame = frame[:, ::-1]

    drawn = rng.choice(len(IMAGE_OPERATIONS), 2)
    chosen = [IMAGE_OPERATIONS[i] for i in drawn]
    applied = [operation for operation in chosen if rng.random() < 0.5]
    return apply(applied, frame, IMAGE_STRENGTH)


Operation = Callable[[Picture, float], Picture]


def apply(
    operations: list[Operation], frame: np.ndarray, strength: float
) -> np.ndarray:
    picture = Image.fromarray(frame)
    for operation in operations:
        picture = operation(picture, strength)
    return np.asarray(picture)


def affine(
    picture: Picture,
    *matrix: float,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> Picture:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL
    )


def make_enhancement(kind: type) -> Operation:
    """Return an operation of brightness, contrast or sharpness with a factor from 0.1 to 1.9.
    Strength 0.5 is the identity."""

    def enhance(picture: Picture, strength: float) -> Picture:
        factor = strength * 1.8 + 0.1
        return kind(picture).enhance(factor)

    enhance.__name__ = kind.__name__.lower()
    return enhance


def identity(picture: Picture, strength: float) -> Picture:
    return picture


def shear_x(picture: Picture, strength: float) -> Picture:
    # The matrix maps output to input pixels, so that lower rows move right.
    return affine(picture, 1, -0.3 * strength, 0, 0, 1, 0)


def shear_y(picture: Picture, strength: float) -> Picture:
    return affine(picture, 1, 0, 0, -0.3 * strength, 1, 0)


def translate_x(picture: Picture, strength: float) -> Picture:
    # Whole pixels need no interpolation, which takes eight times as long.
    right = round(10 * strength)
    return affine(picture, 1, 0, right, 0, 1, 0, resample=Image.Resampling.NEAREST)


def translate_y(picture: Picture, strength: float) -> Picture:
    down = round(10 * strength)
    return affine(picture, 1, 0, 0, 0, 1, down, resample=Image.Resampling.NEAREST)


def rotate(picture: Picture, strength: float) -> Picture:
    # Pillow's angle is counterclockwise.
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL)


def mirror(picture: Picture, strength: float) -> Picture:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


BRIGHTNESS = make_enhancement(ImageEnhance.Brightness)
SHARPNESS = make_enhancement(ImageEnhance.Sharpness)
CONTRAST = make_enhancement(ImageEnhance.Contrast)
IMAGE_OPERATIONS = [
    identity,
    BRIGHTNESS,
    SHARPNESS,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
]
# `mirror` is last: `augment_video` drops it if the text names a side.
VIDEO_OPERATIONS = [*IMAGE_OPERATIONS, CONTRAST, mirror]
