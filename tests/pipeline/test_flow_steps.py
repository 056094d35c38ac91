"""Steps of a flow: which run together, what a failure or a stop ends, what runs again."""

import shutil
import threading
from _thread import interrupt_main
from concurrent.futures import CancelledError
from contextlib import nullcontext
from pathlib import Path

import pytest
from prefect.client.orchestration.base import BaseClient

from alpro.errors import InputError
from alpro.pipeline.flows import flow, pipeline_run, tasks
from alpro.stages import WITH_MODEL
from alpro.stages.execution.interface import Outcome, StageFailed
from tests.pipeline.conftest import (
    RUN_STAGE,
    STAGES,
    TINY,
    alpro,
    last_run,
    newest_runs,
    states_of,
    statuses_of,
)

pytestmark = pytest.mark.usefixtures("prefect")

CORPORA = ["corpora.clips.timeout=71", "corpora.stills.timeout=71"]
FINE_TUNING = ["finetune_retrieval.lr=7e-4", "finetune_qa.lr=7e-4"]


class Together:
    """Stands for `run_stage`: each stage waits until as many run as are expected, then fails."""

    def __init__(self, expected):
        self.expected = expected
        self.changed = threading.Condition()
        self.running = 0
        self.most = 0
        self.started: list[str] = []
        self.gpus: list[list[str]] = []

    def __call__(self, step, out, store, resources, launch):
        with self.changed:
            self.started.append(step.name)
            self.gpus.append([*launch.gpus])
            self.running += 1
            self.most = max(self.most, self.running)
            self.changed.notify_all()
            assert self.changed.wait_for(
                lambda: self.most >= self.expected, timeout=120
            )
            self.running -= 1
        raise StageFailed(f"{step.name} broke")


@pytest.fixture
def together(first, monkeypatch):
    """together(expected): replaces the stages; the record of what they did."""

    def replace(expected):
        record = Together(expected)
        monkeypatch.setattr(RUN_STAGE, record)
        return record

    return replace


@pytest.mark.parametrize(
    ("changes", "limit", "most"),
    [
        (CORPORA, 1, 1),
        (FINE_TUNING, 2, 2),
        (["pretrain.lr=7e-4"], 2, 1),  # the others need it
    ],
)
def test_independent_stages_run_together_within_the_limit(
    changes, limit, most, together, workspace
):
    record = together(most)

    with pytest.raises(StageFailed):
        alpro(
            TINY,
            changes=[*changes, f"resources.max_stages={limit}"],
            workspace=workspace,
        )

    assert (len(record.started), record.most) == (len(changes), most)
    if limit == 1:
        assert record.started == [name for name in STAGES if name in record.started]


def test_a_failure_stops_only_what_depends_on_it(
    together, workspace, monkeypatch, capsys
):
    monkeypatch.setenv("ALPRO_COMMAND_LINE", "1")
    record = together(1)

    with pytest.raises(StageFailed, match="decode_videos clips broke"):
        alpro(TINY, changes=CORPORA, workspace=workspace)

    printed = capsys.readouterr().err
    assert all(f"failed: {name} broke" in printed for name in record.started)
    assert "evaluate retrieval: skipped, because an input failed" in printed
    assert statuses_of(workspace) == dict.fromkeys(["", *record.started], "FAILED")
    run = last_run(workspace, CORPORA)
    states = states_of(workspace, CORPORA)
    assert (run.state, run.reason) == ("failed", "decode_videos clips broke")
    assert {name for name in STAGES if states[name] == "failed"} == {*record.started}
    assert (states["render_sample"], states["evaluate retrieval"]) == (
        "cached",
        "unfinished",
    )


def test_the_limit_holds_where_deployments_run_some_stages(
    together, workspace, monkeypatch
):
    """Of decodings, each of which uses all cores."""
    monkeypatch.setattr(flow, "find_remote_stages", lambda: WITH_MODEL)
    monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))
    record = together(1)

    with pytest.raises(StageFailed):
        flow.alpro(TINY, changes=[*CORPORA, "corpora.clips.timeout=72"])

    assert (len(record.started), record.most) == (2, 1)


@pytest.mark.parametrize(("gpus", "most"), [("01", 1), ("0123", 2)])
def test_stages_side_by_side_use_different_gpus(
    gpus, most, together, workspace, monkeypatch
):
    """Each as many as it has processes; then the next one has them."""
    monkeypatch.setattr(pipeline_run, "find_gpus", lambda resources: [*gpus])
    record = together(most)
    resources = ["resources.max_stages=2", "resources.processes=2"]

    with pytest.raises(StageFailed):
        alpro(TINY, changes=[*FINE_TUNING, *resources], workspace=workspace)

    assert record.most == most
    first, second = record.gpus
    assert len(first) == len(second) == 2
    assert {*first, *second} == {*gpus}


class Endless:
    """Stands for `run_stage`: runs until it is stopped, or until it is killed.

    Its Ctrl-C is one that arrives just before the main thread begins to wait, which no signal
    interrupts any more.
    """

    def __init__(self, stages, until):
        self.together = threading.Barrier(stages)
        self.until = until

    def press_ctrl_c(self):
        if self.together.wait(120) == 0:
            interrupt_main()

    def __call__(self, step, out, store, resources, launch):
        self.press_ctrl_c()
        assert launch.stopping.wait(120), "not stopped"
        if self.until == "kill":
            self.press_ctrl_c()
            assert launch.killing.wait(120), "not killed"
        raise CancelledError(f"{step.name} was stopped")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("until", ["stop", "kill"])
def test_ctrl_c_stops_all_stages_and_a_second_one_kills_them(
    until, first, workspace, monkeypatch
):
    monkeypatch.setattr(RUN_STAGE, Endless(2, until))
    changes = [*FINE_TUNING, "resources.max_stages=2"]

    with pytest.raises(KeyboardInterrupt):
        alpro(TINY, changes=changes, workspace=workspace)

    stages = {"finetune_retrieval": "KILLED", "finetune_qa": "KILLED"}
    assert statuses_of(workspace) == {"": "KILLED", **stages}
    assert last_run(workspace, changes).state == "stopped"
    assert states_of(workspace, changes)["finetune_qa"] == "unfinished"


def died(progressed=True):
    return StageFailed("evaluate ended with status 1", progressed)


@pytest.mark.parametrize(
    ("errors", "times", "state"),
    [
        ([died()], 2, "Completed"),
        ([died()] * 11, 11, "Failed"),  # ten times again
        ([died(), died(progressed=False)], 2, "Failed"),
        ([InputError("a: no\ncaptions")], 1, "Failed"),
    ],
)
def test_only_a_stage_that_gets_further_runs_again(
    errors, times, state, first, workspace, monkeypatch
):
    left = list(errors)
    tried = []

    def work(step, out, *_):
        tried.append(step.name)
        if left:
            raise left.pop(0)
        shutil.copy(Path(first["evaluate qa"]) / "results.json", out)
        return Outcome({"items": 1})

    monkeypatch.setattr(RUN_STAGE, work)
    monkeypatch.setattr(tasks, "RETRY_SECONDS", 0)

    # Only one step is asked about contrasts.
    changes = [f'evaluate.contrasts=[["{state} {times}", "b"]]']
    with nullcontext() if state == "Completed" else pytest.raises(type(errors[0])):
        alpro(TINY, changes=changes, workspace=workspace)

    assert tried == ["evaluate qa"] * times
    (found,) = (
        run.state
        for run in newest_runs()[1].values()
        if run.name.startswith("evaluate qa")
    )
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

    def fail(*_):
        raise StageFailed("pretrain broke")

    monkeypatch.setattr(BaseClient, "request", request_twice)
    monkeypatch.setattr(RUN_STAGE, fail)
    with pytest.raises(StageFailed, match="pretrain broke"):
        alpro(TINY, changes=["pretrain.lr=6e-4"], workspace=workspace)
