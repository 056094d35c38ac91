"""What training draws at random: hard negatives, masked words, crops. Every draw is seeded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from alpro.models.alpro import crop
from alpro.models.losses import box_mask, hard_negatives, mask_words, random_box, vtc_loss


def test_negatives_are_drawn_in_proportion_to_the_softmax_without_the_own_pair():
    # One row 20,000 times. Its own column has half of the similarity's mass; the rest shares 1 : 2 : 7.
    draws = 20_000
    similarity = torch.tensor([10.0, 1, 2, 7]).log().repeat(draws, 1)
    same = torch.tensor([True, False, False, False]).repeat(draws, 1)
    columns, valid = hard_negatives(similarity, same, torch.rand(draws, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(columns, minlength=4).double()
    expected = draws * torch.tensor([0.0, 0.1, 0.2, 0.7]).double()
    assert valid.all()
    assert counts[0] == 0
    # Chi-square with two degrees of freedom is above 13.8 once in a thousand.
    assert ((counts - expected)[1:] ** 2 / expected[1:]).sum() < 13.8


def test_a_negative_is_never_of_the_same_video():
    video = torch.tensor([0, 0, 1, 2, 2, 2])
    same = video[:, None] == video[None]
    similarity = torch.where(same, 50.0, 0.0)  # all the mass is where nothing may be drawn
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        columns, valid = hard_negatives(similarity, same, torch.rand(6, generator=generator))
        assert valid.all()
        assert (video[columns] != video).all()


def test_a_row_without_another_video_is_invalid_and_no_nan():
    similarity = torch.randn(3, 3, requires_grad=True)
    columns, valid = hard_negatives(similarity, torch.ones(3, 3, dtype=torch.bool), torch.rand(3))
    assert valid.tolist() == [False] * 3
    assert ((columns >= 0) & (columns < 3)).all()  # an index that can be used, though it means nothing

    same = torch.tensor([[True, True, True], [True, True, False], [False, True, True]])
    columns, valid = hard_negatives(similarity, same, torch.rand(3))
    assert valid.tolist() == [False, True, True]
    assert columns[1:].tolist() == [2, 0]  # the only other videos


def test_negatives_of_extreme_similarities_are_drawn_without_nan():
    similarity = torch.tensor([[0.0, 1e4, -1e4], [1e4, 0.0, 1e4], [-1e4, -1e4, 0.0]])
    columns, valid = hard_negatives(similarity, torch.eye(3, dtype=torch.bool), torch.rand(3))
    assert valid.all()
    assert columns[0] == 1
    assert (columns != torch.arange(3)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_similarities_that_are_not_finite_reach_the_loss(bad):
    """Nothing raises before the training loop sees that the loss is not finite and skips the step."""
    similarity, same = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    similarity[0, 1] = bad
    columns, valid = hard_negatives(similarity, same, torch.rand(3))
    assert valid.all()
    assert ((columns >= 0) & (columns < 3)).all()
    assert (columns[1:] != torch.arange(1, 3)).all()  # other rows are drawn as ever
    assert not vtc_loss(similarity, similarity.T, torch.arange(3), same).isfinite()


def test_negatives_of_one_chance_are_the_same():
    similarity, same = torch.randn(64, 64), torch.eye(64, dtype=torch.bool)
    chance, another = torch.rand(2, 64)
    first, again, other = (hard_negatives(similarity, same, uniforms)[0] for uniforms in (chance, chance, another))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_chance_against_a_table():
    """The own pair is the second; the others share the line from 0 to 1 as 1/10, 2/10 and 7/10."""
    chances = [0.0, 0.099, 0.101, 0.299, 0.301, 0.999999, 1 - 2**-53]
    similarity = torch.tensor([1.0, 10, 2, 7]).log().repeat(len(chances), 1)
    same = torch.tensor([False, True, False, False]).repeat(len(chances), 1)
    columns, _ = hard_negatives(similarity, same, torch.tensor(chances, dtype=torch.double))
    assert columns.tolist() == [0, 0, 2, 2, 3, 3, 3]
    # With the own pair before the others: it is no part of the line, not even its beginning.
    columns, _ = hard_negatives(similarity[:, [1, 0, 2, 3]], same[:, [1, 0, 2, 3]], torch.tensor(chances).double())
    assert columns.tolist() == [1, 1, 2, 2, 3, 3, 3]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(6)), count=st.integers(1, 6))
def test_a_rows_negative_depends_on_its_own_chance_alone(seed: int, order: list[int], count: int):
    """Not on the order of the rows nor on which others there are: a batch may be shared out among processes."""
    random = torch.Generator().manual_seed(seed)
    similarity, chance = torch.randn(6, 9, generator=random) * 5, torch.rand(6, generator=random)
    video = torch.randint(0, 4, (9,), generator=random)
    same = video[:6, None] == video[None]
    columns, valid = hard_negatives(similarity, same, chance)
    some = order[:count]
    fewer, valid_of_them = hard_negatives(similarity[some], same[some], chance[some])
    assert torch.equal(valid_of_them, valid[some])
    assert torch.equal(fewer[valid_of_them], columns[some][valid_of_them])


class Calls(TorchDispatchMode):
    """Counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


def test_negatives_of_many_pairs_are_drawn_in_as_many_calls_as_those_of_two():
    """The official code draws them one by one."""
    counts = []
    for size in (2, 64):
        with Calls() as calls:
            hard_negatives(torch.zeros(size, size), torch.eye(size, dtype=torch.bool), torch.rand(size))
        counts.append(calls.count)
    assert counts[0] == counts[1] < 40


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


def test_masking_leaves_what_was_given_alone_and_keeps_its_type():
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
    top, left, height, width = box = random_box(grid, np.random.default_rng(seed))
    assert 0.3 <= height * width / grid**2 <= 0.5
    assert 0 <= top <= grid - height
    assert 0 <= left <= grid - width
    assert box == random_box(grid, np.random.default_rng(seed))


@pytest.mark.parametrize("grid", [4, 14])
def test_boxes_are_tall_and_wide_and_everywhere(grid: int):
    rng = np.random.default_rng(0)
    boxes = torch.tensor([random_box(grid, rng) for _ in range(500)])
    taller = (boxes[:, 2] > boxes[:, 3]).float().mean()
    assert 0.25 < taller < 0.75
    assert box_mask(boxes, grid).any(dim=0).all()  # every patch is in some box


def test_a_box_in_a_grid_too_coarse_for_it_is_half_of_the_grid():
    # 2 x 2 patches: a share of 0.3 to 0.4 is no whole number of patches.
    assert random_box(2, np.random.default_rng(0), area=(0.3, 0.4)) == (0, 0, 1, 2)


def test_box_mask_against_a_table():
    boxes = torch.tensor([[0, 1, 2, 2], [2, 0, 1, 3]])  # top, left, height, width
    inside = box_mask(boxes, 3).view(2, 3, 3).int().tolist()
    assert inside == [
        [[0, 1, 1], [0, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 1, 1]],
    ]


def test_a_crop_keeps_its_place_and_the_rest_is_black():
    frames = torch.rand(2, 3, 3, 16, 16) + 1  # nothing is black before
    black = torch.tensor([-0.5, -1.0, -1.5]).view(3, 1, 1)
    cropped = crop(frames, torch.tensor([[0, 1, 2, 3], [3, 0, 1, 2]]), 4, black)
    expected = black.expand_as(frames).clone()
    expected[0, :, :, 0:8, 4:16] = frames[0, :, :, 0:8, 4:16]  # rows 0-1, columns 1-3, in every frame
    expected[1, :, :, 12:16, 0:8] = frames[1, :, :, 12:16, 0:8]  # row 3, columns 0-1
    assert torch.equal(cropped, expected)
