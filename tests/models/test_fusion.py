"""Fusion of the first tokens equals those of full fusion in values and gradients."""

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig

LENGTH, PATCHES = 6, 17


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


@pytest.mark.parametrize("first", [1, LENGTH, LENGTH + PATCHES])
def test_the_first_tokens_are_those_of_full_fusion(model: Alpro, pairs: tuple[Tensor, ...], first: int):
    text, mask, video = pairs
    weights, found = torch.randn(6, first, 16), []
    for some in (first, None):
        model.zero_grad()
        args = text.clone().requires_grad_(), mask, video.clone().requires_grad_()
        fused = model.fuse(*args, some)
        assert fused.shape[1] == (some or LENGTH + PATCHES)
        (fused[:, :first] * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.multimodal_encoder.named_parameters()}
        found.append(gradients | {"fused": fused[:, :first].detach(), "text": args[0].grad, "video": args[2].grad})
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, atol=1e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(model.fuse_cls(*pairs), found[1]["fused"][:, 0], atol=1e-6, rtol=0)


def test_padding_is_not_attended_to(model: Alpro, pairs: tuple[Tensor, ...]):
    text, mask, video = pairs
    noise = torch.where(mask[..., None].bool(), text, torch.randn_like(text))
    assert torch.equal(model.fuse(noise, mask, video, 1), model.fuse(text, mask, video, 1))
    assert torch.equal(model.fuse(noise, mask, video)[:, LENGTH:], model.fuse(text, mask, video)[:, LENGTH:])


def test_the_last_layer_computes_only_the_first_tokens(model: Alpro, pairs: tuple[Tensor, ...]):
    rows: list[int] = []
    for layer in model.multimodal_encoder.layers:
        layer.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:2].numel()))
    model.fuse(*pairs, 2)
    assert rows == [6 * (LENGTH + PATCHES)] * (len(rows) - 1) + [6 * 2]
