"""Pictures for inspection, and frames of validation and test samples that look like those of
training."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards.overlap import overlap, perceptual_hash
from alpro.shards.pictures import (
    GREEN,
    RED,
    TILE,
    retrieval_picture,
)
from alpro.shards.reader import read_index

WHITE = np.full((32, 32, 3), 255, np.uint8)


def test_the_results_of_a_query_are_framed_green_if_they_are_right():
    results = [(WHITE, "a", True), (WHITE, "b", False)]

    pixels = np.asarray(retrieval_picture([("a red ball", "came first", results)]))

    middle = TILE // 2
    assert tuple(pixels[0, middle]) == GREEN
    assert tuple(pixels[0, TILE + 4 + middle]) == RED
    assert tuple(pixels[middle, middle]) == (255, 255, 255)


def test_a_query_without_results_is_drawn():
    image = retrieval_picture([("a red ball", "not found", [])])

    assert np.asarray(image).min() < 255  # its text


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        (8, {0: 0, 4: 2, 9: 3, 100: 3}),
        (3, {9: 6, 4: 2}),
    ],
)
def test_frames_of_a_limited_number_of_samples_are_read(
    corpus_of, tmp_path, training, held_out
):
    """Held-out samples are up to half of the number, and more if there are few training samples."""
    rows = [
        {"id": f"{n}", "captions": ("x",), "split": "train" if n < training else "test"}
        for n in range(11)
    ]
    corpus = corpus_of(tmp_path, rows)
    assert {most: count_compared(corpus, most) for most in held_out} == held_out

    first = read_index(corpus).to_pylist()[training]["frame_offsets"][0]
    content = bytearray((corpus / "all.tar").read_bytes())
    content[first : first + 64] = bytes(64)
    (corpus / "all.tar").write_bytes(content)
    assert count_compared(corpus, 100) == 10 - training  # without the corrupt one


def count_compared(corpus, most):
    _, counts = overlap(corpus, most)
    return counts["test"]["compared"]


def test_resized_copies_have_the_same_hash_and_other_clips_do_not():
    def resize(frames, size):
        return np.stack(
            [np.asarray(Image.fromarray(frame).resize(size)) for frame in frames]
        )

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 2, 8, 9, 3), np.uint8)
    clip, other = (resize(frames, (144, 128)) for frames in coarse)

    original = perceptual_hash(clip)
    assert original == perceptual_hash(resize(clip, (72, 64)))
    assert original != perceptual_hash(other)


def test_blank_frames_have_no_hash():
    assert perceptual_hash(np.full((2, 64, 64, 3), 7, np.uint8)) is None
