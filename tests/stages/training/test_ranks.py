"""What two processes that share a batch agree on: gradients, skipped steps, metrics; and what they
must not share."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from alpro.stages.training.distributed import World
from alpro.stages.training.metrics import read_metrics
from tests.stages.training.part_of_steps import RUNS, train

NOTED = {"kept", "starts"}
close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def both(two_ranks_trained):
    """both(run): what the two ranks have after a run."""
    files = two_ranks_trained
    return lambda run: [
        load_file(files / f"{run}.{rank}.safetensors") for rank in range(2)
    ]


def read_lines(out):
    """The metrics of a run, without those of time."""
    names = "loss loss_vtc loss_vtm in_batch_recall grad_norm skipped_steps"
    keys = {"step", *(f"train/{name}" for name in names.split())}
    lines = read_metrics(out / "metrics.jsonl")
    return [{key: line[key] for key in line.keys() & keys} for line in lines]


@pytest.fixture(scope="module")
def lines(two_ranks_trained):
    """lines(run): the metrics of the two ranks."""
    return lambda run: read_lines(two_ranks_trained / run)


def alone(tmp_path, run):
    """The same run in one process."""
    return train(tmp_path / run, World(0, 1, torch.device("cpu")), **RUNS[run])


def weights(actual):
    return {name: value for name, value in actual.items() if name not in NOTED}


def close_lines(actual, expected, rel):
    assert actual == [pytest.approx(line, rel=rel) for line in expected]


@pytest.mark.parametrize("run", RUNS)
def test_the_ranks_have_the_same_weights(run, both):
    first, second = map(weights, both(run))

    close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("run", ["plain", "accumulated", "muon"])
def test_two_ranks_have_the_weights_and_metrics_of_one(run, both, lines, tmp_path):
    """Also where a batch is accumulated in parts: each part is contrasted over both ranks."""
    one = weights(alone(tmp_path, run))

    close(weights(both(run)[0]), one)
    close_lines(lines(run), read_lines(tmp_path / run), 1e-3)


def test_contrast_over_the_batch_is_that_of_one_piece_on_any_number_of_ranks(
    both, lines, tmp_path
):
    """Pools of 4 span the two ranks that share a micro-batch of 4."""
    one = weights(alone(tmp_path, "in one piece"))

    for run in ("in one piece", "contrast over the batch"):
        close(weights(both(run)[0]), one)
    close_lines(lines("contrast over the batch"), lines("in one piece"), 1e-4)


@pytest.mark.parametrize(
    "run", ["a loss of one rank is NaN", "a gradient of one rank is infinite"]
)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_both(
    run, both, lines, tmp_path
):
    """What is left is the weights after the first step; the means are of that step alone."""
    once = weights(alone(tmp_path, run))

    for actual in both(run):
        close(weights(actual), once)
    first, second = lines(run)
    assert first["train/skipped_steps"] == 0
    assert second["train/skipped_steps"] == 1
    assert "train/loss" in first
    assert "train/loss" not in second


def test_dropout_differs_between_ranks(both):
    first, second = (actual["kept"] for actual in both("dropout"))
    assert 0.3 < first.mean() < 0.7
    assert not torch.equal(first, second)


def test_metrics_after_a_resume_are_means_over_all_steps_and_ranks(lines, both):
    """Stopped after two of four steps, with dropout: the one line that is logged, and the weights,
    are those of the run that was not stopped. So each rank continues its own random numbers."""
    assert [actual["starts"] for actual in both("resumed")] == [2, 2]
    close_lines(lines("resumed"), lines("dropout"), 1e-6)
    for whole, resumed in zip(both("dropout"), both("resumed"), strict=True):
        close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_a_training_that_two_ranks_began_continues_on_one(
    two_ranks_trained, lines, tmp_path
):
    """Each step has the same weight in the one line that is logged."""
    checkpoints = two_ranks_trained / "stopped" / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "plain" / "checkpoints")
    alone(tmp_path, "plain")
    close_lines(read_lines(tmp_path / "plain"), lines("plain"), 1e-4)
