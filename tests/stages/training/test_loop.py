"""The training loop: steps and their micro-batches, validation and selection, steps that are not
finite, metrics."""

import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from alpro.errors import InputError
from alpro.stages.finetune_qa import Config as FinetuneQa
from alpro.stages.pretrain import Config as Pretrain
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training import metrics
from alpro.stages.training.config import MatchingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.metrics import (
    MetricsFile,
    read_metrics,
)
from alpro.stages.training.objective import PrompterObjective
from tests.stages.training.conftest import full_disk, run_of
from tests.stages.training.part_of_a_batch import WEIGHTS, objective_of, whole_batch


def spoiled(*bad):
    """An objective whose loss is not finite in some steps."""

    class Spoiled(PrompterObjective):
        def forward(self, batch, *step):
            loss, metrics = super().forward(batch, *step)
            return (loss * float("nan") if batch.step in bad else loss), metrics

    return Spoiled


def test_steps_whose_loss_is_not_finite_are_skipped(new_run):
    only = new_run("only", spoiled(0), steps=1)
    only.start()
    torch.manual_seed(only.config.seed)
    untrained = dict(only.build().named_parameters())
    assert all(
        torch.equal(weight, untrained[name]) for name, weight in only.weights.items()
    )
    few = new_run("few", spoiled(1, 2, 3, 4, 6))
    few.start()
    assert all(weight.isfinite().all() for weight in few.weights.values())
    assert [line["train/skipped_steps"] for line in few.lines] == [1, 3, 4, 5]


@pytest.mark.parametrize("interrupted", [False, True])
def test_five_consecutive_non_finite_steps_are_an_error_that_names_the_step(
    new_run, interrupted
):
    run = new_run("run", spoiled(2, 3, 4, 5, 6))
    if interrupted:
        run.interrupt(4)
    with pytest.raises(
        InputError, match=r"not finite in 5 consecutive steps, .* step 6;"
    ):
        run.start()


def scored(scores, seen):
    """A validation that returns these scores in turn and records the weights."""

    def validate(objective):
        assert not objective.training
        assert not torch.is_grad_enabled()
        seen.append(
            {name: p.detach().clone() for name, p in objective.named_parameters()}
        )
        return {"validation/score": scores[len(seen) - 1]}

    return validate


def test_the_best_weights_on_validation_are_selected_with_their_metrics(new_run):
    seen = []
    run = {"validate": scored([1.0, 3.0, 2.0, 3.0], seen), "select": "validation/score"}
    chosen = new_run("run", run=run, validation={"times": 4})
    final = chosen.start()
    assert final == {"validation/score": 3.0, "selected_step": 4.0}
    torch.testing.assert_close(chosen.weights, seen[1], rtol=0, atol=0)
    lines = [line for line in chosen.lines if "validation/score" in line]
    assert [line["validation/score"] for line in lines] == [1.0, 3.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("times", "steps"),
    [
        (1, [10]),
        (3, [4, 7, 10]),
        (4, [3, 5, 8, 10]),
    ],
)
def test_validations_are_equally_spaced_and_the_last_is_at_the_end(
    training, tmp_path, times, steps
):
    run = run_of(
        objective_of("prompter"), training(validation={"times": times}), tmp_path
    )
    assert [step for step in range(1, 11) if run.is_validated(step)] == steps


def test_without_selection_the_last_weights_are_the_result(new_run):
    seen = []
    run = new_run(
        "run", run={"validate": scored([3.0, 1.0], seen)}, validation={"times": 2}
    )
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert run.start() == {"validation/score": 1.0}
    torch.testing.assert_close(run.weights, seen[1], rtol=0, atol=0)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def damaged(*steps):
    """Data with unreadable examples in some steps."""

    class Damaged(TrainingDataset):
        def __getitem__(self, step):
            lines = [f"a.tar: clip{step}: broken"] * steps.count(step)
            return replace(super().__getitem__(step), unreadable=lines)

    return Damaged


def with_data(run, kind):
    make = run.data

    def data():
        actual = make()
        actual.__class__ = kind
        return actual

    run.data = data
    return run


def test_unreadable_examples_are_counted_across_an_interruption(new_run):
    run = with_data(new_run("run", max_unreadable_share=0.5), damaged(2, 5))
    run.interrupt(2)  # before the step is logged
    run.start()
    lines = [line for line in run.lines if "train/loss" in line]
    assert [line["train/unreadable"] for line in lines] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("count", "share", "allowed"),
    [
        (9, 0.0, True),
        (10, 0.6, False),
        (10, 0.63, True),
    ],
)
def test_too_many_unreadable_examples_are_an_error(new_run, count, share, allowed):
    """Of the 16 of the first two steps; fewer than ten never end a run."""
    run = with_data(
        new_run("run", steps=4, max_unreadable_share=share), damaged(*[1] * count)
    )
    with nullcontext() if allowed else pytest.raises(InputError):
        run.start()


def test_a_line_that_a_full_disk_cut_off_leaves_nothing(tmp_path, monkeypatch):
    # It would go to a file.
    monkeypatch.setattr(metrics.log, "warning", lambda line: None)
    file = MetricsFile(tmp_path)
    file.write(1, {"loss": 1.0})
    with full_disk(file.path.stat().st_size + 10):
        file.write(2, {"loss": 2.0})
    file.write(3, {"loss": 3.0})
    assert [line["step"] for line in read_metrics(file.path)] == [1, 3]


Step = tuple[dict[str, float], dict[str, Tensor]]


@pytest.fixture
def step(training, tmp_path):
    """step(objective, batch, accumulation_steps, contrast): the metrics and gradients of a step
    without clipping."""

    def take(objective, batch, parts=1, contrast="batch"):
        pieces = {"accumulation_steps": parts, "contrast": contrast}
        config = training(max_grad_norm=1e9, log_every=1, **pieces)
        run = run_of(objective, config, tmp_path)
        run.update(batch)
        gradients = {name: p.grad for name, p in objective.named_parameters()}
        return run.mean.read(), {
            name: g for name, g in gradients.items() if g is not None
        }

    return take


@pytest.mark.parametrize("parts", [2, 4])
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
def test_loss_metrics_and_gradients_are_those_of_the_batch_in_one_piece(
    name, off, contrast, parts, step
):
    """Masked words, kept samples, valid negatives and known answers differ in number between the
    micro-batches, and two captions of one video are in different ones."""
    weights = WEIGHTS | ({off: 0.0} if off else {})
    pool = 8 // parts
    name += f" {pool}" if "pools" in name else ""
    one, other = (objective_of(name, weights=weights, pool=pool) for _ in range(2))

    expected_metrics, expected = step(one, whole_batch())
    metrics, gradients = step(other, whole_batch(), parts, contrast)

    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
    assert len(gradients) > 20
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)


ALONE = {"accumulation_steps": 8, "contrast": "micro_batch"}


@pytest.mark.parametrize(
    ("stage", "values", "key"),
    [
        (MatchingConfig, {}, "negative_pool_size"),
        (FinetuneQa, {}, "contrast = batch"),
        (Pretrain, {"negative_pool_size": 4, "weights": {"vtc": 0}}, "weights.vtc"),
        (TrainPrompter, {}, ""),
        (MatchingConfig, {"negative_pool_size": 4}, ""),
        (MatchingConfig, {"accumulation_steps": 1}, ""),
        # A pair alone has no negatives.
        (MatchingConfig, {"negative_pool_size": 1}, "negative_pool_size"),
        (MatchingConfig, ALONE, "batch_size"),
        (MatchingConfig, {"accumulation_steps": 8}, "batch_size"),
        (TrainPrompter, ALONE, "batch_size"),
        (Pretrain, ALONE | {"weights": {"vtc": 0, "vtm": 0}}, ""),
        (FinetuneQa, ALONE, ""),
    ],
)
def test_batches_are_refused_that_cannot_be_compared(stage, values, key):
    values = {"accumulation_steps": 2, "contrast": "batch", "batch_size": 8, **values}
    phases = [{"corpora": ["clips"], "steps": 1}]
    if key:
        with pytest.raises(ValidationError, match=key):
            stage(phases=phases, **values)
    else:
        config = stage(phases=phases, **values)
        assert config.contrasts_whole_batch == (config.accumulation_steps == 2)
