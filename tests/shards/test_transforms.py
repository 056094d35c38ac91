"""Crops and resizing of stored frames, and the official augmentation."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards import transforms as module
from alpro.shards.transforms import SIDES, augment_image, augment_video, crop_box, random_crop, squash

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def test_a_random_crop_is_the_same_place_in_every_frame():
    frames, corners = np.arange(120).reshape(1, 10, 12, 1).repeat(3, axis=3).repeat(5, axis=0), set()
    for seed in range(40):
        cropped = random_crop(frames, 0.5, np.random.default_rng(seed))
        assert cropped.shape == (5, 5, 6, 3)
        assert (cropped == cropped[:1, ..., :1]).all()
        first = cropped[0, ..., 0]
        assert np.array_equal(first, first[0, 0] + np.arange(5)[:, None] * 12 + np.arange(6))
        corners.add(divmod(int(first[0, 0]), 12))
    rows, columns = zip(*corners, strict=True)
    assert {min(rows), max(rows), min(columns), max(columns)} == {0, 5, 6}
    assert random_crop(frames, 1.0, np.random.default_rng(0)).shape == (5, 10, 12, 3)


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
    for width, height, box in ((400, 10, (193, 0, 13, 10)), (10, 400, (0, 193, 10, 13))):
        drawn = {crop_box(width, height, np.random.default_rng(seed), (0.9, 1.0), RATIO) for seed in range(20)}
        assert drawn == {box}  # if nothing fits, the largest central crop


def test_a_resized_crop_has_the_pixels_of_the_crop_box():
    """As in torchvision: only the crop is resized, bicubically."""
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for seed in range(5):
        left, top, width, height = crop_box(90, 60, np.random.default_rng(seed), SCALE, RATIO)
        cut = Image.fromarray(frame[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((32, 32), Image.Resampling.BICUBIC))
        result = module.random_resized_crop(frame, 32, np.random.default_rng(seed))
        assert np.array_equal(result, expected)


TEXT = "a dog runs"


def gradient(frames: int = 3, size: int = 24) -> np.ndarray:
    """A picture that shows which way round it is."""
    rows, columns = np.mgrid[0:size, 0:size] * (255 // size)
    one = np.stack([columns, rows, (columns + rows) // 2], axis=-1).astype(np.uint8)
    return np.repeat(one[None], frames, axis=0)


def augmented(kind: str, text: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "video":
        return augment_video(gradient(), text, rng)
    return augment_image(gradient(1)[0], 24, text, rng)[None]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_every_frame_of_a_clip_is_changed_alike_and_another_clip_otherwise(kind):
    results = []
    for seed in range(20):
        done = augmented(kind, TEXT, seed)
        assert done.shape[1:] == (24, 24, 3)
        assert done.dtype == np.uint8
        assert all(np.array_equal(frame, done[0]) for frame in done)
        assert np.array_equal(done, augmented(kind, TEXT, seed))
        results.append(done[0].tobytes())
    assert len(set(results)) > 5


def test_a_side_in_the_text_forbids_the_flip(monkeypatch):
    """Of videos the operation, of images the flip behind the crop."""
    assert module.VIDEO_OPERATIONS[-1] is module.mirror
    flips = []
    monkeypatch.setattr(module, "VIDEO_OPERATIONS", [*[lambda p, s: p] * 3, lambda p, s: flips.append(1) or p])
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", [lambda p, s: p])
    monkeypatch.setattr(module, "random_resized_crop", lambda frame, size, rng: frame)

    def flipped(kind: str, text: str) -> int:
        flips.clear()
        done = [augmented(kind, text, seed) for seed in range(20)]
        return len(flips) + sum(not np.array_equal(one[0], gradient()[0]) for one in done)

    for kind in ("video", "image"):
        for text in ("it goes to the left", "the right-hand door", "It moves leftwards."):
            assert flipped(kind, text) == 0
        assert flipped(kind, "a bright leftover light") > 5
    for text in ("Rightside up", "the left-hander", "on the leftmost", "it turns clockwise", "anti-clockwise"):
        assert SIDES.search(text)
    for text in ("brightly leftover", "an upright clock", "clockwork", "he writes"):
        assert not SIDES.search(text)


def counting(count: int, applied: list[tuple[int, float]]) -> list:
    """So many operations that note their number and strength, and change nothing."""
    return [lambda p, s, n=number: applied.append((n, s)) or p for number in range(count)]


def test_a_clip_gets_two_different_operations_always(monkeypatch):
    """As in the official code: without replacement, both applied, to one side; every pair is drawn."""
    applied: list[tuple[int, float]] = []
    monkeypatch.setattr(module, "VIDEO_OPERATIONS", counting(10, applied))
    pairs = set()
    for seed in range(500):
        applied.clear()
        augment_video(gradient(2), TEXT, np.random.default_rng(seed))
        first, second = applied[:2]
        assert applied == [first, second] * 2  # in every frame
        assert first[0] != second[0]
        assert {first[1], second[1]} == {0.5}
        pairs.add((first[0], second[0]))
    assert len(pairs) > 80  # of 90


def test_an_image_gets_each_of_two_operations_in_half_of_the_cases(monkeypatch):
    """As in the official code: with replacement, to one side."""
    applied: list[tuple[int, float]] = []
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", counting(8, applied))
    counts, twice = np.zeros(3), 0
    for seed in range(600):
        applied.clear()
        augment_image(gradient(1)[0], 24, TEXT, np.random.default_rng(seed))
        counts[len(applied)] += 1
        twice += len(applied) == 2 and applied[0] == applied[1]
        assert {strength for _, strength in applied} <= {0.7}
    assert counts / 600 == pytest.approx([0.25, 0.5, 0.25], abs=0.07)
    assert 5 < twice < 40  # an eighth of a quarter


def moved(frame: np.ndarray) -> tuple[float, float]:
    """Where the bright dot of a frame is: its column and row."""
    rows, columns = np.nonzero(frame[..., 0] > 200)
    return columns.mean(), rows.mean()


def test_each_operation_does_what_its_name_says_to_the_official_side():
    """A dot up and to the right of the middle. By the official code at level 5 of 10: 5 pixels, a shear of 0.15 from
    the upper left corner, 15 degrees counter-clockwise."""
    plain = ["identity", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
    assert [operation.__name__ for operation in module.IMAGE_OPERATIONS] == plain
    assert [operation.__name__ for operation in module.VIDEO_OPERATIONS] == [*plain, "contrast", "mirror"]
    dot = np.full((2, 40, 40, 3), 60, np.uint8)
    dot[:, 8:12, 28:32] = 255
    strength, operations = module.VIDEO_STRENGTH, module.VIDEO_OPERATIONS
    done = {op.__name__: np.stack([module.apply([op], frame, strength) for frame in dot]) for op in operations}
    for frames in done.values():
        assert frames.shape == dot.shape
        assert np.array_equal(frames[0], frames[1])
    for name in ("identity", "brightness", "contrast", "sharpness"):  # at level 5 a factor of 1
        assert np.abs(done[name].astype(int) - dot).max() <= 1, name
    column, row = moved(dot[0])
    assert moved(done["translate_x"][0]) == (column - 5, row)
    assert moved(done["translate_y"][0]) == (column, row - 5)
    assert moved(done["mirror"][0]) == (39 - column, row)
    assert moved(done["shear_x"][0]) == pytest.approx((column + 0.15 * row, row), abs=0.6)
    assert moved(done["shear_y"][0]) == pytest.approx((column, row + 0.15 * column), abs=0.6)
    before, after = (np.degrees(np.arctan2(19.5 - y, x - 19.5)) for x, y in (moved(dot[0]), moved(done["rotate"][0])))
    assert after - before == pytest.approx(15, abs=3)
