"""Hard negative sampling, which is seeded, and crops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.models.alpro import crop
from alpro.models.losses import box_mask, hard_negatives, vtc_loss


def test_a_negative_is_never_of_the_same_video():
    video = torch.tensor([0, 0, 1, 2, 2, 2])
    same = video[:, None] == video[None]
    similarity = torch.where(same, 50.0, 0.0)  # all the mass is on excluded columns
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        columns, valid = hard_negatives(similarity, same, torch.rand(6, generator=generator))
        assert valid.all()
        assert (video[columns] != video).all()


def test_a_row_without_negatives_is_invalid_and_has_no_nan():
    similarity = torch.randn(3, 3, requires_grad=True)
    columns, valid = hard_negatives(similarity, torch.ones(3, 3, dtype=torch.bool), torch.rand(3))
    assert valid.tolist() == [False] * 3
    assert ((columns >= 0) & (columns < 3)).all()  # a valid index, although it is arbitrary

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
    assert (columns[1:] != torch.arange(1, 3)).all()  # other rows are not affected
    assert not vtc_loss(similarity, similarity.T, torch.arange(3), same).isfinite()


def test_sampled_negatives_against_a_table():
    """The own pair is the second; the others share the line from 0 to 1 as 1/10, 2/10 and 7/10."""
    uniforms = [0.0, 0.099, 0.101, 0.299, 0.301, 0.999999, 1 - 2**-53]
    similarity = torch.tensor([1.0, 10, 2, 7]).log().repeat(len(uniforms), 1)
    same = torch.tensor([False, True, False, False]).repeat(len(uniforms), 1)
    columns, _ = hard_negatives(similarity, same, torch.tensor(uniforms, dtype=torch.double))
    assert columns.tolist() == [0, 0, 2, 2, 3, 3, 3]
    # With the own pair before the others: it is not part of the line.
    columns, _ = hard_negatives(similarity[:, [1, 0, 2, 3]], same[:, [1, 0, 2, 3]], torch.tensor(uniforms).double())
    assert columns.tolist() == [1, 1, 2, 2, 3, 3, 3]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(6)), count=st.integers(1, 6))
def test_the_negative_of_a_row_depends_only_on_its_own_random_number(seed: int, order: list[int], count: int):
    """It depends neither on the order nor on the presence of other rows: processes share a batch."""
    random = torch.Generator().manual_seed(seed)
    similarity, uniforms = torch.randn(6, 9, generator=random) * 5, torch.rand(6, generator=random)
    video = torch.randint(0, 4, (9,), generator=random)
    same = video[:6, None] == video[None]
    columns, valid = hard_negatives(similarity, same, uniforms)
    some = order[:count]
    fewer, valid_of_them = hard_negatives(similarity[some], same[some], uniforms[some])
    assert torch.equal(valid_of_them, valid[some])
    assert torch.equal(fewer[valid_of_them], columns[some][valid_of_them])


def test_box_mask_against_a_table():
    boxes = torch.tensor([[1, 0, 2, 2], [0, 2, 3, 1]])  # left, top, width, height
    inside = box_mask(boxes, 3).view(2, 3, 3).int().tolist()
    assert inside == [
        [[0, 1, 1], [0, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 1, 1]],
    ]


def test_a_crop_keeps_its_place_and_the_rest_is_black():
    frames = torch.rand(2, 3, 3, 16, 16) + 1  # no pixel is black
    black = torch.tensor([-0.5, -1.0, -1.5]).view(3, 1, 1)
    cropped = crop(frames, torch.tensor([[1, 0, 3, 2], [0, 3, 2, 1]]), 4, black)
    expected = black.expand_as(frames).clone()
    expected[0, :, :, 0:8, 4:16] = frames[0, :, :, 0:8, 4:16]  # rows 0-1, columns 1-3, in every frame
    expected[1, :, :, 12:16, 0:8] = frames[1, :, :, 12:16, 0:8]  # row 3, columns 0-1
    assert torch.equal(cropped, expected)
