"""Validation and test items that are also in training: equal captions, frames that look alike."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards.overlap import overlap, perceptual_hash
from alpro.shards.reader import read_index

ROWS = [
    ("train", ("a dog", "a cat")),
    ("train", ("a cow",)),
    ("test", ("other",)),
    ("test", ("new", "a cat")),
    ("test", ("newer",)),
    ("test", ("A dog", "newest")),
    ("validation", ("a cow", "a dog")),
    ("validation", ("a horse",)),
]


@pytest.fixture
def folder(corpus_of, tmp_path):
    rows = [{"id": f"{n}", "split": split, "captions": captions} for n, (split, captions) in enumerate(ROWS)]
    return corpus_of(tmp_path, rows)


@pytest.mark.parametrize(("training", "held_out"), [(8, {0: 0, 4: 2, 9: 3, 100: 3}), (3, {9: 6, 4: 2})])
def test_frames_of_a_limited_number_of_samples_are_read(corpus_of, tmp_path, training, held_out):
    """Held-out samples first, up to half of the number, and more if there are few training samples."""
    rows = [{"id": f"{n}", "captions": ("x",), "split": "train" if n < training else "test"} for n in range(11)]
    corpus = corpus_of(tmp_path, rows)
    assert {most: overlap(corpus, most)[1]["test"]["compared"] for most in held_out} == held_out


def test_corrupt_samples_are_not_compared(folder):
    row = read_index(folder).to_pylist()[2]
    content = bytearray((folder / "all.tar").read_bytes())
    content[row["frame_offsets"][0] : row["frame_offsets"][0] + 64] = bytes(64)
    (folder / "all.tar").write_bytes(content)
    assert overlap(folder, 100)[1]["test"]["compared"] == 3


def test_resized_copies_have_the_same_hash_and_other_clips_do_not():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 9, 3), np.uint8)
    clip, other = (
        np.stack([np.asarray(Image.fromarray(f).resize((144, 128), Image.Resampling.BICUBIC)) for f in frames])
        for frames in (coarse, rng.integers(0, 256, (2, 8, 9, 3), np.uint8))
    )
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize((72, 64))) for frame in clip])
    assert perceptual_hash(clip) == perceptual_hash(smaller) != perceptual_hash(other)
    assert perceptual_hash(np.full((2, 64, 64, 3), 7, np.uint8)) is None  # blank frames have no hash
