"""Interrupted or not, training ends with the same weights to the last bit."""

import os
import signal
from pathlib import Path

import pytest
import torch

from alpro.errors import InputError
from alpro.stages.training.objective import MatchingObjective, Objective, PrompterObjective

OFTEN = {"checkpoint_interval": 1e-9}  # a checkpoint after every step


def assert_same(one, other) -> None:
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
def test_an_interrupted_run_resumes_to_the_same_weights_and_metrics(new_run, before):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    broken.interrupt(before)
    assert broken.checkpoints == [f"step-{before + 1:08d}"]  # the step under way is finished
    broken.start()
    assert_same(whole, broken)


def test_a_run_interrupted_several_times_has_the_same_result(new_run):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    for before in (1, 2, 5):
        broken.interrupt(before)
    broken.start()
    assert_same(whole, broken)


WITH_RANDOMNESS = pytest.mark.parametrize(
    ("objective", "dropout"), [(PrompterObjective, 0.2), (MatchingObjective, 0.0)], ids=["dropout", "hard negatives"]
)


@WITH_RANDOMNESS
def test_an_interrupted_run_with_randomness_has_the_same_result(new_run, objective, dropout):
    whole, broken = (new_run(name, objective, dropout) for name in ("whole", "broken"))
    whole.start()
    broken.interrupt(3)
    broken.start()
    assert_same(whole, broken)


def test_an_interrupted_run_with_contrast_over_the_batch_has_the_same_result(new_run):
    """Its random numbers are those of the step, not of the generator in the checkpoint."""
    settings = {"dropout": 0.2, "accumulation_steps": 2, "contrast": "batch"}
    whole, broken = (new_run(name, **settings) for name in ("whole", "broken"))
    whole.start()
    broken.interrupt(3)
    broken.start()
    assert_same(whole, broken)


def test_a_killed_run_resumes_from_its_last_checkpoint_and_rewrites_metrics(new_run):
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


def test_a_checkpoint_with_a_missing_file_is_skipped_for_the_previous_one(new_run, capfd):
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


def test_without_an_intact_checkpoint_training_starts_again(new_run, capfd):
    whole, broken = new_run("whole"), new_run("broken")
    whole.start()
    broken.interrupt(3)
    damage(broken.out / "checkpoints" / "step-00000004" / "model.safetensors", -1)
    broken.start()
    assert "corrupt" in capfd.readouterr().err
    assert_same(whole, broken)


def test_a_run_stopped_in_its_last_step_completes(new_run):
    run = {"validate": lambda _: {"validation/score": 3.0}}
    whole, last = (new_run(name, run=run) for name in ("whole", "last"))
    final = whole.start()
    assert final == {"validation/score": 3.0}
    assert last.start(before=7, stop=lambda: os.kill(os.getpid(), signal.SIGTERM)) == final
    assert_same(whole, last)


@pytest.mark.parametrize("before", [3, 5])
def test_the_best_weights_survive_an_interruption(new_run, before):
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


def test_best_weights_are_kept_while_a_checkpoint_refers_to_them(new_run):
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
