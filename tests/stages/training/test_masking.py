"""Masked tokens and crops, which the loader samples with a seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.models.losses import box_mask
from alpro.stages.training.masking import keep_patches, mask_words, random_box


def test_words_are_masked_at_the_rates_of_bert():
    vocab, mask_id, length = 30_000, 3, 200_000
    rng = np.random.default_rng(0)
    ids = rng.integers(5, vocab, length)
    special = np.arange(length) % 10 == 0
    masked, labels = mask_words(ids, special, mask_id, vocab, 0.15, rng)

    chosen = labels != -100
    to_mask, changed = masked == mask_id, masked != ids
    # Tolerances are five standard deviations or more: sqrt(.15 * .85 / 180k) = .0008, sqrt(.8 * .2 / 27k) = .0024.
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.005)
    assert to_mask[chosen].mean() == pytest.approx(0.8, abs=0.013)
    assert (changed & ~to_mask)[chosen].mean() == pytest.approx(0.1, abs=0.01)
    assert (~changed)[chosen].mean() == pytest.approx(0.1, abs=0.01)
    assert not chosen[special].any()
    assert not changed[~chosen].any()
    assert (labels[chosen] == ids[chosen]).all()
    assert len(set(masked[changed & ~to_mask])) > 1000  # random words are of the whole vocabulary


def test_masking_does_not_change_its_input_and_keeps_the_type():
    ids, special = np.arange(12, dtype=np.int32), np.zeros(12, bool)
    before = ids.copy()
    masked, labels = mask_words(ids, special, 3, 100, 1.0, np.random.default_rng(0))
    assert (ids == before).all()
    assert masked.dtype == np.int32
    assert (labels == ids).all()  # rate 1: all are chosen
    masked, labels = mask_words(ids, special, 3, 100, 0.0, np.random.default_rng(0))
    assert (masked == ids).all()
    assert (labels == -100).all()


@settings(max_examples=60, deadline=None)
@given(grid=st.sampled_from([4, 14]), seed=st.integers(0, 2**31))
def test_a_box_has_its_share_of_the_area_and_lies_inside(grid: int, seed: int):
    left, top, width, height = box = random_box(grid, np.random.default_rng(seed))
    assert 0.3 <= height * width / grid**2 <= 0.5
    assert 0 <= top <= grid - height
    assert 0 <= left <= grid - width
    assert box == random_box(grid, np.random.default_rng(seed))


@pytest.mark.parametrize("grid", [4, 14])
def test_boxes_are_tall_and_wide_and_everywhere(grid: int):
    rng = np.random.default_rng(0)
    boxes = torch.tensor([random_box(grid, rng) for _ in range(500)])
    taller = (boxes[:, 3] > boxes[:, 2]).float().mean()
    assert 0.25 < taller < 0.75
    assert box_mask(boxes, grid).any(dim=0).all()  # every patch is in some box


def test_a_box_in_a_grid_too_coarse_for_it_is_half_of_the_grid():
    # 2 x 2 patches: a share of 0.3 to 0.4 is no whole number of patches.
    assert random_box(2, np.random.default_rng(0), area=(0.3, 0.4)) == (0, 0, 2, 1)


@given(st.integers(1, 16), st.floats(0, 0.99), st.integers(0, 100))
def test_kept_patches_are_a_random_subset(grid, dropped, seed):
    kept = keep_patches(grid, dropped, np.random.default_rng(seed))
    assert len(kept) == max(1, round((1 - dropped) * grid**2))
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < grid**2


def test_every_patch_is_kept_equally_often():
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([keep_patches(4, 0.75, rng) for _ in range(4000)]), minlength=16)
    assert np.abs(counts / 4000 - 0.25).max() < 0.035  # five standard deviations
