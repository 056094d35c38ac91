"""After a power failure at any file operation, training ends with the same weights and metrics as without one."""

import pytest
import torch

from alpro.artifact import read_record
from alpro.models.folder import write_tensors
from alpro.pipeline.store.artifacts import Step, Store
from alpro.pipeline.store.checksums import verify
from alpro.stages.execution.interface import Outcome, StageConfig
from alpro.stages.training.checkpoint import trainable
from tests.power_cut import cut_everywhere


@pytest.mark.parametrize("every", [pytest.param(41, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)])
def test_training(tmp_path, new_run, monkeypatch, every, record_property):
    validate = {"validate": lambda model: {"score": float(sum(p.sum() for p in model.parameters()))}, "select": "score"}
    run = new_run("run", steps=3, run={**validate, "checkpoint_interval": 1e-9}, log_every=1)
    step = Step("train_prompter", "train_prompter", StageConfig())
    store = Store(tmp_path / "disk")
    run.out = store.folder(step)
    monkeypatch.setattr("alpro.pipeline.store.artifacts.versions", dict)

    def train(_: Step, out) -> Outcome:
        metrics = run.start()
        write_tensors(trainable(run.trained), out / "model.safetensors")
        return Outcome({}, metrics)

    def job() -> None:
        with store.lock(step):
            if store.find(step) is None:
                store.make(step, train, {})

    def result() -> tuple:
        record = read_record(run.out)
        assert list(verify([(run.out, record)])) == []
        return record["contents"]["model.safetensors"], record["metrics"], run.lines

    with torch.random.fork_rng():
        counts = cut_everywhere(tmp_path / "disk", job, result, monkeypatch, every)
    record_property("training", counts)
    assert counts["operations"] > 60
