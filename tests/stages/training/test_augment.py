"""The official augmentation."""

import numpy as np
import pytest

from stages.training import augment as module
from stages.training.augment import IMAGE_OPERATIONS, SIDES, VIDEO_OPERATIONS, augment, draw, mirror


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
