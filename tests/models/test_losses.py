"""The four objectives against tables computed by hand. Logits are logarithms: softmax gives simple fractions."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alpro.models.losses import mlm_loss, pem_loss, vtc_loss, vtm_loss


def logs(shares: list[list[float]]) -> Tensor:
    return torch.tensor(shares).log()


def distinct(size: int) -> Tensor:
    """All pairs are of different videos."""
    return torch.eye(size, dtype=torch.bool)


def test_vtc_against_a_table():
    similarity = logs([[3, 1], [2, 6]])
    # Videos to texts (rows): 3/4 and 6/8; texts to videos (columns): 3/5 and 6/7.
    v2t = -(log(3 / 4) + log(6 / 8)) / 2
    t2v = -(log(3 / 5) + log(6 / 7)) / 2
    loss = vtc_loss(similarity, similarity.T, torch.arange(2), distinct(2))
    assert loss.item() == pytest.approx((v2t + t2v) / 2)


def test_vtc_on_a_rank_whose_pairs_begin_at_a_later_column():
    # Two ranks of two pairs: the second rank's own columns are 2 and 3.
    v2t, t2v = logs([[1, 1, 4, 2], [1, 2, 3, 2]]), logs([[2, 1, 1, 1], [3, 3, 1, 1]])
    same = torch.tensor([[False, False, True, False], [False, False, False, True]])
    # v2t: 4/8 and 2/8; t2v: 1/5 and 1/8.
    by_hand = (-(log(4 / 8) + log(2 / 8)) / 2 - (log(1 / 5) + log(1 / 8)) / 2) / 2
    assert vtc_loss(v2t, t2v, torch.tensor([2, 3]), same).item() == pytest.approx(by_hand)


def test_a_second_caption_of_a_video_is_not_a_negative():
    """The official code would count it as one."""
    similarity = logs([[2, 8, 2], [8, 4, 4], [1, 1, 2]]).requires_grad_()
    video = torch.tensor([7, 7, 9])  # pairs 0 and 1 are of one video
    same = video[:, None] == video[None]
    # v2t: 2/(2+2), 4/(4+4), 2/(1+1+2); t2v, by columns: 2/(2+1), 4/(4+1), 2/(2+4+2). The 8s are left out.
    by_hand = (-(3 * log(1 / 2)) / 3 - (log(2 / 3) + log(4 / 5) + log(1 / 4)) / 3) / 2
    loss = vtc_loss(similarity, similarity.T, torch.arange(3), same)
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == similarity.grad[1, 0] == 0
    assert (similarity.grad[distinct(3)] < 0).all()  # every pair's own caption is pulled to it


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 2**31))
def test_the_order_of_the_pairs_leaves_vtc_as_it_is(order: list[int], seed: int):
    similarity = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
    video = torch.tensor([0, 0, 1, 2, 3])
    shuffled = similarity[order][:, order]
    before, after = (
        vtc_loss(s, s.T, torch.arange(5), v[:, None] == v[None])
        for s, v in ((similarity, video), (shuffled, video[order]))
    )
    torch.testing.assert_close(before, after)


def test_vtm_leaves_invalid_rows_out():
    logits = logs([[1, 3], [3, 1], [1, 9]]).requires_grad_()
    labels = torch.tensor([1, 0, 0])
    # The third is certain of a match and wrong, and is not counted: both others give their label 3/4.
    loss = vtm_loss(logits, labels, torch.tensor([1.0, 1.0, 0.0]))
    assert loss.item() == pytest.approx(-2 * log(3 / 4))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[2] == 0).all()
    # With it: 2 log 4/3 + log 10.
    assert vtm_loss(logits, labels, torch.ones(3)).item() == pytest.approx(2 * log(4 / 3) + log(10))


def test_vtm_of_no_valid_row_is_zero():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = vtm_loss(logits, torch.tensor([1, 0, 0]), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_mlm_is_the_sum_over_masked_words():
    scores = logs([[1, 1, 2], [5, 4, 1], [1, 1, 1]])
    # Labels 2 (2/4) and 1 (4/10); the last is not masked.
    assert mlm_loss(scores, torch.tensor([2, 1, -100])).item() == pytest.approx(-log(1 / 2) - log(2 / 5))
    assert mlm_loss(scores, torch.full((3,), -100)).item() == 0


def test_pem_is_soft_cross_entropy():
    logits = logs([[1, 3], [2, 2]])
    pseudo_labels = torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    # -(1/4 log 1/4 + 3/4 log 3/4) and, of even logits, log 2.
    by_hand = -(log(1 / 4) / 4 + 3 * log(3 / 4) / 4) + log(2)
    loss, kept = pem_loss(logits, pseudo_labels, threshold=0.2)
    assert loss.item() == pytest.approx(by_hand)
    assert kept.tolist() == [True, True]


def test_pem_compares_the_probability_with_the_threshold():
    """The official code holds it against the index of the best entity: it would drop the first and keep the others."""
    pseudo_labels = torch.full((3, 10), 0.1)
    pseudo_labels[0] = torch.tensor([0.91] + [0.01] * 9)
    pseudo_labels[2] = torch.tensor([0.1] * 5 + [0.05, 0.05, 0.1, 0.1, 0.2])  # exactly the threshold is enough
    logits = torch.zeros(3, 10)
    loss, kept = pem_loss(logits, pseudo_labels, threshold=0.2)
    assert kept.tolist() == [True, False, True]
    assert loss.item() == pytest.approx(2 * log(10))  # even logits: log 10 for each that is kept


def test_pem_without_kept_samples_is_zero_and_has_no_gradient():
    logits = torch.randn(2, 10, requires_grad=True)
    loss, kept = pem_loss(logits, torch.full((2, 10), 0.1), threshold=0.2)
    loss.backward()
    assert not kept.any()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
