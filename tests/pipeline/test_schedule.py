"""Which stages run at the same time, how they are stopped, and plans on a machine that lacks the videos."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.errors import InputError
from alpro.pipeline.cli.main import parser
from alpro.pipeline.cli.run import plan_rows, print_plan, run_pipeline
from alpro.pipeline.flows.flow import alpro
from alpro.pipeline.plan.dag import planned
from alpro.pipeline.plan.step import Step
from alpro.stages.execution.interface import Outcome, StageFailed
from alpro.stages.execution.stop import STOP
from tests.pipeline.conftest import TINY, newest, runs

CORPORA = ["corpora.clips.quality=71", "corpora.stills.quality=71"]
FINE_TUNING = ["finetune_retrieval.lr=7e-4", "finetune_qa.lr=7e-4"]


@pytest.fixture
def work(monkeypatch) -> SimpleNamespace:
    """Replaces the work of a stage: it waits for `together` stages to run, notes how many run, and fails."""
    seen = SimpleNamespace(together=1, running=0, most=0, started=[])
    changed = threading.Condition()

    def fail(step: Step, *_: object) -> Outcome:
        with changed:
            seen.started.append(step.name)
            seen.running += 1
            seen.most = max(seen.most, seen.running)
            changed.notify_all()
            assert changed.wait_for(lambda: seen.most >= seen.together, timeout=120)
            seen.running -= 1
        raise StageFailed(f"{step.name} broke")

    monkeypatch.setattr("alpro.pipeline.flows.tasks.run_stage", fail)
    return seen


@pytest.mark.parametrize(
    ("changes", "limits", "together"),
    [
        (CORPORA, [], 1),
        (CORPORA, ["resources.max_stages=2"], 2),
        (FINE_TUNING, [], 1),
        (FINE_TUNING, ["resources.max_stages=2"], 2),
    ],
)
def test_independent_stages_run_at_the_same_time_within_the_limits(changes, limits, together, first, workspace, work):
    work.together = together
    with pytest.raises(StageFailed, match="broke"):
        alpro(TINY, changes=[*changes, *limits], workspace=str(workspace))
    assert len(work.started) == 2
    assert work.most == together
    if together == 1:  # in the order of the plan
        assert work.started == [name for name in first if name in work.started]


def test_stages_that_run_at_the_same_time_stop_together(first, workspace, monkeypatch):
    running = threading.Barrier(2)

    def run_until_stopped(*_: object) -> Outcome:
        if running.wait(120) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        STOP.get().wait(120)
        raise AssertionError("not stopped")

    monkeypatch.setattr("alpro.pipeline.flows.tasks.run_stage", run_until_stopped)
    limits = ["resources.max_stages=2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            alpro(TINY, changes=[*FINE_TUNING, *limits], workspace=str(workspace))
    finally:
        signal.signal(signal.SIGINT, before)
    parents, _ = runs(workspace)
    statuses = {name: run.info.status for name, run in newest(workspace).items()}
    assert parents[0].info.status == "KILLED"
    assert (statuses["finetune_retrieval"], statuses["finetune_qa"]) == ("KILLED", "KILLED")
    assert "evaluate" not in statuses


def test_a_dry_run_shows_what_is_blocked_and_a_run_fails_at_once(tmp_path, capsys):
    config, data = "own_videos", str(tmp_path / "none")
    _, steps, store = planned("", config, data, [], tmp_path)
    print_plan(plan_rows(steps, store))
    lines = {line[11:35].strip(): (line[:10].strip(), line[54:]) for line in capsys.readouterr().out.splitlines()}
    assert {state for state, _ in lines.values()} == {"blocked"}
    assert f"{data}: no such file or folder" in lines["decode_videos data"][1]
    assert lines["build_vocabulary"] == ("blocked", "needs decode_videos data")
    with pytest.raises(InputError, match="no such file or folder"):
        alpro(config, data, workspace=str(tmp_path))
    assert not Path(tmp_path / "mlflow.db").exists()


def test_the_command_reports_missing_files_before_a_flow_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("alpro.pipeline.cli.run.prepare_prefect", lambda home: None)  # it changes the environment
    monkeypatch.setattr("alpro.pipeline.flows.flow.alpro", lambda *_: pytest.fail("a flow was started"))
    arguments = parser().parse_args(["run", "--data", str(tmp_path / "none"), "--workspace", str(tmp_path)])
    with pytest.raises(InputError, match="no such file or folder"):
        run_pipeline(arguments)
