"""Crops and resizing of stored frames."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards.transforms import crop_box, random_crop, random_resized_crop, squash

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def numbered(height: int, width: int, frames: int = 5) -> np.ndarray:
    """Frames whose every pixel is its number, the same in all of them."""
    return np.arange(height * width).reshape(1, height, width, 1).repeat(3, axis=3).repeat(frames, axis=0)


def test_a_random_crop_is_the_same_place_in_every_frame():
    frames, corners = numbered(10, 12), set()
    for seed in range(40):
        cropped = random_crop(frames, 0.5, np.random.default_rng(seed))
        assert cropped.shape == (5, 5, 6, 3)
        assert (cropped == cropped[:1, ..., :1]).all()
        first = cropped[0, ..., 0]
        assert np.array_equal(first, first[0, 0] + np.arange(5)[:, None] * 12 + np.arange(6))
        corners.add(divmod(int(first[0, 0]), 12))
    rows, columns = zip(*corners, strict=True)
    assert {min(rows), max(rows), min(columns), max(columns)} == {0, 5, 6}


def test_a_share_of_one_returns_the_whole_frame():
    assert random_crop(numbered(10, 12), 1.0, np.random.default_rng(0)).shape == (5, 10, 12, 3)


def test_squashing_ignores_the_aspect_ratio_and_keeps_the_target_size():
    frames = np.zeros((2, 10, 30, 3), np.uint8)
    frames[:, :, 15:] = 255
    squashed = squash(frames, 10)
    assert squashed.shape == (2, 10, 10, 3)
    assert (squashed[:, :, :3] < 10).all()
    assert (squashed[:, :, 7:] > 245).all()
    assert squash(squashed, 10) is squashed


def test_a_crop_has_the_drawn_area_and_aspect_ratio():
    """Of an image twice as wide as it is high. No draw is forced into the image: what does not fit is drawn again."""
    areas, ratios, heights = [], [], []
    for seed in range(2000):
        left, top, width, height = crop_box(400, 200, np.random.default_rng(seed), SCALE, RATIO)
        assert 0 <= left <= 400 - width
        assert 0 <= top <= 200 - height
        areas.append(width * height / 80_000)
        ratios.append(width / height)
        heights.append(height)
    assert 0.19 < min(areas) < 0.21
    assert 0.73 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.36
    assert np.mean(np.array(heights) == 200) < 0.05  # cut to fit, a quarter of the crops would be as high as the image


@pytest.mark.parametrize(("width", "height", "box"), [(400, 10, (193, 0, 13, 10)), (10, 400, (0, 193, 10, 13))])
def test_the_fallback_is_the_largest_central_crop(width, height, box):
    result = {crop_box(width, height, np.random.default_rng(seed), (0.9, 1.0), RATIO) for seed in range(20)}
    assert result == {box}


def test_a_resized_crop_has_the_pixels_of_the_crop_box():
    """As in torchvision: only the crop is resized, bicubically."""
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for seed in range(5):
        left, top, width, height = crop_box(90, 60, np.random.default_rng(seed), SCALE, RATIO)
        cut = Image.fromarray(frame[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((32, 32), Image.Resampling.BICUBIC))
        result = random_resized_crop(frame, 32, np.random.default_rng(seed))
        assert np.array_equal(result, expected)
