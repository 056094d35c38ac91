"""Means of what steps measure, steps that are not finite, and losses that stayed at chance."""

import math

import pytest
import torch

from alpro.stages.training import metrics
from alpro.stages.training.metrics import Mean, MetricsFile, chance_levels, losses_at_chance, read_metrics
from tests.stages.training.conftest import full_disk


def add(mean: Mean, values: list[float], counted: bool = True) -> None:
    mean.add(("a", "b"), torch.tensor(values), torch.tensor(counted))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7.0])
def test_a_mean_leaves_out_steps_that_were_skipped(bad):
    mean = Mean()
    assert mean.read() == {}
    add(mean, [bad, bad], counted=False)
    assert mean.read() == {}  # of no step
    add(mean, [bad, bad], counted=False)
    add(mean, [1.0, 10.0])
    add(mean, [bad, 1.0], counted=False)
    add(mean, [2.0, 30.0])
    assert mean.read() == {"a": 1.5, "b": 20.0}


def test_a_line_that_a_full_disk_cut_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.log, "warning", lambda line: None)  # it would go to a file
    file = MetricsFile(tmp_path)
    file.write(1, {"loss": 1.0})
    with full_disk(file.path.stat().st_size + 10):
        file.write(2, {"loss": 2.0})
    file.write(3, {"loss": 3.0})
    assert [line["step"] for line in read_metrics(file.path)] == [1, 3]


def lines(**losses: list[float]) -> list[dict[str, float]]:
    """A line of metrics.jsonl for each value, and a line of a validation."""
    return [{f"train/loss_{name}": value} for name, values in losses.items() for value in values] + [{"validation": 1}]


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ({"vtc": [9.0, 2.08, 2.07, 2.09]}, ["loss_vtc ended at 2.080; a model that has learned nothing has 2.079"]),
        ({"vtc": [2.08, 2.08, 2.0, 1.9]}, []),
        ({"vtm": [0.64]}, ["loss_vtm ended at 0.640; a model that has learned nothing has 0.637"]),
        ({"vtm": [0.6], "qa": [1.6]}, ["loss_qa ended at 1.600; a model that has learned nothing has 1.609"]),
        ({"mlm": [9.0]}, []),
        ({}, []),
    ],
)
def test_losses_that_stayed_at_chance_are_named(training, losses, warned):
    """ln 8 pairs: 2.079; a third of the pairs match: 0.637; ln 5 answers: 1.609."""
    config = training(("a",), 1, batch_size=8)
    assert [line.partition(":")[0] for line in losses_at_chance(lines(**losses), config, answers=5)] == warned


def test_contrast_is_over_a_micro_batch_unless_it_is_over_the_batch(training):
    halves = training(("a",), 1, batch_size=8, accumulation_steps=2)
    assert chance_levels(halves, 1) == {"vtc": math.log(4), "vtm": pytest.approx(0.6365, abs=1e-4), "qa": 0}
    assert chance_levels(halves.model_copy(update={"contrast": "batch"}), 1)["vtc"] == math.log(8)
