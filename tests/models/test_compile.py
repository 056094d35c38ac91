"""The compiled model equals the eager one."""

import shutil

import pytest
import torch

from alpro.models.alpro import Alpro
from alpro.models.losses import box_mask
from alpro.stages.execution.interface import Resources
from alpro.stages.training.loop import configure_layers
from alpro.stages.training.objective import Objective

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


def test_compiled_equals_eager(tiny):
    """As in training: every layer is compiled separately."""
    model = Alpro(tiny, entities=5, answers=3)
    frames, ids = torch.randn(2, 4, 3, 32, 32), torch.randint(5, 40, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inside = box_mask(torch.tensor([[0, 0, 2, 2], [1, 1, 2, 3]]), 4)

    def step(frames, ids, mask, inside):
        video, text = model.encode_video(frames), model.encode_text(ids, mask)
        fused = model.fuse(text, mask, video)
        return (
            model.project_video(video) @ model.project_text(text).T,
            model.vtm_head(fused[:, 0]),
            model.mlm_scores(fused[:, :9]),
            model.pem_logits(fused[:, 10:], inside),
            model.qa_head(fused[:, 0]),
            model.fuse(text, mask, video, 9),
        )

    def gradients(run):
        model.zero_grad()
        outputs = run(frames, ids, mask, inside)
        sum(output.square().mean() for output in outputs).backward()
        return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    eager, eager_gradients = gradients(step)
    configure_layers(Objective(model, [0.5] * 3, [0.5] * 3), Resources(compile=True))
    compiled, compiled_gradients = gradients(step)
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
    assert eager_gradients.keys() == compiled_gradients.keys()
    for name, value in eager_gradients.items():
        torch.testing.assert_close(compiled_gradients[name], value, atol=1e-5, rtol=1e-3, msg=name)
