"""Steps of a flow: which run together, what a failure or an interruption stops, what runs again."""

import shutil
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration.base import BaseClient

from alpro.errors import InputError
from alpro.pipeline.flows import flow, tasks
from alpro.pipeline.store.artifacts import Step
from alpro.stages.execution.interface import STOP, Interrupted, Outcome, StageFailed, Stopped
from tests.pipeline.conftest import (
    RUN_STAGE,
    STAGES,
    TINY,
    alpro,
    newest_runs,
    states_of,
    statuses_of,
    summary_of,
)

pytestmark = pytest.mark.usefixtures("prefect")


CORPORA = ["corpora.clips.timeout=71", "corpora.stills.timeout=71"]
FINE_TUNING = ["finetune_retrieval.lr=7e-4", "finetune_qa.lr=7e-4"]


@pytest.mark.parametrize(
    ("changes", "limit", "most", "beside"),  # beside: how many stages with a model share the cores
    [
        (CORPORA, 1, 1, {}),
        (FINE_TUNING, 2, 2, {"finetune_retrieval": 2, "finetune_qa": 2}),
        (FINE_TUNING[1:], 2, 1, {"finetune_qa": 1}),  # the other one is cached
        (["pretrain.lr=7e-4"], 2, 1, {"pretrain": 1}),  # the others need it
    ],
)
def test_independent_stages_run_together_within_the_limit_and_a_failure_stops_only_what_depends_on_it(
    changes, limit, most, beside, first, workspace, monkeypatch, capsys
):
    seen = SimpleNamespace(running=0, most=0, started={})
    changed = threading.Condition()

    def fail(step: Step, *_: object, **options: object) -> Outcome:
        with changed:
            seen.started[step.name] = options["concurrent_stages"]
            seen.running += 1
            seen.most = max(seen.most, seen.running)
            changed.notify_all()
            assert changed.wait_for(lambda: seen.most >= most, timeout=120)
            seen.running -= 1
        raise StageFailed(f"{step.name} broke")

    monkeypatch.setattr(RUN_STAGE, fail)
    monkeypatch.setenv("ALPRO_COMMAND_LINE", "1")
    changes = [*changes, f"resources.max_stages={limit}"]
    with pytest.raises(StageFailed) as raised:
        alpro(TINY, changes=changes, workspace=workspace)
    in_order = [name for name in STAGES if name in seen.started]
    assert (len(in_order), seen.most, str(raised.value)) == (
        len(changes) - 1,
        most,
        f"{in_order[0]} broke",
    )
    assert limit == 2 or list(seen.started) == in_order
    assert beside.items() <= seen.started.items()
    printed = capsys.readouterr().err
    assert all(f"{name}: failed: {name} broke" in printed for name in in_order)
    assert "evaluate: skipped" in printed
    assert statuses_of(workspace) == dict.fromkeys(["", *in_order], "FAILED")
    summary = summary_of(workspace, changes)
    states = states_of(workspace, changes)
    assert (summary["state"], summary["reason"]) == ("failed", f"{in_order[0]} broke")
    assert {name for name in STAGES if states[name] == "failed"} == seen.started.keys()
    assert (states["render_sample"], states["evaluate"]) == ("cached", "unfinished")


@pytest.mark.usefixtures("interruptible")
def test_stages_that_run_at_the_same_time_stop_together_and_their_runs_are_killed(
    first, workspace, monkeypatch
):
    running = threading.Barrier(2)

    def run_until_stopped(*_: object, **__: object) -> Outcome:
        if running.wait(120) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        STOP.get().wait(120)
        raise AssertionError("not stopped")

    monkeypatch.setattr(RUN_STAGE, run_until_stopped)
    monkeypatch.setattr(flow, "GRACE_SECONDS", 600)  # they end because they are asked to
    changes = [*FINE_TUNING, "resources.max_stages=2"]
    with pytest.raises(KeyboardInterrupt):
        alpro(TINY, changes=changes, workspace=workspace)
    assert statuses_of(workspace) == {
        "": "KILLED",
        "finetune_retrieval": "KILLED",
        "finetune_qa": "KILLED",
    }
    assert summary_of(workspace, changes)["state"] == "stopped"
    assert states_of(workspace, changes)["finetune_qa"] == "unfinished"


@pytest.mark.parametrize(
    ("errors", "seed", "times", "state"),
    [
        ([Interrupted("evaluate: it received SIGTERM")], 101, 2, "Completed"),
        ([Interrupted("evaluate: lost")] * 4, 102, 4, "Interrupted"),
        ([InputError("a: no\ncaptions")], 103, 1, "Failed"),
        ([Stopped("evaluate was stopped")], 104, 1, "Interrupted"),
        ([OSError("a bug")], 105, 1, "Failed"),
    ],
)
def test_only_an_interrupted_stage_runs_again(
    errors, seed, times, state, first, workspace, monkeypatch
):
    left = list(errors)
    tried = []

    def work(step: Step, out: Path, *_: object, **__: object) -> Outcome:
        tried.append(step.name)
        if left:
            raise left.pop(0)
        shutil.copy(Path(first["evaluate"]) / "results.json", out)
        return Outcome({"items": 1})

    monkeypatch.setattr(RUN_STAGE, work)
    monkeypatch.setattr(tasks.step_task, "retry_delay_seconds", [0, 0, 0])
    with nullcontext() if state == "Completed" else pytest.raises(type(errors[0])):
        alpro(TINY, changes=[f"evaluate.seed={seed}"], workspace=workspace)
    assert tried == ["evaluate"] * times
    (found,) = (run.state for run in newest_runs()[1].values() if run.name.startswith("evaluate"))
    assert found.name == state
    assert "\n" not in (found.message or "")


def test_the_error_of_a_run_does_not_depend_on_the_answer_of_prefects_server(
    first, workspace, monkeypatch
):
    """One that is asked a second time answers with the state that it has, without the error."""
    request = BaseClient.request

    def request_twice(client, method, path, *rest, **more):
        answer = request(client, method, path, *rest, **more)
        is_lost = path.endswith("/set_state")
        return request(client, method, path, *rest, **more) if is_lost else answer

    def fail(*_: object, **options: object) -> Outcome:
        raise StageFailed("pretrain broke")

    monkeypatch.setattr(BaseClient, "request", request_twice)
    monkeypatch.setattr(RUN_STAGE, fail)
    with pytest.raises(StageFailed, match="pretrain broke"):
        alpro(TINY, changes=["pretrain.lr=6e-4"], workspace=workspace)
