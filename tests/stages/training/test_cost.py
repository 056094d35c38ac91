"""What validation by matching costs beside its training."""

import torch

from alpro.models.alpro import Alpro, ModelConfig
from alpro.stages.training.cost import MatchingCost


def test_the_paper_s_model_costs_what_torch_counts():
    """torch counts 15.5 GFLOP a pair of 16 tokens and 197 patches, and 1,355 for a step on 8
    frames."""
    with torch.device("meta"):
        model = Alpro(ModelConfig(), entities=10)
        model.set_frames(8)
    cost = MatchingCost.of(model, 16)
    assert abs(cost.pair / 15.5e9 - 1) < 0.2
    assert abs(cost.example / 1355e9 - 1) < 0.2


def test_only_an_expensive_evaluation_has_a_line():
    cost = MatchingCost(example=1e12, pair=1e10)
    assert cost.evaluation_warning(900, 900) == ""
    line = cost.evaluation_warning(2000, 2000)
    assert "40 PFLOP" in line
    assert "evaluate.top_k" in line


def test_only_an_expensive_validation_has_a_line():
    cost = MatchingCost(example=1e12, pair=1e10)
    assert cost.warning(80_000, 500 * 128, 5) == ""
    line = cost.warning(80_000, 2000 * 2000, 5)
    assert "200 PFLOP" in line
    assert "2.5 times" in line
    assert "top_k" in line
