"""Masked tokens and crops, which the loader samples with a seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.models.losses import box_mask
from alpro.stages.training.batch import keep_patches, mask_words, random_box


def test_words_are_masked_at_the_rates_of_bert():
    vocab, mask_id, length = 30_000, 3, 200_000
    rng = np.random.default_rng(0)
    ids = rng.integers(5, vocab, length)
    special = np.arange(length) % 10 == 0
    before = ids.copy()
    masked, labels = mask_words(ids, special, mask_id, vocab, 0.15, rng)
    assert (ids == before).all()
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


def test_kept_patches_are_a_subset_of_which_every_patch_is_equally_often():
    rng = np.random.default_rng(0)
    for grid, dropped, count in ((1, 0.99, 1), (4, 0.0, 16), (4, 0.9, 2), (14, 0.5, 98)):
        kept = keep_patches(grid, dropped, rng)
        assert len(kept) == count
        assert (np.diff(kept) > 0).all()
        assert 0 <= kept[0] <= kept[-1] < grid**2
    counts = np.bincount(np.concatenate([keep_patches(4, 0.75, rng) for _ in range(4000)]), minlength=16)
    assert np.abs(counts / 4000 - 0.25).max() < 0.035  # five standard deviations
