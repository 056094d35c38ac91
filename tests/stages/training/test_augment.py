"""The official augmentation."""

import numpy as np
import pytest

from stages.training import augment as module
from stages.training.augment import (
    IMAGE_OPERATIONS,
    SIDES,
    VIDEO_OPERATIONS,
    augment,
    draw,
    each_operation,
    mirror,
)


def gradient(frames: int = 3, size: int = 24) -> np.ndarray:
    """A picture that shows which way round it is."""
    rows, columns = np.mgrid[0:size, 0:size] * (255 // size)
    one = np.stack([columns, rows, (columns + rows) // 2], axis=-1).astype(np.uint8)
    return np.repeat(one[None], frames, axis=0)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_every_frame_of_a_clip_is_changed_alike_and_another_clip_otherwise(kind):
    frames, results = gradient(), []
    for seed in range(20):
        done = augment(frames, kind, "a dog runs", np.random.default_rng(seed))
        assert done.shape == frames.shape
        assert done.dtype == np.uint8
        assert all(np.array_equal(frame, done[0]) for frame in done)
        assert np.array_equal(done, augment(frames, kind, "a dog runs", np.random.default_rng(seed)))
        results.append(done[0].tobytes())
    assert len(set(results)) > 5


def test_a_side_in_the_text_forbids_the_flip(monkeypatch):
    flips = []
    monkeypatch.setattr(module, "mirror", lambda picture, strength: flips.append(1) or picture)
    monkeypatch.setattr(module, "VIDEO_OPERATIONS", [lambda p, s: p, module.mirror])
    for text in ("it goes to the left", "the right-hand door", "It moves leftwards."):
        for kind in ("video", "image"):
            for seed in range(20):
                augment(gradient(1), kind, text, np.random.default_rng(seed))
    assert flips == []
    for kind in ("video", "image"):
        for seed in range(20):
            augment(gradient(1), kind, "a bright leftover light", np.random.default_rng(seed))
        assert flips
        flips.clear()
    assert not SIDES.search("brightly leftover")


def test_the_operations_are_the_official_ones():
    assert len(VIDEO_OPERATIONS) == 10
    assert len(IMAGE_OPERATIONS) == 8
    assert mirror not in IMAGE_OPERATIONS
    assert mirror is VIDEO_OPERATIONS[-1]
    drawn = [draw(VIDEO_OPERATIONS, 5, np.random.default_rng(seed)) for seed in range(300)]
    assert {len(one) for one in drawn} == {0, 1, 2}
    assert {abs(strength) for one in drawn for _, strength in one} == {0.5}
    assert np.mean([len(one) for one in drawn]) == pytest.approx(1.0, abs=0.15)


def moved(frame: np.ndarray) -> tuple[float, float]:
    """Where the bright dot of a frame is: its column and row."""
    rows, columns = np.nonzero(frame[..., 0] > 200)
    return columns.mean(), rows.mean()


def test_each_operation_by_itself_does_what_its_name_says():
    """The two frames of a clip alike, and the one strength as the other turned round, where there are two sides."""
    dot = np.full((4, 40, 40, 3), 60, np.uint8)
    dot[:, 8:12, 28:32] = 255  # up and to the right of the middle
    for kind in ("video", "image"):
        names = [name.split(",")[0] for name, _ in each_operation(dot, kind)]
        assert len(names) == len(set(names)) == {"video": 10, "image": 8}[kind]
    done = {name.split(",")[0]: frames for name, frames in each_operation(dot, "video")}
    for frames in done.values():
        assert frames.shape == dot.shape
        assert np.array_equal(frames[0], frames[1])
        assert np.array_equal(frames[2], frames[3])
    for name in ("identity", "brightness", "contrast", "sharpness"):  # at level 5 a factor of 1
        assert np.abs(done[name].astype(int) - dot).max() <= 1, name
    column, row = moved(dot[0])
    assert sorted(moved(f)[0] - column for f in done["translate_x"][::2]) == [-5, 5]
    assert sorted(moved(f)[1] - row for f in done["translate_y"][::2]) == [-5, 5]
    assert moved(done["mirror"][0]) == (39 - column, row)
    for name, along, across in (("shear_x", 0, 1), ("shear_y", 1, 0)):
        sides = [moved(f)[along] - (column, row)[along] for f in done[name][::2]]
        assert sides[0] * sides[1] < 0, name  # to one side, then to the other
        assert all(abs(moved(f)[across] - (column, row)[across]) < 0.6 for f in done[name]), name
    turned = [np.degrees(np.arctan2(19.5 - moved(f)[1], moved(f)[0] - 19.5)) for f in (dot[0], *done["rotate"][::2])]
    assert sorted(np.round(np.subtract(turned[1:], turned[0]))) == pytest.approx([-15, 15], abs=3)
