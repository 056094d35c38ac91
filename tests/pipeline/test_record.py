"""Runs of stages in MLflow: how they end, and which runs of others are marked as killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alpro.pipeline.plan.step import Step
from alpro.pipeline.tracking.stage_runs import end_dead_runs, run_tags, stage_run
from alpro.pipeline.tracking.tracker import Run, Tracker
from alpro.stages import render_sample
from alpro.stages.execution.interface import Interrupted
from tests.pipeline.tracking.test_tracker import Memory

STEP = Step("render_sample", "render_sample", render_sample.Config())
HERE = socket.gethostname()


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(Memory(), "1", "memory")


def status(tracker: Tracker, run: Run) -> str:
    return tracker.client.runs[run.id].info.status


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def others(tracker, dead_pid) -> dict[str, Run]:
    """The runs of the stage with status RUNNING."""

    def start(host: str, pid: int) -> Run:
        tags = {**run_tags("abc", STEP), "host": host, "pid": str(pid)}
        return tracker.start("render_sample", {}, tags)

    return {
        "on another machine": start("another-machine", dead_pid),
        "of a live process": start(HERE, os.getppid()),
        "of a dead process": start(HERE, dead_pid),
        "of this process": start(HERE, os.getpid()),
    }


def test_a_stage_ends_only_runs_whose_process_on_this_machine_is_gone(tracker, others, tmp_path):
    """The same stage may run elsewhere: the lock of an artifact is in a workspace, a tracking server serves many."""
    with stage_run(tracker, STEP, tmp_path, None, run_tags("abc", STEP)) as run:
        assert {name: status(tracker, other) for name, other in others.items()} == {
            "on another machine": "RUNNING",
            "of a live process": "RUNNING",
            "of a dead process": "KILLED",
            "of this process": "KILLED",  # an earlier try: this one holds the lock
        }
        assert status(tracker, run) == "RUNNING"


def test_a_stage_leaves_the_runs_of_other_stages_alone(tracker, others, tmp_path):
    other = Step("render_sample", "render_sample", render_sample.Config(seed=5))
    with stage_run(tracker, other, tmp_path, None, run_tags("abc", other)):
        assert {status(tracker, run) for run in others.values()} == {"RUNNING"}


def test_a_pipeline_ends_the_dead_runs_of_this_machine(tracker, others):
    end_dead_runs(tracker, {})
    assert [name for name, run in others.items() if status(tracker, run) == "KILLED"] == ["of a dead process"]


class TerminationSignal(BaseException):
    """Prefect's run, by its name."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (Interrupted("render_sample"), "KILLED"),
        (SystemExit(75), "KILLED"),
        (TerminationSignal(), "KILLED"),
        (ValueError("a bug"), "FAILED"),
    ],
)
def test_a_stopped_stage_is_killed_and_a_broken_one_failed(error, expected, tracker, tmp_path):
    runs = []

    def stage() -> None:
        with stage_run(tracker, STEP, tmp_path, None, {}) as run:
            runs.append(run)
            raise error

    with pytest.raises(type(error)):
        stage()
    assert status(tracker, runs[0]) == expected


def test_a_run_knows_its_process_and_its_stage():
    tags = run_tags("abc", STEP)
    assert (tags["host"], tags["pid"]) == (HERE, str(os.getpid()))
    assert (tags["stage"], tags["fingerprint"], tags["commit"]) == ("render_sample", STEP.fingerprint, "abc")


def test_a_run_is_nested_in_the_pipelines(tracker, tmp_path):
    parent = tracker.start("pipeline", {}, {})
    with stage_run(tracker, STEP, Path(tmp_path), parent, {}) as run:
        assert tracker.client.runs[run.id].data.tags["mlflow.parentRunId"] == parent.id
