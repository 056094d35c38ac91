"""Gradient accumulation: a step in micro-batches is the step in one piece."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from alpro.stages.finetune_qa import Config as FinetuneQa
from alpro.stages.pretrain import Config as Pretrain
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import MatchingConfig
from alpro.stages.training.masking import keep_patches
from alpro.stages.training.objective import Objective
from tests.stages.training.conftest import run_of
from tests.stages.training.part_of_a_batch import objectives, whole_batch


def step(objective: Objective, batch: Batch, config, out) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics and gradients of one step of training, without clipping."""
    run = run_of(objective, config, out)
    run.update(batch)
    return run.mean.read(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def objective_of(name: str, **weights: float) -> Objective:
    objective = objectives()["pretrain" if name.startswith("pretrain") else name]
    if name.startswith("pretrain"):
        objective.negative_pool_size = 2
        objective.weights |= weights
        objective.losses = tuple(loss for loss, weight in objective.weights.items() if weight > 0)
    return objective


@pytest.fixture
def config(training):
    """config(accumulation_steps, contrast): nothing is clipped."""
    return lambda steps, contrast="batch": training(
        batch_size=8, accumulation_steps=steps, contrast=contrast, max_grad_norm=1e9, log_every=1
    )


EXACT = [("prompter", "batch"), ("matching in pools of 2", "batch"), ("pretrain", "batch")]
EXACT += [("qa", "micro_batch"), ("pretrain without vtc", "micro_batch")]


@pytest.mark.parametrize(("accumulation_steps", "dropped"), [(2, 0), (4, 0), (2, 0.5)])
@pytest.mark.parametrize(("name", "contrast"), EXACT)
def test_loss_metrics_and_gradients_are_those_of_the_batch_in_one_piece(
    name, contrast, accumulation_steps, dropped, config, tmp_path
):
    """Masked words, kept samples, valid negatives and known answers differ in number between the micro-batches, and two
    captions of one video are in different ones."""
    batch, rng = whole_batch(), np.random.default_rng(0)
    weights = {"vtc": 0.0} if name.endswith("without vtc") else {}
    if dropped:
        weights["pem"] = 0.0  # all patches of its crops are needed
        grid = objective_of(name).model.config.video.grid
        batch.kept = torch.from_numpy(np.stack([keep_patches(grid, dropped, rng) for _ in batch.ids]))
    weights = weights if name.startswith("pretrain") else {}
    expected_metrics, expected = step(objective_of(name, **weights), batch, config(1), tmp_path)
    metrics, gradients = step(objective_of(name, **weights), batch, config(accumulation_steps, contrast), tmp_path)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 20
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-5, msg=key)


def test_within_micro_batches_contrast_is_another(config, tmp_path):
    """So that the test above is of batches in which the switch matters."""
    whole, _ = step(objective_of("prompter"), whole_batch(), config(2), tmp_path)
    parts, _ = step(objective_of("prompter"), whole_batch(), config(2, "micro_batch"), tmp_path)
    assert whole["loss_vtc"] > parts["loss_vtc"] + 0.1


def test_the_features_of_a_step_keep_no_graph(small_objective, small_batch):
    objective = small_objective("retrieval", pool=2).train()
    kept: list[bool] = []
    for module in objective.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, result: kept.append(result.requires_grad))
    features = objective.step_features(small_batch.split(2))
    assert features.video.shape == features.text.shape == (2, 2, 8)
    assert len(kept) > 10
    assert not any(kept)


PHASES = [{"corpora": ["clips"], "steps": 1}]


@pytest.mark.parametrize(
    ("stage", "values", "key"),
    [
        (MatchingConfig, {}, "negative_pool_size"),
        (FinetuneQa, {}, "contrast = batch"),
        (
            Pretrain,
            {"negative_pool_size": 4, "phases": [{"corpora": ["clips"], "steps": 1, "patch_dropping": 0.25}]},
            "patch_dropping",
        ),
        (Pretrain, {"negative_pool_size": 4, "weights": {"vtc": 0}}, "weights.vtc"),
        (TrainPrompter, {}, ""),
        (MatchingConfig, {"negative_pool_size": 4}, ""),
        (MatchingConfig, {"accumulation_steps": 1}, ""),
    ],
)
def test_contrast_over_the_batch_is_refused_where_it_cannot_be(stage, values, key):
    values = {"phases": PHASES, "batch_size": 8, "accumulation_steps": 2, "contrast": "batch", **values}
    if key:
        with pytest.raises(ValidationError, match=key):
            stage(**values)
    else:
        config = stage(**values)
        assert config.contrasts_whole_batch == (config.accumulation_steps == 2)
