"""Fusion at selected positions equals full fusion in values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig

LENGTH, PATCHES = 6, 17
# Positions for groups of different numbers of rows and positions: [CLS], words, patches, padding, duplicates.
GROUPS = {
    "a group": [[[0], [0], [0], [0], [0], [0]]],
    "two groups": [[[0, 7, 8, 22], [0, 9, 12, 15]], [[0], [0], [0], [0]]],
    "three groups": [[[0, 6]], [[3], [2], [0]], [[1, 5, 5, 0, 10], [4, 22, 21, 20, 1]]],
}


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Text, mask and video of six pairs; most texts are padded."""
    lengths = torch.tensor([6, 4, 3, 6, 2, 5])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return torch.randn(6, LENGTH, 16), mask, torch.randn(6, PATCHES, 16)


@pytest.fixture(params=[1, 3], ids=["one fusion layer", "three fusion layers"])
def model(tiny: ModelConfig, request: pytest.FixtureRequest) -> Alpro:
    text = tiny.text.model_copy(update={"depth": 2 + request.param})
    return Alpro(tiny.model_copy(update={"text": text}), entities=5).eval()


def read_from(fused: Tensor, read: list[Tensor]) -> tuple[Tensor, ...]:
    """Selected positions of all fused tokens, for each group of rows."""
    rows = fused.split([len(positions) for positions in read])
    return tuple(x[torch.arange(len(at))[:, None], at] for x, at in zip(rows, read, strict=True))


@pytest.mark.parametrize("groups", GROUPS)
def test_fusion_at_selected_positions_equals_full_fusion(model: Alpro, pairs: tuple[Tensor, ...], groups: str):
    read = [torch.tensor(positions) for positions in GROUPS[groups]]
    actual, expected = model.fuse_at(read, *pairs), read_from(model.fuse(*pairs), read)
    assert len(actual) == len(read)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_fused_cls_is_the_first_fused_token(model: Alpro, pairs: tuple[Tensor, ...]):
    torch.testing.assert_close(model.fuse_cls(*pairs), model.fuse(*pairs)[:, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("groups", GROUPS)
def test_gradients_at_selected_positions_equal_those_of_full_fusion(
    model: Alpro, pairs: tuple[Tensor, ...], groups: str
):
    read = [torch.tensor(positions) for positions in GROUPS[groups]]
    text, mask, video = pairs
    weights = [torch.randn(*positions.shape, 16) for positions in read]

    def gradients(fuse: Callable[..., tuple[Tensor, ...]]) -> dict[str, Tensor]:
        model.zero_grad()
        args = text.clone().requires_grad_(), mask, video.clone().requires_grad_()
        torch.stack([(x * w).sum() for x, w in zip(fuse(*args), weights, strict=True)]).sum().backward()
        own = {name: p.grad for name, p in model.multimodal_encoder.named_parameters()}
        return own | {"text": args[0].grad, "video": args[2].grad}

    actual = gradients(lambda *args: model.fuse_at(read, *args))
    expected = gradients(lambda *args: read_from(model.fuse(*args), read))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_padding_is_not_attended_to(model: Alpro, pairs: tuple[Tensor, ...]):
    text, mask, video = pairs
    read = [torch.tensor([[0, 6, 22]] * 6)]
    noise = torch.where(mask[..., None].bool(), text, torch.randn_like(text))
    assert torch.equal(model.fuse_at(read, noise, mask, video)[0], model.fuse_at(read, text, mask, video)[0])


def test_the_last_layer_computes_only_the_selected_positions(model: Alpro, pairs: tuple[Tensor, ...]):
    rows: list[int] = []
    for layer in model.multimodal_encoder.layers:
        layer.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:2].numel()))
    model.fuse_at([torch.tensor(positions) for positions in GROUPS["two groups"]], *pairs)
    assert rows == [6 * (LENGTH + PATCHES)] * (len(rows) - 2) + [2 * 4, 4 * 1]
