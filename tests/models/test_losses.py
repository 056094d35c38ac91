"""VTC, VTM, PEM's threshold and hard negatives against tables computed by hand. Logits are
logarithms: softmax gives simple fractions. The losses of a batch, and crops, are in
tests/stages/training/test_objective.py."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.models.losses import pem_loss, sample_hard_negatives, vtc_loss


def logs(shares):
    return torch.tensor(shares).log()


def test_a_second_caption_of_a_video_is_not_a_negative():
    """The official code would count it as one."""
    similarity = logs([[2, 8, 2], [8, 4, 4], [1, 1, 2]]).requires_grad_()
    video = torch.tensor([7, 7, 9])  # pairs 0 and 1 are of one video
    same = video[:, None] == video[None]
    # v2t: 2/(2+2), 4/(4+4), 2/(1+1+2); t2v, by columns: 2/(2+1), 4/(4+1), 2/(2+4+2). The 8s are
    # left out.
    by_hand = (-(3 * log(1 / 2)) / 3 - (log(2 / 3) + log(4 / 5) + log(1 / 4)) / 3) / 2
    loss = vtc_loss(similarity, similarity.T, torch.arange(3), same)
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == similarity.grad[1, 0] == 0
    # Every pair's own caption is pulled to it.
    assert (similarity.grad.diagonal() < 0).all()


def test_pem_compares_the_probability_with_the_threshold():
    """The official code holds it against the index of the best entity: it would drop the first and
    keep the others."""
    pseudo_labels = torch.full((3, 10), 0.1)
    pseudo_labels[0] = torch.tensor([0.91] + [0.01] * 9)
    # Exactly the threshold is enough.
    pseudo_labels[2] = torch.tensor([0.1] * 5 + [0.05, 0.05, 0.1, 0.1, 0.2])

    loss, kept = pem_loss(torch.zeros(3, 10), pseudo_labels, threshold=0.2)
    assert kept.tolist() == [True, False, True]
    # Even logits: log 10 for each that is kept.
    assert loss.item() == pytest.approx(2 * log(10))
    loss, kept = pem_loss(torch.zeros(3, 10), pseudo_labels, threshold=0.95)
    assert loss.item() == 0
    assert not kept.any()


def test_sampled_negatives_against_a_table():
    """The own pair is the second; the others share the line from 0 to 1 (by rounding) as 1/10, 2/10
    and 7/10."""
    uniforms = [0.0, 0.099, 0.101, 0.299, 0.301, 0.999999, 1.0]
    similarity = torch.tensor([1.0, 10, 2, 7]).log().repeat(len(uniforms), 1)
    same = torch.tensor([False, True, False, False]).repeat(len(uniforms), 1)
    draws = torch.tensor(uniforms, dtype=torch.double)
    # Before or behind them it is not part of the line.
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 3, 1]):
        columns, _ = sample_hard_negatives(similarity[:, order], same[:, order], draws)
        assert [order[column] for column in columns.tolist()] == [0, 0, 2, 2, 3, 3, 3]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**31), order=st.permutations(range(6)), count=st.integers(1, 6)
)
def test_the_negative_of_a_row_is_of_another_video_and_depends_on_its_own_random_number(
    seed, order, count
):
    """It depends neither on the order nor on the presence of other rows: processes share a
    batch."""
    random = torch.Generator().manual_seed(seed)
    similarity = torch.randn(6, 9, generator=random) * 5
    uniforms = torch.rand(6, generator=random)
    video = torch.randint(0, 4, (9,), generator=random)
    same = video[:6, None] == video[None]
    similarity[same] += 50  # nearly all of the mass is on excluded columns

    columns, valid = sample_hard_negatives(similarity, same, uniforms)
    assert torch.equal(valid, ~same.all(1))
    assert (video[columns] != video[:6])[valid].all()
    some = order[:count]
    fewer, valid_of_them = sample_hard_negatives(
        similarity[some], same[some], uniforms[some]
    )
    assert torch.equal(valid_of_them, valid[some])
    assert torch.equal(fewer[valid_of_them], columns[some][valid_of_them])


@pytest.mark.parametrize("extreme", [1e4, torch.nan, torch.inf])
def test_extreme_similarities_and_rows_without_negatives_give_a_column(extreme):
    """Nothing raises before the training loop sees that the loss is not finite and skips the
    step."""
    similarity = torch.zeros(3, 3)
    same = torch.eye(3, dtype=torch.bool)
    similarity[0, 1] = extreme
    columns, valid = sample_hard_negatives(similarity, same, torch.rand(3))
    assert valid.all()
    assert columns[0] == 1 or extreme != 1e4
    assert ((columns >= 0) & (columns < 3)).all()
    assert (columns[1:] != torch.arange(1, 3)).all()  # other rows are not affected
    assert vtc_loss(similarity, similarity.T, torch.arange(3), same).isfinite() == (
        extreme == 1e4
    )
    same[0] = True
    columns, valid = sample_hard_negatives(similarity, same, torch.rand(3))
    assert valid.tolist() == [False, True, True]
    assert 0 <= columns[0] < 3  # an index, although it is arbitrary
