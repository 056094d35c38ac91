"""Weights between those before and after a fine-tuning, chosen on validation."""

import pytest
from torch import nn

from alpro.stages.training.checkpoint import trainable
from alpro.stages.training.interpolation import interpolate_

METRIC = "validation/score"


@pytest.mark.parametrize(("best_at", "share"), [(0.0, 0.0), (3.1, 0.75), (2.0, 0.5), (9.0, 1.0)])
def test_the_best_share_of_a_fine_tuning_is_kept(best_at, share):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 0.0)
    model.bias.requires_grad_(False).fill_(7.0)
    before = {name: weight.clone() for name, weight in trainable(model).items()}
    nn.init.constant_(model.weight, 4.0)

    metrics = interpolate_(
        model, before, lambda: {METRIC: -abs(float(model.weight.detach()) - best_at)}, METRIC
    )

    assert float(model.weight.detach()) == 4.0 * share
    assert float(model.bias.detach()) == 7.0
    assert metrics["interpolation_share"] == share
    rows = [metrics[f"{METRIC}/interpolated/{one}"] for one in ("0", "0.25", "0.5", "0.75", "1")]
    assert rows == [-abs(weight - best_at) for weight in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert metrics[METRIC] == max(rows)


def test_of_equal_shares_the_largest_is_kept():
    model = nn.Linear(1, 1)
    before = {name: weight.clone() for name, weight in trainable(model).items()}
    assert interpolate_(model, before, lambda: {METRIC: 1.0}, METRIC)["interpolation_share"] == 1
