"""After a power failure at any file operation, training ends with the same weights and metrics as without one."""

import pytest
import torch

from alpro.models.folder import write_tensors
from alpro.pipeline.store.artifacts import Step
from alpro.stages.execution.interface import Outcome, StageConfig
from alpro.stages.training.checkpoint import trainable


@pytest.mark.parametrize("every", [pytest.param(41, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)])
def test_training(new_run, power_cuts, every):
    validate = {"validate": lambda model: {"score": float(sum(p.sum() for p in model.parameters()))}, "select": "score"}
    run = new_run("run", steps=3, run={**validate, "checkpoint_interval": 1e-9}, log_every=1)
    step = Step("train_prompter", "train_prompter", StageConfig())

    def train(_: Step, out) -> Outcome:
        run.out = out
        metrics = run.start()
        write_tensors(trainable(run.trained), out / "model.safetensors")
        lines = {f"{line['step']}/{name}": value for line in run.lines for name, value in line.items()}
        return Outcome({}, metrics | lines)

    with torch.random.fork_rng():
        assert power_cuts(step, train, every, ["model.safetensors"]) > 60
