"""Contrast over the whole batch of an accumulated step: as in one piece, with less memory."""

from contextlib import nullcontext
from pathlib import Path

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
from alpro.stages.training.contrast_cache import contrast_whole_batch, random_numbers
from alpro.stages.training.distributed import World
from alpro.stages.training.loop import TrainerState, _Trainer
from alpro.stages.training.masking import keep_patches
from alpro.stages.training.objective import Objective
from alpro.stages.training.optim import build_optimizer
from tests.stages.training.part_of_a_batch import objectives, whole_batch

CPU = torch.device("cpu")


class Steps:
    """A data set of which only the schedule is used."""

    def schedule_of(self, step: int) -> tuple[int, int]:
        return step, 10


def step(objective: Objective, batch: Batch, config) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics and gradients of one step of the training loop, without clipping."""
    alone = World(0, 1, torch.device("cpu"))
    optimizer = build_optimizer(objective, config)
    run = _Trainer(objective, objective, optimizer, Steps(), config, alone, None, None, TrainerState(), Path("nowhere"))
    run.step(batch)
    return run.mean.read(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


EXACT = ["prompter", "matching in pools of 2", "pretrain in pools of 2"]


def objective_of(name: str) -> Objective:
    objective = objectives()[name.removesuffix(" in pools of 2") if name.startswith("pretrain") else name].train()
    if name.startswith("pretrain"):
        objective.negative_pool_size = 2
    return objective


@pytest.fixture
def config(training):
    """config(accumulation_steps, contrast): nothing is clipped."""
    return lambda steps, contrast="batch": training(
        batch_size=8, accumulation_steps=steps, contrast=contrast, max_grad_norm=1e9, log_every=1
    )


@pytest.mark.parametrize(("accumulation_steps", "dropped"), [(2, 0), (4, 0), (2, 0.5)])
@pytest.mark.parametrize("name", EXACT)
def test_loss_metrics_and_gradients_are_those_of_the_batch_in_one_piece(name, accumulation_steps, dropped, config):
    """Masked words, kept samples and valid negatives differ in number between the micro-batches, and two captions of
    one video are in different ones."""
    batch, rng = whole_batch(), np.random.default_rng(0)
    if dropped:
        grid = objective_of(name).model.config.video.grid
        batch.kept = torch.from_numpy(np.stack([keep_patches(grid, dropped, rng) for _ in batch.ids]))
    expected_metrics, expected = step(objective_of(name), batch, config(1))
    metrics, gradients = step(objective_of(name), batch, config(accumulation_steps))
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 20
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", EXACT)
def test_within_micro_batches_the_loss_is_another(name, config):
    """So that the test above is of batches in which the switch matters."""
    whole, _ = step(objective_of(name), whole_batch(), config(2))
    parts, _ = step(objective_of(name), whole_batch(), config(2, "micro_batch"))
    assert whole["loss_vtc"] > parts["loss_vtc"] + 0.1


@pytest.mark.parametrize("name", ["prompter", "retrieval", "pretrain"])
def test_with_dropout_the_gradient_is_that_of_one_graph_with_the_same_random_numbers(
    name, small_objective, small_batch
):
    """The reference keeps the graphs of all micro-batches. VTC only: the other losses are back-propagated as always."""
    objective = small_objective(name, dropout=0.3, pool=2, **dict.fromkeys(("vtm", "mlm", "pem"), 0.0)).train()
    parts = small_batch.split(2)
    seen: list[Tensor] = []
    objective.model.video_proj.register_forward_hook(lambda _, args, result: seen.append(result.detach()))
    contrasted = contrast_whole_batch(objective, parts, nullcontext, (1, 2))
    encoders = (objective.model.video_encoder, objective.model.text_encoder)
    for part, context in contrasted:
        with context():
            loss = objective.contrast(
                part, objective.model.encode_video(objective.pixels(part.frames)), objective.encode_texts(part)[0]
            )[0]
        (loss / 2).backward()
    first, second = seen[:2], seen[2:]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
    actual = [p.grad.clone() for encoder in encoders for p in encoder.parameters() if p.grad is not None]
    objective.zero_grad(set_to_none=True)
    features = []
    for part, context in contrasted:
        with context():
            objective.whole = None  # the random numbers only
            features.append(objective.features(part))
    video, text = (torch.cat(rows) for rows in zip(*features, strict=True))
    expected_loss = objective.contrast_features(small_batch.video, video, text)[0]
    expected_loss.backward()
    torch.testing.assert_close(loss.detach(), expected_loss.detach())
    expected = [p.grad for encoder in encoders for p in encoder.parameters() if p.grad is not None]
    assert len(actual) == len(expected) > 20
    for gradient, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    assert objective.whole is None


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_accumulated_questions_are_as_in_one_piece(accumulation_steps, config):
    """The micro-batches have 3 and 2 known answers: each counts as much as in one piece."""
    expected_metrics, expected = step(objective_of("qa"), whole_batch(), config(1, "micro_batch"))
    metrics, gradients = step(objective_of("qa"), whole_batch(), config(accumulation_steps, "micro_batch"))
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
    assert len(gradients) > 20
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["prompter", "pretrain in pools of 2"])
def test_every_step_has_its_own_dropout(name, config, monkeypatch):
    """The key of the random numbers has the seed, the step and the rank."""
    keys = []

    def record(objective, parts, autocast, key):
        keys.append(key)
        return contrast_whole_batch(objective, parts, autocast, key)

    monkeypatch.setattr("alpro.stages.training.loop.contrast_whole_batch", record)
    objective, values = objective_of(name), config(2).model_copy(update={"seed": 7})
    optimizer, state = build_optimizer(objective, values), TrainerState()
    run = _Trainer(
        objective, objective, optimizer, Steps(), values, World(3, 4, CPU), None, None, state, Path("nowhere")
    )
    for number in (0, 1):
        run.state.step = number
        run.contrasted(whole_batch().split(2))
    assert keys == [(7, 41, 0, 3), (7, 41, 1, 3)]


def test_random_numbers_are_those_of_the_seed_and_leave_the_generator_alone():
    state, cpu = torch.get_rng_state(), torch.device("cpu")
    with random_numbers(5, cpu):
        first = torch.rand(3)
    with random_numbers(6, cpu):
        other = torch.rand(3)
    with random_numbers(5, cpu):
        again = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("objective", ["prompter", "retrieval"])
def test_steps_and_ranks_differ_in_their_dropout(objective, small_objective, small_batch):
    model = small_objective(objective, dropout=0.3, pool=2).train()
    losses = {
        key: contrast_whole_batch(model, small_batch.split(2), nullcontext, key) for key in ((0, 0), (0, 1), (1, 0))
    }
    values = []
    for parts in losses.values():
        part, context = parts[0]
        with context(), torch.no_grad():
            values.append(float(model(part)[1]["loss_vtc"]))
    assert len(set(values)) == 3


def test_the_first_pass_keeps_no_graph(small_objective, small_batch):
    objective = small_objective("retrieval", pool=2).train()
    kept: list[bool] = []
    for module in objective.modules():
        if isinstance(module, nn.Linear) and module is not objective.model.vtm_head:
            module.register_forward_hook(lambda _, args, result: kept.append(result.requires_grad))
    contrast_whole_batch(objective, small_batch.split(2), nullcontext, (0,))
    assert len(kept) > 10
    assert not any(kept)


PHASES = [{"corpora": ["clips"], "steps": 1}]


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        (MatchingConfig, {}, "contrast = batch with accumulation_steps needs negative_pool_size: .* such as 4"),
        (FinetuneQa, {}, "question answering has no contrastive loss"),
        (
            Pretrain,
            {"negative_pool_size": 4, "phases": [{"corpora": ["clips"], "steps": 1, "patch_dropping": 0.75}]},
            "patch_dropping above 0.5 with PEM",
        ),
        (
            Pretrain,
            {"negative_pool_size": 4, "weights": {"vtc": 0}},
            "needs the contrastive loss, but weights.vtc is 0",
        ),
    ],
)
def test_what_cannot_be_equal_is_refused(stage, values, message):
    with pytest.raises(ValidationError, match=message):
        stage(**{"phases": PHASES, "batch_size": 8, "accumulation_steps": 2, "contrast": "batch", **values})


@pytest.mark.parametrize(
    ("stage", "values"),
    [(TrainPrompter, {}), (MatchingConfig, {"negative_pool_size": 4}), (MatchingConfig, {"accumulation_steps": 1})],
)
def test_what_can_be_equal_is_accepted(stage, values):
    config = stage(**{"phases": PHASES, "batch_size": 8, "accumulation_steps": 2, "contrast": "batch", **values})
    assert config.contrasts_whole_batch == (config.accumulation_steps == 2)
