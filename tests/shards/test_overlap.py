"""Validation and test items that are also in training: equal captions, frames that look alike."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards.overlap import overlap, perceptual_hash
from alpro.shards.reader import read_index


@pytest.mark.parametrize(("training", "held_out"), [(8, {0: 0, 4: 2, 9: 3, 100: 3}), (3, {9: 6, 4: 2})])
def test_frames_of_a_limited_number_of_samples_are_read(corpus_of, tmp_path, training, held_out):
    """Held-out samples first, up to half of the number, and more if there are few training samples."""
    rows = [{"id": f"{n}", "captions": ("x",), "split": "train" if n < training else "test"} for n in range(11)]
    corpus = corpus_of(tmp_path, rows)
    assert {most: overlap(corpus, most)[1]["test"]["compared"] for most in held_out} == held_out
    row = read_index(corpus).to_pylist()[training]
    content = bytearray((corpus / "all.tar").read_bytes())
    content[row["frame_offsets"][0] : row["frame_offsets"][0] + 64] = bytes(64)
    (corpus / "all.tar").write_bytes(content)
    assert overlap(corpus, 100)[1]["test"]["compared"] == 10 - training  # without the corrupt one


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
