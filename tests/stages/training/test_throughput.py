"""The floating-point operations of a training step: against counts by hand, and independent of how a step is run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alpro.models.alpro import Prompter
from alpro.models.text import Layer, Layers, TextConfig
from alpro.models.timesformer import Block, TimeSformer, VideoConfig
from alpro.stages.training.throughput import StepFlops, peak

LENGTH, WIDTH = 30, 768


class OneModule(nn.Module):
    """An objective of one module on `size` samples of `tokens` tokens, of which the gradient is needed too."""

    def __init__(self, module: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], tokens: int):
        super().__init__()
        self.module, self.run, self.tokens = module, run, tokens

    def forward(self, batch):
        x = torch.zeros(len(batch.text), self.tokens, WIDTH, device=batch.text.device, requires_grad=True)
        return self.run(self.module, x).sum(), {}


def test_a_layer_of_bert_base_by_hand(small_batch):
    """768 channels, MLP of 3072, 30 tokens: 30 x (4 x 2 x 768^2 + 2 x 2 x 768 x 3072) and attention of 30 to 30; as
    much again for the gradients of the inputs, and of the weights."""
    by_hand = 30 * (8 * 768**2 + 4 * 768 * 3072) + 4 * 30 * 30 * 768
    with torch.device("meta"):
        layer = Layer(TextConfig())
    objective = OneModule(layer, lambda layer, x: layer(x, torch.ones(1, 1, 1, LENGTH, device=x.device).bool()), LENGTH)
    assert StepFlops(objective)(small_batch) == len(small_batch.ids) * 3 * by_hand


def test_a_block_of_the_timesformer_by_hand(small_batch):
    """4 frames of 196 patches: attention over time with temporal_fc, over space with [CLS], and the MLP."""
    time = 4 * 196 * (10 * 768**2 + 4 * 4 * 768)
    space = 4 * 197 * (8 * 768**2 + 4 * 197 * 768)
    mlp = (4 * 196 + 1) * 4 * 768 * 3072
    with torch.device("meta"):
        block = Block(VideoConfig())
    objective = OneModule(block, lambda block, x: block(x, 4), 1 + 4 * 196)
    assert StepFlops(objective)(small_batch) == len(small_batch.ids) * 3 * (time + space + mlp)


OBJECTIVES = ("prompter", "retrieval", "qa", "pretrain")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_recomputation_does_not_count(name, small_objective, small_batch):
    objective = small_objective(name, dropout=0.1).train()
    plain = StepFlops(objective)(small_batch)
    for module in objective.modules():
        if isinstance(module, TimeSformer | Layers):
            module.checkpoint_activations = True
    assert StepFlops(objective)(small_batch) == plain > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_counting_changes_nothing(name, small_objective, small_batch):
    """Neither weights, gradients and modes nor the random state: a run with counts is the run without them."""
    objective = small_objective(name, dropout=0.1).train()
    small_batch.uniforms = None  # sampled in the objective, from the generator of its device
    objective(small_batch)[0].backward()
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    gradients = {key: p.grad.clone() for key, p in objective.named_parameters() if p.grad is not None}
    modes, state = [module.training for module in objective.modules()], torch.get_rng_state()
    StepFlops(objective)(small_batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in objective.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    after = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    assert after.keys() == gradients.keys()
    assert all(torch.equal(value, gradients[key]) for key, value in after.items())


def test_operations_grow_with_the_batch_and_the_masked_words(small_objective, small_batch):
    flops = StepFlops(small_objective("pretrain"))
    whole, half = flops(small_batch), flops(small_batch.split(2)[0])
    assert whole / half == pytest.approx(2, rel=1e-3)  # similarities grow with its square
    small_batch.max_masked = 8
    assert flops(small_batch) > whole
    assert len(flops.counts) == 3


def test_a_shape_is_counted_once(small_objective, small_batch):
    flops = StepFlops(small_objective("qa"))
    first = flops(small_batch)
    flops.objective = None
    assert flops(small_batch.map(torch.clone)) == first


@pytest.mark.parametrize("off", ["vtc", "vtm", "mlm", "pem"])
def test_a_loss_that_is_off_does_not_count(off, small_objective, small_batch):
    everything = StepFlops(small_objective("pretrain"))(small_batch)
    assert StepFlops(small_objective("pretrain", **{off: 0.0}))(small_batch) < everything


def test_the_frozen_prompter_has_a_forward_pass_only(small_objective, small_batch, monkeypatch):
    objective = small_objective("pretrain")
    whole = StepFlops(objective)(small_batch)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        args = objective.pixels(small_batch.frames), small_batch.boxes, objective.video_prompts, objective.black
        entities = objective.prompter.model.pseudo_labels(*args).shape[1]
    zeros = lambda self, frames, *_: frames.new_zeros(len(frames), entities)  # noqa: E731
    monkeypatch.setattr(Prompter, "pseudo_labels", zeros)
    assert whole - StepFlops(objective)(small_batch) == counter.get_total_flops() > 0


@pytest.mark.parametrize(("name", "known"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("abacus", 0)])
def test_the_peak_of_a_device_is_found_in_its_name(name, known):
    assert peak(name) == known


def test_the_peak_of_one_device_is_not_taken_for_anothers():
    """L4 is in the name of the L40S."""
    assert (peak("NVIDIA L40S"), peak("NVIDIA L4")) == (362e12, 121e12)
