"""Where a model runs, and what one process is among none."""

import pytest
import torch

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources
from alpro.stages.training.distributed import all_reduce_sum, gather, init_distributed, pick_device


def test_the_cpu_is_used_if_configured_or_without_a_gpu(monkeypatch):
    assert pick_device(Resources(device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(Resources()) == torch.device("cpu")


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        pick_device(Resources(device="cuda"))


def test_collectives_of_one_process_return_their_input():
    rows = torch.ones(2, 3, requires_grad=True)
    with init_distributed(Resources(device="cpu")) as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert gather(rows) is rows
        assert all_reduce_sum(rows.sum()) == 6
        assert not all_reduce_sum(rows.sum()).requires_grad
