"""Means of what steps measure, steps that are not finite, and losses that stayed at chance."""

import json
import math
import resource

import pytest
import torch

from alpro.errors import InputError
from alpro.stages.training import metrics
from alpro.stages.training.metrics import Mean, MetricsFile, Skipped, chance_levels, losses_at_chance, read_metrics

CPU = torch.device("cpu")


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
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 10, limits[1]))
    try:
        file.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write(3, {"loss": 3.0})
    assert [line["step"] for line in read_metrics(file.path)] == [1, 3]


def test_a_mean_resumes_from_a_checkpoint_to_the_last_bit():
    """By way of JSON, as checkpoints keep it; 0.1 and 1/3 are no whole numbers of any base at hand."""
    whole, broken = Mean(), Mean()
    for mean in (whole, broken):
        add(mean, [0.1, 1 / 3])
        add(mean, [float("nan"), 1.0], counted=False)
    restored = Mean()
    restored.restore(json.loads(json.dumps(broken.state())), CPU)
    for mean in (whole, restored):
        add(mean, [0.7, 1e-9])
    assert restored.state() == whole.state()
    assert restored.read() == whole.read()


def skipped(finite: list[bool], in_row: int = 0) -> Skipped:
    """Steps 10, 11, ..., some of them finite; in the others, a loss is not on one rank, and the gradient on two."""
    actual = Skipped(in_row)
    for step, good in enumerate(finite, 10):
        wrong = torch.zeros(4) if good else torch.tensor([0.0, 1, 0, 2])
        actual.add(step, ("loss_vtc", "loss_vtm", "temperature", "grad_norm"), wrong)
    return actual


def test_skipped_steps_are_counted_since_the_last_reading_and_in_a_row():
    steps = skipped([True, False, False, True, False])
    assert (steps.read(5), steps.in_row) == (3, 1)
    assert (steps.read(5), steps.in_row) == (0, 1)
    assert skipped([False] * 4 + [True] + [False] * 4).read(5) == 8
    assert skipped([False] * 2, in_row=2).read(5) == 2
    with pytest.raises(InputError) as error:
        skipped([True, *[False] * 5, True]).read(5)
    message = str(error.value)
    assert message.startswith("loss_vtm, grad_norm not finite in 5 consecutive steps, the last being step 15;")


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
