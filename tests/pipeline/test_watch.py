"""A deployment's run that is cancelled without its worker ends; every other trouble leaves it running."""

import os
import signal
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest
from prefect.exceptions import Abort, ObjectNotFound, TerminationSignal
from prefect.states import Cancelled, Cancelling, Crashed, Pending, Running
from rich.console import Console

from alpro.pipeline import watch
from alpro.pipeline.watch import PATIENCE, Watch, ended_if_cancelled

RUN = UUID(int=7)


class Server:
    """Prefect's server: answers with the states, or raises them; the last one again and again."""

    def __init__(self, *answers):
        self.answers, self.received = list(answers), []

    @contextmanager
    def client(self, sync_client):
        yield self

    def read_flow_run(self, run_id):
        assert run_id == RUN
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=answer)

    def set_flow_run_state(self, run_id, state, force):
        self.received.append((run_id, state.type, force))


@pytest.fixture
def server(monkeypatch):
    """server(*states): the server of the test."""

    def answer(*answers) -> Server:
        one = Server(*answers)
        monkeypatch.setattr(watch, "get_client", one.client)
        return one

    return answer


class Log:
    def __init__(self):
        self.lines = []

    def warning(self, text, *values):
        self.lines.append(text % values)

    info = warning


@pytest.mark.parametrize(
    ("state", "worker_lost", "ends"),
    [
        (Running(), True, False),
        (Pending(), True, False),
        (Cancelling(), True, True),
        (Cancelling(), False, False),  # the worker ends it
        (Cancelled(), False, True),
        (ObjectNotFound(Exception()), False, True),  # deleted
        (httpx.ConnectError("refused"), True, False),
        (OSError("no network"), False, False),
    ],
)
def test_which_states_end_a_run(state, worker_lost, ends, server):
    server(state)
    one = Watch(RUN, Log())
    one.worker_lost = worker_lost
    assert one.look() is ends


def test_a_worker_that_does_not_cancel_is_not_waited_for_forever(server):
    server(Cancelling())
    one = Watch(RUN, Log())
    assert [one.look() for _ in range(PATIENCE + 1)] == [False] * PATIENCE + [True]


def test_an_outage_is_logged_once_and_a_wrong_crash_is_corrected(server):
    answers = server(httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), Crashed(), Running())
    log = Log()
    one = Watch(RUN, log)
    assert not any(one.look() for _ in range(4))
    assert log.lines == [
        "Prefect's server does not answer (ConnectError); the run continues",
        "Prefect's server answers again",
    ]
    assert answers.received == [(RUN, Running().type, True)]
    one.ended.set()  # the run itself has reported that it crashed
    answers.answers = [Crashed()]
    one.look()
    assert len(answers.received) == 1


def test_the_thread_notices_that_the_worker_ended(server, monkeypatch):
    server(Running(), Cancelling())
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    monkeypatch.setattr(watch, "drop_output", lambda: log.lines.append("output dropped"))
    signals = []
    monkeypatch.setattr(os, "kill", lambda *arguments: signals.append(arguments))
    log, parents = Log(), iter([41, 41, 1, 1, 1])
    one = Watch(RUN, log)
    one.run(lambda: next(parents))
    assert log.lines == ["output dropped", "The worker of this run has ended; the run continues without it"]
    assert signals == [(os.getpid(), signal.SIGTERM)]
    assert one.found_cancelled.is_set()


@pytest.fixture
def deployed(monkeypatch):
    """This process as the run of a deployment, whose worker is gone."""
    monkeypatch.setattr(watch, "deployment", SimpleNamespace(id="blue-fox"))
    monkeypatch.setattr(watch, "flow_run", SimpleNamespace(id=str(RUN)))
    monkeypatch.setattr(watch, "get_run_logger", Log)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    monkeypatch.setattr(Console, "on_broken_pipe", Console.on_broken_pipe)


def terminate(*_):
    raise TerminationSignal(signal.SIGTERM)


def test_a_cancelled_run_ends_as_cancelled(deployed, server):
    answers = server(Cancelled())
    before = signal.signal(signal.SIGTERM, terminate)  # as Prefect does
    try:
        with pytest.raises(Abort), ended_if_cancelled():
            threading.Event().wait(120)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answers.received == [(RUN, Cancelled().type, True)]


def test_a_signal_of_the_worker_is_left_to_prefect(deployed, server):
    answers = server(Running())
    with pytest.raises(TerminationSignal), ended_if_cancelled():
        terminate()
    assert answers.received == []


def test_only_runs_of_deployments_are_watched(monkeypatch):
    monkeypatch.setattr(watch, "deployment", SimpleNamespace(id=None))
    before = threading.active_count()
    with ended_if_cancelled():
        assert threading.active_count() == before


def test_a_pipe_without_a_reader_is_replaced(monkeypatch):
    reading, writing = os.pipe()
    stream = SimpleNamespace(fileno=lambda: writing)
    monkeypatch.setattr(watch.sys, "__stdout__", stream)
    monkeypatch.setattr(watch.sys, "__stderr__", stream)
    watch.drop_output()
    os.write(writing, b"read")
    assert os.read(reading, 4) == b"read"
    os.close(reading)
    watch.drop_output()
    os.write(writing, b"dropped")
    os.close(writing)
