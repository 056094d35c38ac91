"""The residual stream of the encoders in the type of autocast's products, as on a GPU."""

import pytest
import torch
from torch import Tensor

from alpro.models import precision
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.text import Layer
from alpro.models.timesformer import Block


def streams(model: Alpro) -> set[torch.dtype]:
    """The types of what the layers return, in a forward and backward pass of all encoders."""
    seen: set[torch.dtype] = set()

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        seen.add(output.dtype)

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, Block | Layer)
    ]
    match(model).sum().backward()
    for hook in hooks:
        hook.remove()
    return seen


def match(model: Alpro) -> Tensor:
    torch.manual_seed(1)
    frames = torch.randn(3, 4, 3, 32, 32)
    ids = torch.tensor([[2, 7, 9, 11, 3, 0], [2, 5, 3, 0, 0, 0], [2, 8, 8, 8, 8, 3]])
    mask = (ids > 0).long()
    return model.match(model.encode_text(ids, mask), mask, model.encode_video(frames))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_stream_is_in_half_precision_on_a_gpu_alone(tiny: ModelConfig, monkeypatch, on_gpu):
    model = Alpro(tiny)
    exact = match(model)
    monkeypatch.setattr(precision, "casts_residual", lambda _: on_gpu)
    # Without autocast nothing is cast.
    assert streams(model) == {torch.float32}
    assert torch.equal(match(model), exact)

    with torch.autocast("cpu", torch.bfloat16):
        assert streams(model) == {torch.bfloat16 if on_gpu else torch.float32}
        mixed = match(model).float()
    # bfloat16 has 8 bits of precision; gradients have the type of the weights.
    assert (mixed - exact).abs().max() <= 0.05 * exact.abs().max()
    for weight in model.video_encoder.blocks.parameters():
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
