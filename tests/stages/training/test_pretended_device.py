"""A step of each objective on a device that is not the CPU: the meta device, which has shapes and
no numbers.

Reading a number back raises there, as does an operation whose shape depends on numbers: these are
the operations that wait for a GPU. The mode below makes an operation on tensors of two devices
raise, as on a GPU.
"""

import importlib

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alpro.stages.training.distributed import World
from alpro.stages.training.objective import Objective, PrompterObjective
from tests.stages.training.conftest import run_of
from tests.stages.training.part_of_a_batch import NORM, objective_of, whole_batch
from tests.stages.training.test_compiled import towers

META = torch.device("meta")
COPIES = {"_to_copy", "copy_"}


class OneDevice(TorchDispatchMode):
    """Fails at the first operation that mixes devices. On a GPU, a tensor without dimensions may be
    on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ not in COPIES:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            devices = {x.device.type for x in tensors if x.dim() or x.device == META}
            assert len(devices) < 2, f"{function} mixes devices"
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def fused_adamw(monkeypatch):
    """torch refuses the fused AdamW on the meta device."""
    adam = importlib.import_module("torch.optim.adam")  # torch.optim deletes the name
    name = "_device_dtype_check_for_fused"
    monkeypatch.setattr(adam, name, lambda *_, **__: None)


def prompter_of_a_clip() -> PrompterObjective:
    return PrompterObjective(towers(), *NORM, 0.5)


def objective_called(name: str) -> Objective:
    return prompter_of_a_clip() if name == "CLIP" else objective_of(name, dropout=0.1)


def batch_for(name: str):
    """The batch of the small objectives, with frames of the size that a CLIP of the tests takes."""
    batch = whole_batch()
    if name == "CLIP":
        batch.frames = torch.zeros(len(batch.ids), 4, 3, 32, 32, dtype=torch.uint8)
    return batch


FAST = [(name, "micro_batch", 1) for name in ("prompter", "CLIP", "matching", "pretrain", "qa")]
LONG = [(name, "batch", 2) for name in ("prompter", "CLIP", "matching in pools of 2", "pretrain")]
LONG += [("qa", "micro_batch", 2)]


@pytest.mark.parametrize(
    ("name", "contrast", "parts"),
    [*FAST, *(pytest.param(*c, marks=pytest.mark.long) for c in LONG)],
)
def test_a_step_stays_on_its_device(name, contrast, parts, training, tmp_path):
    objective = objective_called(name).to(META)
    config = training(accumulation_steps=parts, contrast=contrast)
    run = run_of(objective, config, tmp_path, World(0, 1, META))
    batch = batch_for(name).to(META)
    with OneDevice():
        for number in range(parts):  # the second step has the state of the optimizer
            run.state.step = number
            run.update(batch)
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    assert all(weight.device == META for weight in trained)
    assert all(weight.grad is not None for weight in trained)


def test_the_pretended_device_finds_what_a_gpu_would():
    weight = torch.ones(3, 3, device=META)
    with pytest.raises(AssertionError, match="mixes devices"), OneDevice():
        weight @ torch.ones(3, 3)
    for read in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.ones((), device=META))
