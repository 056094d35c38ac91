"""The planned memory of a training step: against the allocations of a step, as PyTorch's profiler records them."""

from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from alpro.models.alpro import ModelConfig
from alpro.models.text import Layers
from alpro.models.timesformer import TimeSformer
from alpro.stages.training.memory import StepMemories, StepMemory, batch_without_data
from alpro.stages.training.optim import build_optimizer
from alpro.stages.training.pretrain_objective import LossWeights
from alpro.stages.training.untrained import TASKS, untrained_objective

CPU = torch.device("cpu")
# Large enough that what the planner does not see, such as lookup tables of kernels, is below the tolerance.
SHAPE = ModelConfig.model_validate(
    {
        "video": {"image_size": 32, "patch_size": 8, "frames": 2, "width": 64, "depth": 3, "heads": 2},
        "text": {"vocab_size": 300, "width": 64, "depth": 4, "fusion_layer": 2, "heads": 2, "max_length": 32},
        "embed_dim": 32,
        "init": "scratch",
    }
)
LABELS = {
    "prompter": {},
    "pretrain": {"entities": 12, "verbs": 5, "weights": LossWeights(pvm=1), "teacher": SHAPE},
    "retrieval": {"entities": 12},
    "qa": {"answers": 20},
}
EXAMPLES = {"pretrain": {"mlm_probability": 0.15}, "qa": {"answers": True}}
TOLERANCE = 0.02


def objective_of(task: str):
    torch.manual_seed(0)
    return untrained_objective(task, SHAPE, **LABELS[task])


def batch_of(task: str, size: int):
    return batch_without_data(size, SHAPE, 24, **EXAMPLES.get(task, {}))


def measured_peak(task: str, size: int, checkpointing: bool, parts: int) -> int:
    """Bytes of gradients and activations at the peak of a step, and of the batch."""
    objective, batch = objective_of(task).train(), batch_of(task, size)
    for name in objective.unused_parameters:
        getattr(objective.model, name).requires_grad_(False)
    for part in objective.modules():
        if isinstance(part, TimeSformer | Layers):
            part.checkpoint_activations = checkpointing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for part in batch.split(parts):
            loss, _ = objective(part)
            loss.backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    inputs = []
    batch.map(lambda tensor: inputs.append(tensor.untyped_storage().nbytes()) or tensor)
    return peak + sum(inputs)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_the_peak_is_that_of_a_step(task, checkpointing, parts):
    """The scale of the batch is exact too: half of it is predicted from the whole."""
    memories = StepMemories(partial(objective_of, task), CPU)
    planned = memories(partial(batch_of, task, 16), checkpointing, parts)
    for size in (16, 8):
        scaled = max(gradients + activations * size / 16 for gradients, activations in planned.curve)
        assert scaled == pytest.approx(measured_peak(task, size, checkpointing, parts), rel=TOLERANCE * 16 / size)


@pytest.mark.parametrize("task", TASKS)
def test_weights_gradients_and_optimizer_are_those_of_the_objective(task, training):
    planned = StepMemories(partial(objective_of, task), CPU)(partial(batch_of, task, 2))
    objective = objective_of(task)
    for name in objective.unused_parameters:
        getattr(objective.model, name).requires_grad_(False)
    tensors = {p.data_ptr(): p.nbytes for p in (*objective.parameters(), *objective.buffers())}
    assert planned.weights == sum(tensors.values())
    assert planned.gradients == sum(p.nbytes for p in objective.parameters() if p.requires_grad)
    optimizer = build_optimizer(objective, training(("clips",), 1))
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    states = [v for state in optimizer.state.values() for name, v in state.items() if name != "step"]
    assert planned.optimizer == sum(state.nbytes for state in states)


def test_checkpointing_needs_less():
    memories = StepMemories(partial(objective_of, "pretrain"), CPU)
    plain, less = (memories(partial(batch_of, "pretrain", 16), checkpointing) for checkpointing in (False, True))
    assert less.activations < 0.5 * plain.activations
    assert (less.weights, less.gradients, less.optimizer) == (plain.weights, plain.gradients, plain.optimizer)
    assert memories(partial(batch_of, "pretrain", 16)) == plain  # a step leaves nothing behind


def test_planning_samples_and_allocates_nothing():
    state = torch.get_rng_state()
    full = partial(untrained_objective, "pretrain", ModelConfig(), entities=1000, teacher=ModelConfig())
    batch = partial(batch_without_data, 256, ModelConfig(), 30, mlm_probability=0.15)
    planned = StepMemories(full, CPU)(batch)
    assert planned.peak > 200 * 2**30  # more than this machine has
    assert torch.equal(torch.get_rng_state(), state)


def test_the_peak_and_the_largest_batch_by_hand():
    """Activations are freed while gradients are created: the peak is with all gradients and 1 byte more."""
    memory = StepMemory(weights=10, gradients=10, optimizer=20, curve=((0, 9), (4, 6), (10, 1)))
    assert (memory.activations, memory.peak) == (9, 41)
    assert memory.scale(41) == pytest.approx(1)
    assert memory.scale(30 + 22) == pytest.approx(min(22 / 9, 18 / 6, 12 / 1))
    assert memory.scale(29) < 0
    more = memory.with_more(weights=5, gradients=10)
    assert (more.weights, more.gradients, more.peak) == (15, 20, 56)
