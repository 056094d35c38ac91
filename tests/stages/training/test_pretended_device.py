"""A step of each objective on a device that is not the CPU: the meta device, which has shapes and
no numbers.

Reading a number back raises there, as does an operation whose shape depends on numbers: these are
the operations that wait for a GPU. The modes below make an operation on tensors of two devices
raise, as on a GPU, and cast as autocast does there. What `is_cuda` decides is decided as on a GPU.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from alpro.models import alpro, attention, precision
from alpro.models.attention import TransformerLayer
from alpro.stages.training import loop
from alpro.stages.training.distributed import World
from alpro.stages.training.objective import PrompterObjective
from tests.stages.training.conftest import run_of
from tests.stages.training.part_of_a_batch import NORM, objective_of, whole_batch
from tests.stages.training.test_compiled import towers

META = torch.device("meta")
CPU = torch.device("cpu")
COPIES = {"_to_copy", "copy_"}
# What the models call, in the lists of autocast on CUDA.
IN_HALF = {
    F.linear,
    F.conv2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
}
IN_FULL = {
    F.layer_norm,
    F.softmax,
    F.log_softmax,
    F.cross_entropy,
    F.normalize,
    Tensor.softmax,
    Tensor.log_softmax,
    Tensor.sum,
}


class OneDevice(TorchDispatchMode):
    """Fails at the first operation that mixes devices. On a GPU, a tensor without dimensions may be
    on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ not in COPIES:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            devices = {x.device.type for x in tensors if x.dim() or x.device == META}
            assert len(devices) < 2, f"{function} mixes devices"
        return function(*args, **(kwargs or {}))


class Autocast(TorchFunctionMode):
    """Where autocast is on for the CPU, casts as it does on CUDA: there is none for meta tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtype = None
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.bfloat16 if function in IN_HALF else None
            dtype = torch.float32 if function in IN_FULL else dtype
        if dtype is None:
            return function(*args, **kwargs)

        def cast(x):
            is_float = isinstance(x, Tensor) and x.is_floating_point()
            return x.to(dtype) if is_float and x.dtype != torch.float64 else x

        args, kwargs = tree_map(cast, (args, kwargs))
        return function(*args, **kwargs)


@pytest.fixture
def packed(monkeypatch):
    """What `is_cuda` and the precision decide is decided as on a GPU. The numbers of short
    sequences that share a tile."""
    counts = []
    pack = attention.packed_attention
    is_enabled = torch.is_autocast_enabled

    def counted(q, k, v, mask, dropout):
        counts.append(len(mask) // q.shape[2])
        return pack(q, k, v, mask, dropout)

    monkeypatch.setattr(attention, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(attention, "packed_attention", counted)
    monkeypatch.setattr(precision, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(alpro, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: is_enabled("cpu"))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(loop, "training_precision", lambda *_: torch.bfloat16)
    monkeypatch.setattr(
        loop, "autocast", lambda dtype, _: precision.autocast(dtype, CPU)
    )
    return counts


@pytest.fixture(autouse=True)
def fused_adamw(monkeypatch):
    """torch refuses the fused AdamW on the meta device."""
    adam = importlib.import_module("torch.optim.adam")  # torch.optim deletes the name
    name = "_device_dtype_check_for_fused"
    monkeypatch.setattr(adam, name, lambda *_, **__: None)


def prompter_of_a_clip():
    return PrompterObjective(towers(), *NORM, crop_share=0.5)


def objective_called(name):
    return prompter_of_a_clip() if name == "CLIP" else objective_of(name, dropout=0.1)


def batch_for(name):
    """The batch of the small objectives, with frames of the size that a CLIP of the tests takes."""
    batch = whole_batch()
    if name == "CLIP":
        batch.frames = torch.zeros(len(batch.ids), 4, 3, 32, 32, dtype=torch.uint8)
    return batch


FAST = [
    (name, "micro_batch", 1)
    for name in ("prompter", "CLIP", "matching", "pretrain", "qa")
]
LONG = [
    (name, "batch", 2)
    for name in ("prompter", "CLIP", "matching in pools of 2", "pretrain")
]
LONG += [("qa", "micro_batch", 2)]


@pytest.mark.parametrize(
    ("name", "contrast", "parts"),
    [*FAST, *(pytest.param(*c, marks=pytest.mark.long) for c in LONG)],
)
def test_a_step_stays_on_its_device(name, contrast, parts, training, tmp_path, packed):
    objective = objective_called(name).to(META)
    config = training(accumulation_steps=parts, contrast=contrast)
    run = run_of(objective, config, tmp_path, World(0, 1, META))
    batch = batch_for(name).to(META)
    streams = set()
    for layer in objective.modules():
        if isinstance(layer, TransformerLayer):
            layer.register_forward_hook(
                lambda _layer, _inputs, output: streams.add(output.dtype)
            )

    with OneDevice(), Autocast():
        for number in range(parts):  # the second step has the state of the optimizer
            run.state.step = number
            run.update(batch)

    assert streams == {torch.bfloat16}
    assert packed
    assert min(packed) > 1
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    assert all(weight.device == META for weight in trained)
    assert all(weight.grad is not None for weight in trained)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["prompter", "matching", "pretrain", "qa"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires a GPU")
def test_a_step_on_a_gpu_does_not_synchronize(name, training, tmp_path, monkeypatch):
    monkeypatch.undo()  # this is the real device
    device = torch.device("cuda")
    objective = objective_of(name, dropout=0.1).to(device)
    run = run_of(
        objective, training(accumulation_steps=2), tmp_path, World(0, 1, device)
    )
    batch = whole_batch().to(device)
    run.update(batch)  # libraries set themselves up

    torch.cuda.set_sync_debug_mode("error")  # a synchronization raises
    try:
        run.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    run.count_skipped()
    assert run.state.skipped == 0
