"""A stage as a task of Prefect: its states, their messages, and what runs again."""

import errno
from types import SimpleNamespace

import httpx
import pytest
from prefect import flow
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Pending, Running, Scheduled
from prefect.utilities.annotations import quote

from alpro.errors import InputError
from alpro.pipeline.flows import tasks
from alpro.pipeline.flows.tasks import failed, interrupted, make, make_data, transient, wait_for_run
from alpro.pipeline.plan.step import Step
from alpro.stages import pretrain, render_sample
from alpro.stages.execution.interface import Interrupted, StageFailed, Stopped
from alpro.stages.execution.stop import STOP, Stop

DATA = Step("render_sample", "render_sample", render_sample.Config())
TRAINING = Step("pretrain", "pretrain", pretrain.Config(phases=[{"corpora": ["clips"], "steps": 1}]))


@pytest.fixture
def run(prefect, monkeypatch):
    """run(task, step, *results): the final state of a task whose stage has these results one after the other, and the
    number of times that it ran."""

    def execute(task, step: Step, *results):
        remaining, states = list(results), []

        def find_or_build(session, step):
            result = remaining.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

        @flow(persist_result=False)
        def pipeline() -> None:
            future = task.submit(step.name, quote(None), quote(step))
            future.wait()
            states.append(future.state)

        monkeypatch.setattr(tasks, "find_or_build", find_or_build)
        pipeline()
        return states[0], len(results) - len(remaining)

    return execute


def test_finished_and_cached_stages(run):
    state, times = run(make, TRAINING, None)
    assert (state.name, times) == ("Completed", 1)
    state, times = run(make_data, DATA, Completed(name="Cached", message="/w/artifacts/x"))
    assert (state.name, state.message, times) == ("Cached", "/w/artifacts/x", 1)


def test_a_page_without_its_table_does_not_fail_a_finished_stage(monkeypatch):
    def show_metrics(*arguments):
        raise httpx.ConnectError("All connection attempts failed")

    said = []
    monkeypatch.setattr(tasks, "show_metrics", show_metrics)
    monkeypatch.setattr(tasks, "announce", said.append)
    session = SimpleNamespace(results=[])
    result = SimpleNamespace(step=DATA, folder=None, record={"metrics": {}})
    tasks.append(session, result)
    assert session.results == [result]
    assert said == ["render_sample: Prefect's page has no table of its metrics: All connection attempts failed"]


def test_an_interrupted_training_continues(run):
    state, times = run(make, TRAINING, Interrupted("pretrain received SIGTERM"), None)
    assert (state.name, times) == ("Completed", 2)
    state, times = run(make, TRAINING, *[Interrupted("pretrain received SIGTERM")] * 4)
    assert (state.type.value, state.name, times) == ("FAILED", "Interrupted", 4)
    assert state.message == "pretrain received SIGTERM; the next run continues"


@pytest.mark.parametrize(
    "error", [InputError("a: no\ncaptions"), StageFailed("a: no captions"), Stopped("a: no captions")]
)
@pytest.mark.parametrize(("task", "step"), [(make, TRAINING), (make_data, DATA)])
def test_what_fails_for_good_is_one_line(run, task, step, error):
    state, times = run(task, step, error)
    assert times == 1
    assert state.type.value == "FAILED"
    assert state.message.startswith("a: no captions")
    assert state.name == ("Interrupted" if isinstance(error, Stopped) else "Failed")


def test_a_data_stage_survives_a_lost_network(run, monkeypatch):
    monkeypatch.setattr(make_data, "retry_delay_seconds", 0)
    state, times = run(make_data, DATA, OSError(errno.EIO, "Input/output error"), OSError("lost"), None)
    assert (state.name, times) == ("Completed", 3)
    state, times = run(make_data, DATA, *[OSError("https://host/a.mp4: reset by peer")] * 3)
    assert (state.name, state.message, times) == ("Failed", "https://host/a.mp4: reset by peer", 3)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Interrupted("x"), interrupted),
        (Stopped("x"), None),
        (InputError("x"), None),
        (StageFailed("x"), None),
        (ValueError("x"), None),
        (OSError("the store does not answer"), transient),
        (ConnectionResetError("x"), transient),
        (TimeoutError("x"), transient),
        (OSError(errno.ESTALE, "Stale file handle"), transient),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (FileNotFoundError("x"), None),
        (PermissionError("x"), None),
    ],
)
def test_which_errors_run_again(error, again):
    state = failed(error)
    assert {condition for condition in (interrupted, transient) if condition(None, None, state)} == {again} - {None}


class Client:
    """Prefect's client: each read of the run has the next answer, which may be an error."""

    def __init__(self, *answers):
        self.answers, self.states = list(answers), []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read_flow_run(self, run_id):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=answer)

    def set_flow_run_state(self, run_id, state):
        self.states.append(state.name)


@pytest.fixture
def waited(monkeypatch):
    """waited(stop, *answers): the outcome of waiting for a deployment's run, the client, and what was announced."""

    def wait(stop: Stop, *answers):
        client, lines = Client(*answers), []
        monkeypatch.setattr(tasks, "get_client", lambda sync_client: client)
        monkeypatch.setattr(tasks, "announce", lines.append)
        monkeypatch.setattr(tasks, "POLL_SECONDS", 0)
        token = STOP.set(stop)
        try:
            return wait_for_run(SimpleNamespace(id="r", name="pretrain · 0a1b")), client, lines
        except (StageFailed, Stopped) as error:
            return error, client, lines
        finally:
            STOP.reset(token)

    return wait


def test_waiting_for_a_deployment_outlives_its_server_and_its_worker(waited):
    """A pipeline's stage runs elsewhere; Prefect's server restarts meanwhile, and then the worker."""
    outage = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")]
    state, _, lines = waited(Stop(), Running(), *outage, Running(), AwaitingRetry(), Running(), Completed())
    assert state.is_completed()
    assert lines == ["Prefect's server does not answer (ConnectError); pretrain · 0a1b continues"]
    assert waited(Stop(), Running(), Crashed())[0].is_crashed()
    assert "was deleted" in str(waited(Stop(), ObjectNotFound(Exception()))[0])


@pytest.mark.parametrize(
    ("answers", "states", "said"),
    [
        ([Running()], ["Cancelling"], ""),
        ([Pending()], ["Cancelling"], ""),
        ([Scheduled()], ["Cancelled"], ""),
        ([Running(), httpx.ConnectError("refused"), Running()], ["Cancelling"], ""),
        ([Running(), ObjectNotFound(Exception())], [], ""),
        ([httpx.ConnectError("refused")], [], "prefect flow-run cancel r ends it"),
    ],
)
def test_a_pipeline_that_stops_cancels_its_deployments_also_if_the_server_is_down_for_a_while(
    waited, answers, states, said
):
    stop = Stop()
    stop.request()
    error, client, lines = waited(stop, *answers)
    assert isinstance(error, Stopped)
    assert client.states == states
    assert said in (lines[-1] if said else "")


def test_a_message_is_never_empty():
    assert failed(OSError()).message == "OSError"
    assert isinstance(failed(InputError("x")), type(Failed()))


def test_a_finished_training_says_its_score():
    record = {"run": {"seconds": 12.4}, "metrics": {"validation/t2v/R1": 61.04, "validation/mean_recall": 70.0}}
    assert tasks.done_line(SimpleNamespace(name="pretrain"), record) == "pretrain: done in 12 s, validation R@1 61.0 %"
    assert tasks.done_line(SimpleNamespace(name="x"), {**record, "metrics": {}}) == "x: done in 12 s"
