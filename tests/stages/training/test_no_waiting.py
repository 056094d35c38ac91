"""A training step reads nothing back from the device.

A GPU works behind the program; the program stops where it reads a number back, or needs one to know
a shape, and until it goes on the GPU has nothing to do. On a CPU such places cost nothing and show
in nothing but the operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from alpro.stages.training.distributed import World
from tests.stages.training.conftest import run_of
from tests.stages.training.part_of_a_batch import objective_of, whole_batch

# Operations that on a GPU wait for it: they give the program a number, or their shape depends on
# the numbers. `_local_scalar_dense` is item(), tolist(), float(), bool() and `if tensor`;
# `multinomial` looks whether its weights are valid.
WAIT = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "allclose",
    "equal",
    "multinomial",
    "nonzero",
    "nonzero_numpy",
}
WAIT |= {
    "argwhere",
    "masked_select",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "bincount",
}
BY_INDEX = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
}  # so do these where the index is boolean
BY_FORM = {
    "where.default",
    "repeat_interleave.Tensor",
    "repeat_interleave.self_Tensor",
}  # and these forms of others
AWAY = {
    "tolist",
    "numpy",
    "cpu",
    "__array__",
}  # these methods leave the device; on a CPU they are no operations


class Operations(TorchDispatchMode):
    """Fails at the first operation that would wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in BY_INDEX and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        form = (
            f"{name}.{function._overloadname}" in BY_FORM
            and (kwargs or {}).get("output_size") is None
        )
        waits = name in WAIT or masks or form
        assert not waits, f"{function} waits for the device"
        return function(*args, **kwargs or {})


class Methods(TorchFunctionMode):
    """Fails at the first method that would fetch a tensor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert getattr(function, "__name__", "") not in AWAY, f"{function} waits for the device"
        return function(*args, **kwargs or {})


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fails where something would wait for the device."""
    with Operations(), Methods():
        yield


OBJECTIVES = [(name, "") for name in ("prompter", "matching", "matching in pools of 2", "qa")]
OBJECTIVES += [("pretrain", off) for off in ("", "vtc", "mlm", "pem")]
CASES = [(*objective, "micro_batch") for objective in OBJECTIVES]
CASES += [(name, off, "batch") for name, off in OBJECTIVES if name != "qa" and off != "vtc"]


@pytest.mark.parametrize(("name", "off", "contrast"), CASES)
def test_a_step_reads_nothing_back(name, off, contrast, training, tmp_path):
    objective = objective_of(name, dropout=0.1, weights={off: 0.0} if off else {})
    run = run_of(objective, training(accumulation_steps=2, contrast=contrast), tmp_path)
    before = {key: p.detach().clone() for key, p in objective.named_parameters()}
    for number in range(2):  # the first makes the optimiser's state
        run.state.step = number
        with no_waiting():
            run.update(whole_batch())
    assert run.skipped.read(5) == 0
    assert any(not torch.equal(p, before[key]) for key, p in objective.named_parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["prompter", "matching", "pretrain", "qa"])
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="requires a GPU: PyTorch warns about synchronizations"
)
def test_a_step_on_a_gpu_does_not_synchronize(name, training, tmp_path):
    device = torch.device("cuda")
    objective = objective_of(name, dropout=0.1).to(device)
    run = run_of(objective, training(accumulation_steps=2), tmp_path, World(0, 1, device))
    batch = whole_batch().to(device)
    run.update(batch)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")  # a wait raises
    try:
        run.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.skipped.read(limit=5) == 0
