"""Means of what steps measure, and what becomes of steps that are not finite."""

import json
import resource

import pytest
import torch

from alpro.errors import InputError
from alpro.stages.training import metrics
from alpro.stages.training.metrics import Mean, MetricsFile, Skipped, read_metrics

CPU = torch.device("cpu")
NAMES = ("loss_vtc", "loss_vtm", "loss", "grad_norm")
GOOD = [1.0, 2.0, 3.0, 4.0]


def add(mean: Mean, values: list[float], counted: bool = True) -> None:
    mean.add(("a", "b"), torch.tensor(values), torch.tensor(counted))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7.0])
def test_a_mean_leaves_out_steps_that_were_skipped(bad):
    mean = Mean()
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


def test_a_mean_of_no_step_has_no_value():
    mean = Mean()
    assert mean.read() == {}
    add(mean, [float("nan"), 1.0], counted=False)
    assert mean.read() == {}
    assert mean.read() == {}


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


def skipped(finite: list[bool], values: list[float], in_row: int = 0) -> Skipped:
    """Steps 10, 11, ..., of which some are finite; all have the same values."""
    actual = Skipped(in_row)
    for step, good in enumerate(finite, 10):
        ids = [f"clip{step}-{n}" for n in range(6)]
        actual.add(step, ids, NAMES, torch.tensor(values), torch.tensor(good))
    return actual


def test_skipped_steps_are_counted_since_the_last_reading():
    steps = skipped([True, False, False, True, False], GOOD)
    assert (steps.read(5), steps.in_row) == (3, 1)
    assert (steps.read(5), steps.in_row) == (0, 1)


def test_a_finite_step_ends_the_row():
    assert skipped([False] * 4 + [True] + [False] * 4, GOOD).read(5) == 8


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ([1.0, NAN, NAN, NAN], "loss_vtm not finite"),
        ([INF, NAN, NAN, NAN], "loss_vtc, loss_vtm not finite"),
        ([1.0, 2.0, INF, NAN], "gradient not finite"),
        ([1.0, 2.0, 3.0, INF], "gradient not finite"),
        (GOOD, "gradient not finite"),  # another rank's: this one knows no more
    ],
)
def test_the_error_names_the_non_finite_losses_the_step_and_the_samples(values, output):
    steps = skipped([True, *[False] * 5, True], values)
    with pytest.raises(InputError) as error:
        steps.read(5)
    message = str(error.value)
    assert message.startswith(f"{output} in 5 consecutive steps, the last being step 15 ")
    assert "(samples clip15-0, clip15-1, clip15-2, clip15-3, ...)" in message
    assert "\n" not in message


def test_the_rank_with_the_bad_loss_is_the_one_that_is_named(monkeypatch):
    others = [(["gradient"], ["clip1"]), (["loss_pem"], ["clip7", "clip8"])]
    monkeypatch.setattr("alpro.stages.training.metrics.gather_objects", lambda mine: others)
    with pytest.raises(InputError, match=r"^loss_pem not finite .* \(samples of rank 1 clip7, clip8, \.\.\.\)"):
        skipped([False] * 5, GOOD).read(5)
