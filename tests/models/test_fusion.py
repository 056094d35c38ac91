"""Fusion of the first tokens equals those of full fusion in values and gradients; dropout of its layers."""

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.text import Layer

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


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_dropout_is_in_both_branches_of_a_layer(tiny: ModelConfig, branch: str):
    layer = Layer(tiny.text.model_copy(update={"dropout": 0.5})).train()
    layer.attention.dropout = 0.0  # that of the attention itself
    other = layer.mlp.fc2 if branch == "attention" else layer.attention.proj
    torch.nn.init.zeros_(other.weight)
    torch.nn.init.zeros_(other.bias)
    x = torch.randn(2, 5, 16)
    assert not torch.equal(layer(x, None), layer(x, None))
    assert torch.equal(layer.eval()(x, None), layer(x, None))
