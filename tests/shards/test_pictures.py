"""Pictures for inspection, and frames of validation and test samples that look like those of
training."""

import numpy as np
import pytest
from PIL import Image

from alpro.shards.overlap import overlap, perceptual_hash
from alpro.shards.pictures import (
    FAINT,
    GREEN,
    INK,
    LINE_HEIGHT,
    MAX_LINES,
    RED,
    TILE,
    draw_entities,
    retrieval_picture,
    sheet,
    strip,
    tile,
)
from alpro.shards.reader import read_index

WHITE = np.full((32, 32, 3), 255, np.uint8)


def test_entities_of_the_clip_are_green_and_others_red():
    def colors(shown, kept=True):
        picture = draw_entities(WHITE, (0, 0, 1, 1), [("ball", 0.71)], "a ball", kept, shown)
        return {tuple(p) for p in np.asarray(picture)[TILE:].reshape(-1, 3)} & {
            GREEN,
            RED,
            INK,
            FAINT,
        }

    assert colors(["ball", "box"]) == {GREEN, INK, FAINT}
    assert colors(["box"]) == {RED, INK, FAINT}
    assert colors(None, kept=False) == {INK, FAINT}


def test_a_sheet_holds_every_strip_and_queries_show_their_results():
    rows = [strip([tile(WHITE)], [("text", RED)], TILE) for _ in range(5)]
    one = sheet(rows)
    two = sheet(rows, columns=2)
    assert one.height == 5 * rows[0].height
    assert (two.height, two.width) == (3 * rows[0].height, 2 * one.width)
    results = [(WHITE, "a", True), (WHITE, "b", False)]
    pixels = np.asarray(retrieval_picture([("a red ball", "came first", results)]))
    for left, border in ((0, GREEN), (TILE + 4, RED)):
        assert (
            tuple(pixels[0, left + TILE // 2])
            == tuple(pixels[TILE // 2, left + TILE - 1])
            == border
        )
        assert tuple(pixels[TILE // 2, left + TILE // 2]) == (255, 255, 255)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one", 1),
        ("", 1),
        ("word " * 30, 6),
        ("word " * 100_000, MAX_LINES + 1),  # and a line that says so
        ("x" * 400_000, MAX_LINES + 1),
    ],
)
def test_a_long_text_is_cut(text, lines):
    """176 pixels are 25 characters, which are five words."""
    picture = strip([tile(WHITE)], [(text, INK)], TILE)
    empty = strip([tile(WHITE)], [], TILE)
    assert picture.height - empty.height == lines * LINE_HEIGHT


@pytest.mark.parametrize(
    ("training", "held_out"), [(8, {0: 0, 4: 2, 9: 3, 100: 3}), (3, {9: 6, 4: 2})]
)
def test_frames_of_a_limited_number_of_samples_are_read(corpus_of, tmp_path, training, held_out):
    """Held-out samples first, up to half of the number, and more if there are few training
    samples."""
    rows = [
        {"id": f"{n}", "captions": ("x",), "split": "train" if n < training else "test"}
        for n in range(11)
    ]
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
        np.stack(
            [
                np.asarray(Image.fromarray(f).resize((144, 128), Image.Resampling.BICUBIC))
                for f in frames
            ]
        )
        for frames in (coarse, rng.integers(0, 256, (2, 8, 9, 3), np.uint8))
    )
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize((72, 64))) for frame in clip])
    assert perceptual_hash(clip) == perceptual_hash(smaller) != perceptual_hash(other)
    assert (
        perceptual_hash(np.full((2, 64, 64, 3), 7, np.uint8)) is None
    )  # blank frames have no hash
