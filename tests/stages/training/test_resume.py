"""Interrupted or not, or after a power failure, training ends with the same weights to the last
bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from alpro.errors import InputError
from alpro.models.folder import write_tensors
from alpro.stages.execution.interface import Outcome, StageConfig
from alpro.stages.execution.step import Step
from alpro.stages.training import loop
from alpro.stages.training.checkpoint import Checkpoints, trainable
from alpro.stages.training.objective import MatchingObjective, PrompterObjective
from alpro.stages.training.optim import build_optimizer
from tests.conftest import one_line

OFTEN = {"checkpoint_interval": 1e-9}  # a checkpoint after every step


def assert_same(one, other):
    """Two runs ended with the same weights to the last bit, and the same lines of metrics."""
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)
    assert one.lines == other.lines


BATCH = {"accumulation_steps": 2, "contrast": "batch"}


@pytest.mark.parametrize(
    ("stops", "objective", "dropout", "settings"),
    [
        ((0, 6), PrompterObjective, 0.2, {}),
        ((3,), MatchingObjective, 0.0, {}),
        ((3,), PrompterObjective, 0.2, BATCH),
    ],
    ids=[
        "several times, from the first step, dropout",
        "hard negatives",
        "contrast over the batch",
    ],
)
def test_an_interrupted_run_has_the_same_weights_and_metrics(
    new_run, stops, objective, dropout, settings
):
    whole, broken = (
        new_run(name, objective, dropout, **settings) for name in ("whole", "broken")
    )
    whole.start()
    assert [line["step"] for line in whole.lines] == [2, 4, 6, 8]

    for before in stops:
        broken.interrupt(before)

    # The step under way is finished.
    assert broken.checkpoints[-1] == f"step-{stops[-1] + 1:08d}"
    broken.start()
    assert_same(whole, broken)


def test_a_killed_run_resumes_from_its_last_checkpoint_and_rewrites_metrics(
    killed, new_run, monkeypatch
):
    whole, _ = killed
    broken = new_run("broken", run=OFTEN)
    broken.kill(before=5)
    with open(broken.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "time": 0, "train/loss": 1.5}\n')
        file.write('{"step": 6, "ti')  # cut off while it was written
    with monkeypatch.context() as patch:  # ranks that see different files
        patch.setattr(loop, "all_reduce_max", lambda values, device: [5, -4])
        with pytest.raises(InputError, match="checkpoints of steps 4 and 5"):
            broken.start()
    broken.start()
    assert_same(whole, broken)


@pytest.fixture(scope="module")
def killed(run_in, tmp_path_factory):
    """A whole run, and one that was killed before step 6. Tests copy its folder."""
    folder = tmp_path_factory.mktemp("killed")
    whole, broken = (run_in(folder / name, run=OFTEN) for name in ("whole", "broken"))
    whole.start()
    broken.kill(before=6)
    return whole, broken


@pytest.fixture
def broken(killed, new_run):
    """A copy of the run that was killed."""
    run = new_run("broken", run=OFTEN)
    shutil.copytree(killed[1].out, run.out)
    return run


def damage(path, at):
    """Flips one bit of the byte at a place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def damage_first(file):
    damage(file, 0)


def damage_last(file):
    damage(file, -1)


def damage_step(file):
    damage(file, file.read_text().index('"step": 6') + 8)


@pytest.mark.parametrize(
    ("file", "spoil", "count"),
    [
        ("model.safetensors", damage_first, 1),
        ("model.safetensors", damage_first, 2),
        ("optimizer.safetensors", damage_last, 1),
        ("state.json", damage_step, 1),
        ("state.json", Path.unlink, 1),
        ("sums.json", Path.unlink, 1),
    ],
)
def test_a_corrupt_checkpoint_is_skipped_for_the_previous_one(
    killed, broken, file, spoil, count
):
    """Without an intact one, training starts again."""
    assert broken.checkpoints == ["step-00000005", "step-00000006"]
    for name in broken.checkpoints[-count:]:
        spoil(broken.out / "checkpoints" / name / file)
    # Another rank reads the same and deletes nothing.
    other = broken.build()
    optimizer = build_optimizer(other, broken.config)
    state, _ = Checkpoints(broken.out / "checkpoints").restore(other, optimizer, rank=1)
    assert (state["step"] if state else None) == (5 if count == 1 else None)
    assert len(broken.checkpoints) == 2

    broken.start()

    assert_same(killed[0], broken)


@pytest.mark.parametrize("files", [[], ["model.safetensors", "state.json"]])
def test_a_checkpoint_of_another_version_is_kept_and_refused(broken, files):
    sums = broken.out / "checkpoints" / "step-00000006" / "sums.json"
    written = json.loads(sums.read_text())
    sums.write_text(json.dumps({name: written[name] for name in files}))

    with one_line("another version", "step-00000006"):
        broken.start()

    assert broken.checkpoints == ["step-00000005", "step-00000006"]


def test_a_checkpoint_that_cannot_be_read_is_kept_for_the_next_try(killed, broken):
    """It may be intact, behind a network that fails for a moment."""
    weights = broken.out / "checkpoints" / "step-00000006" / "model.safetensors"
    aside = weights.rename(broken.out / "aside")
    weights.mkdir()  # Reading it is an error of the system.

    with pytest.raises(IsADirectoryError):
        broken.start()

    assert broken.checkpoints == ["step-00000005", "step-00000006"]
    weights.rmdir()
    aside.rename(weights)
    broken.start()
    assert_same(killed[0], broken)


def test_what_a_killed_save_left_goes_with_the_next_one(new_run):
    run = new_run("run", run=OFTEN)
    unfinished = run.out / "checkpoints" / ".step-00000099.part"
    unfinished.mkdir(parents=True)

    run.kill(before=3)

    assert not unfinished.exists()


def test_a_run_stopped_in_its_last_step_completes(new_run):
    run = {"validate": lambda _: {"validation/score": 3.0}}
    whole, last = (new_run(name, run=run) for name in ("whole", "last"))
    final = whole.start()
    assert final == {"validation/score": 3.0}
    assert (
        last.start(before=7, stop=lambda: os.kill(os.getpid(), signal.SIGTERM)) == final
    )
    assert_same(whole, last)


@pytest.mark.parametrize("before", [3, 5])
def test_the_best_weights_survive_an_interruption(new_run, before):
    """The score rises to step 4 and falls afterwards."""

    def validate(objective):
        moved = float(objective.model.text_proj.weight.detach().double().sum())
        return {"validation/score": -abs(moved - peak), "validation/moved": moved}

    peak = 0.0
    run = {"validate": validate, "select": "validation/score"}
    trial = new_run("trial", run=run, validation={"times": 4})
    trial.start()
    peak = [
        line["validation/moved"] for line in trial.lines if "validation/moved" in line
    ][1]
    whole = new_run("whole", run=run, validation={"times": 4})
    broken = new_run("broken", run=run, validation={"times": 4})

    final = whole.start()
    assert final["selected_step"] == 4
    broken.interrupt(before)
    assert broken.start() == final
    assert_same(whole, broken)


@pytest.mark.parametrize(
    "every",
    [pytest.param(41, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)],
)
def test_training(new_run, power_cuts, every):
    def validate(model):
        return {"score": float(sum(weight.sum() for weight in model.parameters()))}

    chosen = {"validate": validate, "select": "score"}
    run = new_run("run", steps=3, run=chosen | OFTEN, log_every=1)
    step = Step("train_prompter", "train_prompter", StageConfig())

    def train(_, out):
        run.out = out
        metrics = run.start()
        write_tensors(trainable(run.trained), out / "model.safetensors")
        for line in run.lines:
            metrics |= {f"{line['step']}/{name}": value for name, value in line.items()}
        return Outcome({}, metrics)

    with torch.random.fork_rng():
        assert power_cuts(step, train, every, ["model.safetensors"]) > 60
