"""What two processes that share a batch agree on: gradients, skipped steps, metrics; and what they
must not share."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alpro.stages.training.distributed import World
from tests.stages.training.part_of_steps import RUNS, train

NOTED = {"kept", "apart", "starts"}


@pytest.fixture(scope="module")
def both(two_ranks_trained):
    """both(run): what the two ranks have after a run."""
    return lambda run: [
        load_file(two_ranks_trained / f"{run}.{rank}.safetensors") for rank in range(2)
    ]


@pytest.fixture(scope="module")
def lines(two_ranks_trained):
    """lines(run): the metrics of a run, without those of time."""

    def read(run):
        names = "loss loss_vtc loss_vtm in_batch_recall grad_norm skipped_steps"
        kept = ["step", *(f"train/{name}" for name in names.split())]
        actual = [
            json.loads(line)
            for line in (two_ranks_trained / run / "metrics.jsonl").read_text().splitlines()
        ]
        return [{name: line[name] for name in kept if name in line} for line in actual]

    return read


def alone(tmp_path: Path, run: str) -> dict[str, Tensor]:
    """The same run in one process."""
    return train(tmp_path / run, World(0, 1, torch.device("cpu")), **RUNS[run])


def weights(actual: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in actual.items() if name not in NOTED}


@pytest.mark.parametrize("run", RUNS)
def test_the_ranks_have_the_same_weights(run, both):
    first, second = map(weights, both(run))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("run", ["plain", "accumulated", "muon"])
def test_two_ranks_have_the_weights_and_metrics_of_one(run, both, lines, tmp_path):
    """Also where a batch is accumulated in parts: each part is contrasted over both ranks."""
    one = weights(alone(tmp_path, run))
    two = weights(both(run)[0])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-4, msg=name)
    single = [
        json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
    ]
    for line, other in zip(lines(run), single, strict=True):
        assert line == pytest.approx({name: other[name] for name in line}, rel=1e-3)


def test_contrast_over_the_batch_is_that_of_one_piece_on_any_number_of_ranks(both, lines, tmp_path):
    """Pools of 4 span the two ranks that share a micro-batch of 4."""
    one = weights(alone(tmp_path, "in one piece"))
    for actual in ("in one piece", "contrast over the batch"):
        for name, value in weights(both(actual)[0]).items():
            torch.testing.assert_close(value, one[name], atol=1e-4, rtol=1e-4, msg=name)
    for line, other in zip(lines("contrast over the batch"), lines("in one piece"), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    accumulated = weights(both("accumulated")[0])
    assert not all(
        torch.allclose(value, accumulated[name], atol=1e-3) for name, value in one.items()
    )


def test_gradients_are_averaged_once_a_step_with_its_last_part(both):
    for run, apart in (("plain", 0), ("accumulated", 2), ("contrast over the batch", 2)):
        assert [actual["apart"] for actual in both(run)] == [apart, apart]


@pytest.mark.parametrize("run", ["a loss of one rank is NaN", "a gradient of one rank is infinite"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_both(run, both, lines, tmp_path):
    """What is left is the weights after the first step; the means are of that step alone."""
    once = weights(
        train(
            tmp_path / "once", World(0, 1, torch.device("cpu")), steps=2, spoil=RUNS[run]["spoil"]
        )
    )
    for actual in both(run):
        for name, value in weights(actual).items():
            torch.testing.assert_close(value, once[name], atol=1e-4, rtol=1e-4, msg=name)
            assert torch.isfinite(value).all()
    first, second = lines(run)
    assert (first["train/skipped_steps"], second["train/skipped_steps"]) == (0, 1)
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
    assert lines("resumed") == [pytest.approx(line, rel=1e-6) for line in lines("dropout")]
    for whole, resumed in zip(both("dropout"), both("resumed"), strict=True):
        assert [
            name for name, value in weights(whole).items() if not torch.equal(value, resumed[name])
        ] == []
