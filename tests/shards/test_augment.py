"""The official augmentation."""

import numpy as np
import pytest

from alpro.shards import transforms as module
from alpro.shards.transforms import (
    IMAGE_OPERATIONS,
    IMAGE_STRENGTH,
    SIDES,
    VIDEO_OPERATIONS,
    VIDEO_STRENGTH,
    apply,
    augment_image,
    augment_video,
    mirror,
)

TEXT = "a dog runs"


def gradient(frames: int = 3, size: int = 24) -> np.ndarray:
    """A picture that shows which way round it is."""
    rows, columns = np.mgrid[0:size, 0:size] * (255 // size)
    one = np.stack([columns, rows, (columns + rows) // 2], axis=-1).astype(np.uint8)
    return np.repeat(one[None], frames, axis=0)


def augmented(kind: str, text: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        augment_video(gradient(), text, rng) if kind == "video" else augment_image(gradient(1)[0], 24, text, rng)[None]
    )


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
    assert VIDEO_OPERATIONS[-1] is mirror
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
    for text in (
        "Rightside up",
        "the left-hander",
        "on the leftmost",
        "it turns clockwise",
        "anti-clockwise",
        "right-side",
    ):
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


def test_the_operations_are_the_official_ones():
    plain = ["identity", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
    assert [operation.__name__ for operation in IMAGE_OPERATIONS] == plain
    assert [operation.__name__ for operation in VIDEO_OPERATIONS] == [*plain, "contrast", "mirror"]


def moved(frame: np.ndarray) -> tuple[float, float]:
    """Where the bright dot of a frame is: its column and row."""
    rows, columns = np.nonzero(frame[..., 0] > 200)
    return columns.mean(), rows.mean()


def each_operation(frames: np.ndarray, kind: str) -> list[tuple[str, np.ndarray]]:
    """The frames (T, H, W, 3) after each operation alone."""
    operations, strength = (IMAGE_OPERATIONS, IMAGE_STRENGTH) if kind == "image" else (VIDEO_OPERATIONS, VIDEO_STRENGTH)
    return [(op.__name__, np.stack([apply([op], frame, strength) for frame in frames])) for op in operations]


def test_each_operation_does_what_its_name_says_to_the_official_side():
    """A dot up and to the right of the middle. By the official code at level 5 of 10: 5 pixels, a shear of 0.15 from
    the upper left corner, 15 degrees counter-clockwise."""
    dot = np.full((2, 40, 40, 3), 60, np.uint8)
    dot[:, 8:12, 28:32] = 255
    for kind in ("video", "image"):
        names = [name for name, _ in each_operation(dot, kind)]
        assert len(names) == len(set(names)) == {"video": 10, "image": 8}[kind]
    done = dict(each_operation(dot, "video"))
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


def test_strengths_of_images_are_those_of_level_7():
    grey = np.full((1, 40, 40, 3), 100, np.uint8)
    done = dict(each_operation(grey, "image"))
    assert np.abs(done["brightness"][0].astype(int) - 136).max() <= 1  # 0.7 x 1.8 + 0.1
    dot = np.zeros((1, 40, 40, 3), np.uint8)
    dot[:, 18:22, 18:22] = 255
    assert moved(dict(each_operation(dot, "image"))["translate_x"][0]) == (12.5, 19.5)
