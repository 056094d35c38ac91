"""The training loop: interrupted or not, it comes to the same weights to the last bit."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from alpro.errors import InputError
from alpro.models.alpro import Alpro, Prompter
from alpro.stages.artifacts.store import Resources
from alpro.stages.training import loop
from alpro.stages.training.distributed import World
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import EXIT_INTERRUPTED, MAX_SKIPPED_IN_ROW, fit
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.objective import MatchingObjective, Objective, PrompterObjective
from alpro.stages.training.optim import build_optimizer, learning_rate

ALONE = World(0, 1, torch.device("cpu"))
# What two equal runs need not have in common.
TIMING = ("time", "train/data_wait", "train/samples_per_second", "train/tflops", "train/memory_gib")
MEAN, STD = [0.5] * 3, [0.25] * 3


class Killed(BaseException):
    """As if the process had been killed: nothing in the loop gets a chance to clean up."""


@dataclass
class Run:
    """One training run in a folder: can be stopped before any step, and started again."""

    out: Path
    config: Any
    build: Callable[[], Objective]
    data: Callable[[], TrainingDataset]
    validate: Callable[[Objective], dict[str, float]] | None = None
    select: str = ""
    checkpoint_interval: float = 3600

    def start(self, before: int = -1, stop: Callable[[], None] | None = None) -> dict[str, float]:
        """Trains to the end; as step `before` begins, `stop` is called."""
        torch.manual_seed(self.config.seed)
        self.trained, data = self.build(), self.data()
        load = data.loader

        def loader(*args):
            for batch in load(*args):
                if batch.step == before:
                    stop()
                yield batch

        data.loader = loader
        resources = Resources(workers=1, device="cpu", checkpoint_interval=self.checkpoint_interval)
        validate = (lambda: self.validate(self.trained)) if self.validate else None
        self.out.mkdir(exist_ok=True)
        return fit(self.trained, data, self.config, self.out, ALONE, resources, validate, self.select)

    def interrupt(self, before: int) -> None:
        """A SIGTERM as step `before` begins."""
        with pytest.raises(SystemExit) as left:
            self.start(before=before, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert left.value.code == EXIT_INTERRUPTED

    def kill(self, before: int) -> None:
        """The end without warning as step `before` begins."""

        def stop():
            raise Killed

        with pytest.raises(Killed):
            self.start(before=before, stop=stop)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.named_parameters()}

    @property
    def lines(self) -> list[dict]:
        actual = read_metrics(self.out / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in TIMING} for line in actual]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.out / "checkpoints").iterdir())


@pytest.fixture
def new_run(tmp_path, training, clips, stills, tokenizer, tiny_model, monkeypatch):
    """new_run(name, objective=..., dropout=..., steps=..., run=..., **config): a run of 8 steps on clips and stills."""
    corpora = {"clips": clips, "stills": stills}
    monkeypatch.setattr(loop, "MIN_SAVE_INTERVAL_RATIO", 0)  # runs so short have no time between checkpoints

    def make(name: str, objective=PrompterObjective, dropout: float = 0.0, steps: int = 8, run=(), **changes) -> Run:
        config = training(tuple(corpora), steps, **changes)
        shape = tiny_model(tokenizer.get_vocab_size(), dropout)
        kind = Prompter if issubclass(objective, PrompterObjective) else Alpro
        return Run(
            tmp_path / name,
            config,
            lambda: objective(kind(shape), MEAN, STD),
            lambda: TrainingDataset(config, corpora, tokenizer, "sample", 4, 32),
            **dict(run),
        )

    return make


OFTEN = {"checkpoint_interval": 1e-9}  # a checkpoint after every step


def assert_same(one: Run, other: Run) -> None:
    """Two runs ended with the same weights to the last bit, and the same lines of metrics."""
    differing = [name for name, weight in one.weights.items() if not torch.equal(weight, other.weights[name])]
    assert differing == []
    assert one.lines == other.lines


def test_two_runs_of_one_configuration_are_the_same(new_run):
    one, other = new_run("one", dropout=0.2), new_run("other", dropout=0.2)
    assert one.start() == other.start()
    assert_same(one, other)
    assert [line["step"] for line in one.lines] == [2, 4, 6, 8]


@pytest.mark.parametrize("before", [0, 3, 6])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_metrics(new_run, before):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    broken.interrupt(before)
    assert broken.checkpoints == [f"step-{before + 1:08d}"]  # the step under way is finished
    broken.start()
    assert_same(whole, broken)


def test_a_run_interrupted_again_and_again_comes_to_the_same(new_run):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    for before in (1, 2, 5):
        broken.interrupt(before)
    broken.start()
    assert_same(whole, broken)


WITH_CHANCE = pytest.mark.parametrize(
    ("objective", "dropout"), [(PrompterObjective, 0.2), (MatchingObjective, 0.0)], ids=["dropout", "hard negatives"]
)


@WITH_CHANCE
def test_an_interrupted_run_with_chance_in_it_goes_on_to_the_same(new_run, objective, dropout):
    whole, broken = (new_run(name, objective, dropout) for name in ("whole", "broken"))
    whole.start()
    broken.interrupt(3)
    broken.start()
    assert_same(whole, broken)


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_writes_its_metrics_again(new_run):
    whole, broken = (new_run(name, run=OFTEN) for name in ("whole", "broken"))
    whole.start()
    broken.kill(before=5)
    with open(broken.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "time": 0, "train/loss": 1.5}\n{"step": 6, "ti')  # cut off while it was written
    broken.start()
    assert_same(whole, broken)


def test_two_checkpoints_are_kept(new_run):
    run = new_run("run", run=OFTEN)
    run.kill(before=6)
    assert run.checkpoints == ["step-00000005", "step-00000006"]


def damage(path: Path, at: int) -> None:
    """Flips one bit of the byte at a place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
def test_a_corrupt_checkpoint_is_skipped_for_the_previous_one(new_run, file, at, capfd):
    whole, broken = (new_run(name, run=OFTEN) for name in ("whole", "broken"))
    whole.start()
    broken.kill(before=6)
    damage(broken.out / "checkpoints" / "step-00000006" / file, at)
    broken.start()
    output = capfd.readouterr().err
    assert f"step-00000006: corrupt ({file}); using the previous checkpoint" in output
    assert "continuing from step 5 of 8" in output
    assert_same(whole, broken)


def test_a_checkpoint_that_lost_a_file_is_left_for_the_one_before_it(new_run, capfd):
    run = new_run("run", run=OFTEN)
    run.kill(before=6)
    (run.out / "checkpoints" / "step-00000006" / "state.json").unlink()
    run.start()
    assert "continuing from step 5 of 8" in capfd.readouterr().err


@pytest.mark.parametrize(("text", "place"), [('"step": 6', -1), ('"skipped_in_row"', -2)], ids=["a value", "a name"])
def test_a_corrupt_state_is_skipped_for_the_previous_checkpoint(new_run, text, place, capfd):
    run = new_run("run", run=OFTEN)
    run.kill(before=6)
    state = run.out / "checkpoints" / "step-00000006" / "state.json"
    damage(state, state.read_text().index(text) + len(text) + place)
    run.start()
    assert "continuing from step 5 of 8" in capfd.readouterr().err


def test_with_no_whole_checkpoint_it_begins_anew(new_run, capfd):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    broken.interrupt(3)
    damage(broken.out / "checkpoints" / "step-00000004" / "model.safetensors", -1)
    broken.start()
    assert "corrupt" in capfd.readouterr().err
    assert_same(whole, broken)


def test_a_run_stopped_in_its_last_step_is_done(new_run):
    run = {"validate": lambda _: {"validation/score": 3.0}}
    whole, last = (new_run(name, run=run) for name in ("whole", "last"))
    final = whole.start()
    assert final == {"validation/score": 3.0}
    assert last.start(before=7, stop=lambda: os.kill(os.getpid(), signal.SIGTERM)) == final
    assert_same(whole, last)


def spoiled(*bad: int) -> type[PrompterObjective]:
    """An objective whose loss is not finite in some steps."""

    class Spoiled(PrompterObjective):
        def forward(self, batch):
            loss, metrics = super().forward(batch)
            return (loss * float("nan") if batch.step in bad else loss), metrics

    return Spoiled


def test_a_step_whose_loss_is_not_finite_is_skipped(new_run):
    run = new_run("run", spoiled(0), steps=1)
    run.start()
    torch.manual_seed(run.config.seed)
    untrained = dict(run.build().named_parameters())
    assert all(torch.equal(weight, untrained[name]) for name, weight in run.weights.items())


def test_a_few_bad_steps_end_no_run(new_run):
    run = new_run("run", spoiled(1, 2, 3, 4, 6))
    run.start()
    assert all(weight.isfinite().all() for weight in run.weights.values())
    assert len(run.lines) == 4


def test_five_bad_steps_in_a_row_end_it_with_the_step_named(new_run):
    assert MAX_SKIPPED_IN_ROW == 5
    run = new_run("run", spoiled(2, 3, 4, 5, 6))
    names = run.data()[6].ids
    with pytest.raises(InputError, match=r"not finite in 5 consecutive steps, the last being step 6 ") as mistake:
        run.start()
    assert names[0] in str(mistake.value)


def test_bad_steps_are_counted_over_an_interruption(new_run):
    run = new_run("run", spoiled(2, 3, 4, 5, 6))
    run.interrupt(4)
    with pytest.raises(InputError, match="step 6 "):
        run.start()


def scored(scores: list[float], seen: list[dict[str, Tensor]]):
    """A validation that gives these scores in turn, and keeps the weights that it was shown."""

    def validate(objective: Objective) -> dict[str, float]:
        assert not objective.training
        assert not torch.is_grad_enabled()
        seen.append({name: p.detach().clone() for name, p in objective.named_parameters()})
        return {"validation/score": scores[len(seen) - 1]}

    return validate


def test_the_weights_that_are_best_on_validation_come_out_with_their_metrics(new_run):
    seen: list[dict[str, Tensor]] = []
    run = {"validate": scored([1.0, 3.0, 2.0, 3.0], seen), "select": "validation/score"}
    chosen = new_run("run", run=run, validation={"times": 4})
    final = chosen.start()
    assert final == {"validation/score": 3.0, "selected_step": 4.0}
    assert all(torch.equal(weight, seen[1][name]) for name, weight in chosen.weights.items())
    assert [line["validation/score"] for line in chosen.lines if "validation/score" in line] == [1.0, 3.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("times", "steps"), [(1, [8]), (2, [4, 8]), (3, [3, 6, 8]), (5, [2, 4, 5, 7, 8]), (8, list(range(1, 9)))]
)
def test_validations_are_at_equal_distances_and_the_last_is_at_the_end(new_run, times, steps):
    run = new_run("run", run={"validate": lambda _: {"validation/score": 1.0}}, validation={"times": times})
    run.start()
    assert [line["step"] for line in run.lines if "validation/score" in line] == steps


def test_without_a_selection_the_last_weights_come_out(new_run):
    seen: list[dict[str, Tensor]] = []
    run = new_run("run", run={"validate": scored([3.0, 1.0], seen)}, validation={"times": 2})
    assert run.start() == {"validation/score": 1.0}
    assert all(torch.equal(weight, seen[1][name]) for name, weight in run.weights.items())


@pytest.mark.parametrize("before", [3, 5])
def test_the_best_weights_outlive_an_interruption(new_run, before):
    """The score rises to step 4 and falls afterwards."""

    def validate(objective: Objective) -> dict[str, float]:
        moved = float(objective.model.text_proj.weight.detach().double().sum())
        return {"validation/score": -abs(moved - peak), "validation/moved": moved}

    peak = 0.0
    run = {"validate": validate, "select": "validation/score"}
    trial = new_run("trial", run=run, validation={"times": 4})
    trial.start()
    peak = [line["validation/moved"] for line in trial.lines if "validation/moved" in line][1]
    whole, broken = (new_run(name, run=run, validation={"times": 4}) for name in ("whole", "broken"))
    final = whole.start()
    assert final["selected_step"] == 4
    broken.interrupt(before)
    assert broken.start() == final
    assert_same(whole, broken)


def test_accumulated_parts_are_one_step_on_their_mean(new_run):
    run = new_run("run", steps=1, accumulation_steps=2, log_every=1, warmup_ratio=0)
    run.start()
    torch.manual_seed(run.config.seed)
    objective = run.build().train()
    optimizer = build_optimizer(objective, run.config)
    losses = [objective(part)[0] for part in run.data()[0].split(2)]
    (sum(losses) / 2).backward()
    norm = clip_grad_norm_(objective.parameters(), run.config.max_grad_norm)
    optimizer.step()
    line = run.lines[0]
    assert line["train/loss"] == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    assert line["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert line["train/lr"] == pytest.approx(learning_rate(0, 1, run.config))
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(weight.detach(), run.weights[name], atol=1e-5, rtol=0, msg=name)


def test_gradients_are_clipped_to_the_norm_asked(new_run):
    """AdamW's first step is lr x g / (|g| + 1e-8): gradients clipped to far less than 1e-8 move nothing."""
    moved = []
    for name, norm in (("loose", 10.0), ("tight", 1e-12)):
        run = new_run(name, steps=1, max_grad_norm=norm, weight_decay=0.0)
        run.start()
        torch.manual_seed(run.config.seed)
        before = nn.utils.parameters_to_vector(run.build().parameters()).detach()
        after = nn.utils.parameters_to_vector(run.trained.parameters()).detach()
        moved.append(float((after - before).abs().max()))
    assert moved[0] > 1e-4 > 1e-6 > moved[1]


def test_signals_mean_afterwards_what_they_meant_before(new_run):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    new_run("run", steps=1).start()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def damaged(*steps: int) -> type[TrainingDataset]:
    """Data with unreadable examples in some steps."""

    class Damaged(TrainingDataset):
        def __getitem__(self, step):
            lines = [f"a.tar: clip{step}: broken"] * steps.count(step)
            return replace(super().__getitem__(step), unreadable=lines)

    return Damaged


def with_data(run: Run, kind: type[TrainingDataset]) -> Run:
    make = run.data

    def data() -> TrainingDataset:
        actual = make()
        actual.__class__ = kind
        return actual

    run.data = data
    return run


def test_unreadable_examples_are_logged_and_counted_across_an_interruption(new_run, capfd):
    run = with_data(new_run("run", max_unreadable_share=0.5), damaged(1, 5))
    run.interrupt(3)
    run.start()
    output = capfd.readouterr().err
    assert "step 1: a.tar: clip1: broken; replaced by another example" in output
    assert "step 5: a.tar: clip5: broken" in output
    assert [line["train/unreadable"] for line in run.lines if "train/loss" in line] == [1, 1, 2, 2]


def test_too_many_unreadable_examples_end_a_run(new_run):
    run = with_data(new_run("run", max_unreadable_share=0.01), damaged(*[1] * 10))
    with pytest.raises(
        InputError, match=r"10 of \d+ examples cannot be read, more than max_unreadable_share = 0.01 allows"
    ):
        run.start()


def test_a_few_unreadable_examples_do_not_end_a_run(new_run):
    run = with_data(new_run("run", max_unreadable_share=0.0), damaged(*[1] * 9))
    run.start()
    assert run.lines[-1]["train/unreadable"] == 9


def test_best_weights_stay_as_long_as_a_checkpoint_knows_them(new_run):
    scores = iter([1.0, 2.0, 3.0, 4.0])
    run = {"validate": lambda _: {"validation/score": next(scores)}, "select": "validation/score", **OFTEN}
    killed = new_run("run", run=run, validation={"times": 4})
    killed.kill(before=6)
    # Checkpoints of steps 5 and 6 are kept; the best so far was that of step 4, then of step 6.
    assert [name for name in killed.checkpoints if name.startswith("best")] == [
        "best-00000004.safetensors",
        "best-00000006.safetensors",
    ]


def test_corrupt_best_weights_are_an_error(new_run):
    scores = iter([2.0, 1.0, 0.5, 0.1])
    run = new_run(
        "run",
        run={"validate": lambda _: {"validation/score": next(scores)}, "select": "validation/score"},
        validation={"times": 4},
    )
    run.interrupt(5)
    damage(run.out / "checkpoints" / "best-00000002.safetensors", -1)
    with pytest.raises(InputError, match=r"best-00000002.safetensors: corrupt"):
        run.start()
