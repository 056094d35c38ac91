"""Where a model runs."""

import pytest
import torch

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources
from alpro.stages.training.distributed import pick_device


def test_the_cpu_is_used_if_configured_or_without_a_gpu(monkeypatch):
    assert pick_device(Resources(device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(Resources()) == torch.device("cpu")


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        pick_device(Resources(device="cuda"))
