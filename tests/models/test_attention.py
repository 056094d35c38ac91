"""Attention as on a GPU, on a CPU: short sequences in one tile, and more than a kernel takes."""

import pytest
import torch
import torch.nn.functional as F

from alpro.models import attention
from alpro.models.attention import attention_on_gpu, block_mask, sequences_per_tile
from tests.models.conftest import near


def heads_of(sequences, length):
    """Queries, keys and values (B, 2, L, 8), with gradients."""
    generator = torch.Generator().manual_seed(length)
    shape = sequences, 2, length, 8
    return [
        torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)
    ]


@pytest.mark.parametrize(("sequences", "length"), [(12, 4), (7, 16), (10, 3), (13, 8)])
def test_packed_sequences_attend_to_themselves_only(sequences, length):
    expected = F.scaled_dot_product_attention(*(x := heads_of(sequences, length)))
    gradients = torch.autograd.grad(expected.square().sum(), x)

    packed = sequences_per_tile(sequences, length)
    mask = block_mask(packed, length, torch.float32, x[0].device)
    actual = attention_on_gpu(*x, mask)

    near(actual, expected)
    near(torch.autograd.grad(actual.square().sum(), x), gradients)


@pytest.mark.parametrize("masked", ["none", "each", "all"])
def test_more_sequences_than_a_kernel_takes_are_computed_in_parts(masked, monkeypatch):
    x = heads_of(11, 20)
    lengths = torch.arange(11)[:, None, None, None] + 5
    masks = {
        "none": None,
        "each": torch.arange(20)[None, None, None] < lengths,
        "all": torch.eye(20, dtype=torch.bool)[None, None],
    }
    mask = masks[masked]
    expected = F.scaled_dot_product_attention(*x, mask)

    sizes = []
    fused = F.scaled_dot_product_attention

    def record(q, *arguments, **options):
        sizes.append(len(q))
        return fused(q, *arguments, **options)

    monkeypatch.setattr(attention, "MAX_SEQUENCES", 4)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    near(attention_on_gpu(*x, mask), expected)
    assert sizes == [4, 4, 3]
