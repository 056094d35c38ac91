"""Gradient accumulation: a step in micro-batches is the step in one piece."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from alpro.stages.finetune_qa import Config as FinetuneQa
from alpro.stages.pretrain import Config as Pretrain
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training.batch import Batch, keep_patches
from alpro.stages.training.config import MatchingConfig
from alpro.stages.training.objective import Objective
from tests.stages.training.conftest import run_of
from tests.stages.training.part_of_a_batch import WEIGHTS, objective_of, whole_batch

Step = tuple[dict[str, float], dict[str, Tensor]]


@pytest.fixture
def step(training, tmp_path):
    """step(objective, batch, accumulation_steps, contrast): the metrics and gradients of a step without clipping."""

    def take(objective: Objective, batch: Batch, parts: int = 1, contrast: str = "batch") -> Step:
        config = training(accumulation_steps=parts, contrast=contrast, max_grad_norm=1e9, log_every=1)
        run = run_of(objective, config, tmp_path)
        run.update(batch)
        return run.mean.read(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}

    return take


@pytest.mark.parametrize(("parts", "dropped"), [(2, 0), (4, 0), (2, 0.5)])
@pytest.mark.parametrize(
    ("name", "off", "contrast"),
    [
        ("prompter", "", "batch"),
        ("matching in pools of", "", "batch"),
        ("pretrain", "", "batch"),
        ("pretrain", "vtc", "micro_batch"),
        ("qa", "", "micro_batch"),
    ],
)
def test_loss_metrics_and_gradients_are_those_of_the_batch_in_one_piece(name, off, contrast, parts, dropped, step):
    """Masked words, kept samples, valid negatives and known answers differ in number between the micro-batches, and two
    captions of one video are in different ones."""
    weights, batch = WEIGHTS | ({off: 0.0} if off else {}), whole_batch()
    if dropped:
        weights["pem"] = 0.0  # all patches of its crops are needed
        rng = np.random.default_rng(0)
        batch.kept = torch.from_numpy(np.stack([keep_patches(4, dropped, rng) for _ in batch.ids]))
    pool = 8 // parts
    name += f" {pool}" if "pools" in name else ""
    expected_metrics, expected = step(objective_of(name, weights=weights, pool=pool), replace(batch))
    metrics, gradients = step(objective_of(name, weights=weights, pool=pool), replace(batch), parts, contrast)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 20
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-5, msg=key)


DROPPING = {"corpora": ["clips"], "steps": 1, "patch_dropping": 0.25}


@pytest.mark.parametrize(
    ("stage", "values", "key"),
    [
        (MatchingConfig, {}, "negative_pool_size"),
        (FinetuneQa, {}, "contrast = batch"),
        (Pretrain, {"negative_pool_size": 4, "phases": [DROPPING]}, "patch_dropping"),
        (Pretrain, {"negative_pool_size": 4, "weights": {"vtc": 0}}, "weights.vtc"),
        (TrainPrompter, {}, ""),
        (MatchingConfig, {"negative_pool_size": 4}, ""),
        (MatchingConfig, {"accumulation_steps": 1}, ""),
    ],
)
def test_contrast_over_the_batch_is_refused_where_it_cannot_be(stage, values, key):
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "accumulation_steps": 2, "contrast": "batch", **values}
    if key:
        with pytest.raises(ValidationError, match=key):
            stage(batch_size=8, **values)
    else:
        config = stage(batch_size=8, **values)
        assert config.contrasts_whole_batch == (config.accumulation_steps == 2)
