"""A worker on a machine that is taken away: its runs are scheduled again. (test_server.py: on real servers.)"""

import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from prefect.exceptions import Abort, ObjectNotFound, TerminationSignal
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running
from rich.console import Console

from alpro.pipeline.servers import deployed_run, worker

RUN = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready', flush=True)"


class Client:
    """Prefect's client, with a run in each state."""

    def __init__(self, states: dict[str, object]):
        self.runs = {key: SimpleNamespace(id=key, name=key, state=state) for key, state in states.items()}
        self.scheduled: list[str] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read_flow_run(self, run_id: object) -> SimpleNamespace:
        if str(run_id) not in self.runs:
            raise ObjectNotFound(Exception())
        return self.runs[str(run_id)]

    def set_flow_run_state(self, run_id: str, state, force: bool) -> None:
        assert force  # a crashed run has ended for Prefect
        assert state.is_scheduled()
        self.scheduled.append(run_id)


@pytest.fixture
def client(monkeypatch):
    """client(name=state, ...): the client of the test, with these runs."""

    def known(**states: object) -> Client:
        one = Client(states)
        monkeypatch.setattr(deployed_run, "get_client", lambda sync_client: one)
        return one

    return known


def test_only_runs_that_were_interrupted_are_scheduled_again(client, capsys):
    interrupted = {"running": Running(), "pending": Pending(), "crashed": Crashed()}
    ended = {"done": Completed(), "failed": Failed(), "cancelled": Cancelled(), "cancelling": Cancelling()}
    again = {"by_itself": AwaitingRetry()}
    one = client(**interrupted, **ended, **again)
    names = [*interrupted, *ended, *again, "deleted"]
    assert [name for name in names if deployed_run.schedule_again(name)] == [*interrupted]
    assert one.scheduled == [*interrupted]
    printed = capsys.readouterr()
    assert "running is scheduled again" in printed.out
    assert "run deleted is not scheduled again" in printed.err


@pytest.fixture
def deployed(monkeypatch):
    """This process as the run of a deployment."""
    run_id = uuid4()
    monkeypatch.setattr(deployed_run, "deployment", SimpleNamespace(id="d"))
    monkeypatch.setattr(deployed_run, "flow_run", SimpleNamespace(id=str(run_id)))
    monkeypatch.setattr(deployed_run, "end_after", lambda ending, seconds: None)
    monkeypatch.setattr(Console, "on_broken_pipe", Console.on_broken_pipe)
    return str(run_id)


@pytest.mark.parametrize(
    ("state", "error"),
    [(Running(), Abort), (Crashed(), Abort), (Cancelling(), TerminationSignal), (None, TerminationSignal)],
)
def test_an_interrupted_run_is_scheduled_again_by_itself_and_a_cancelled_one_is_left_to_prefect(
    client, deployed, state, error
):
    one = client(**({deployed: state} if state else {}))
    with pytest.raises(error), deployed_run.continued_later():
        raise TerminationSignal(signal.SIGTERM)
    assert one.scheduled == ([deployed] if error is Abort else [])


def test_an_error_of_a_run_is_its_own(client, deployed):
    one = client(**{deployed: Running()})
    with pytest.raises(ValueError, match="own"), deployed_run.continued_later():
        raise ValueError("its own")
    assert one.scheduled == []


def test_a_run_watches_the_worker_that_started_it(monkeypatch, deployed):
    """Also if the worker has ended before: the run then has another parent."""
    watched = []
    monkeypatch.setattr(deployed_run, "end_after", lambda ending, seconds: ending())
    monkeypatch.setattr(deployed_run, "worker_ended", watched.append)
    monkeypatch.setenv(deployed_run.WORKER, "77")
    with deployed_run.continued_later():
        pass
    monkeypatch.delenv(deployed_run.WORKER)
    with deployed_run.continued_later():
        pass
    assert watched == [77, os.getppid()]


def test_other_runs_watch_nothing(monkeypatch):
    monkeypatch.setattr(deployed_run, "deployment", SimpleNamespace(id=None))
    watched = []
    monkeypatch.setattr(deployed_run, "end_after", lambda *arguments: watched.append(arguments))
    with deployed_run.continued_later():
        pass
    assert watched == []


def test_runs_are_asked_to_end_and_waited_for(monkeypatch):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"{RUN}; time.sleep(600)"], env=os.environ | own, stdout=subprocess.PIPE, text=True
        )
        for own in ({worker.RUN_ID: "r"}, {})
    ]
    run, other = started
    try:
        assert [process.stdout.readline() for process in started] == ["ready\n"] * 2
        assert {process.pid for process in worker.runs()} >= {run.pid}
        monkeypatch.setattr(worker, "runs", lambda: {psutil.Process(run.pid)} if run.poll() is None else set())
        worker.end_runs()
        assert (run.wait(), other.poll()) == (0, None)
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_run_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(worker, "RUN_SECONDS", 0)
    stubborn = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(worker, "runs", lambda: {psutil.Process(stubborn.pid)})
    worker.end_runs()
    assert stubborn.wait() == -signal.SIGKILL


def test_a_worker_takes_no_run_while_it_ends_and_knows_which_have_not_ended(monkeypatch):
    first, second = SimpleNamespace(id=uuid4()), SimpleNamespace(id=uuid4())

    async def taken(self):
        return [first, second]

    async def done(self, flow_run):
        return "result"

    monkeypatch.setattr(worker.ProcessWorker, "get_and_submit_flow_runs", taken)
    monkeypatch.setattr(worker.ProcessWorker, "run", done)
    one = worker.Worker(work_pool_name="gpu", limit=None)
    assert asyncio.run(one.get_and_submit_flow_runs()) == [first, second]
    assert asyncio.run(one.run(first)) == "result"
    assert one.taken == {second.id}
    one.stopping = True
    assert asyncio.run(one.get_and_submit_flow_runs()) == []
    asyncio.run(one.run(second))
    assert one.taken == {second.id}  # it may have been ended


def test_a_crash_is_reported_once_and_does_not_end_a_retry(monkeypatch):
    """Prefect's runner reports a process that was killed, and its worker reports it again some seconds later."""
    killed, not_started, reported = SimpleNamespace(id=uuid4()), SimpleNamespace(id=uuid4()), []

    async def run(self, flow_run):
        if flow_run is not_started:
            raise OSError("no memory")

    async def report(self, flow_run, message):
        reported.append(message)

    monkeypatch.setattr(worker.ProcessWorker, "run", run)
    monkeypatch.setattr(worker.ProcessWorker, "_propose_crashed_state", report)
    one = worker.Worker(work_pool_name="gpu", limit=None)
    asyncio.run(one.run(killed))
    asyncio.run(one._propose_crashed_state(killed, "exited with -9"))
    with pytest.raises(OSError, match="no memory"):
        asyncio.run(one.run(not_started))
    asyncio.run(one._propose_crashed_state(not_started, "could not be started"))
    assert reported == ["could not be started"]


def test_runs_of_a_worker_that_is_asked_to_end_are_scheduled_again(monkeypatch):
    events, run_id = [], uuid4()

    class Fake:
        taken = {run_id}
        stopping = False

        async def start(self):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await asyncio.Event().wait()
            finally:
                events.append("worker ended")

    one = Fake()
    monkeypatch.setattr(worker, "end_runs", lambda: events.append(f"runs ended, stopping: {one.stopping}"))
    monkeypatch.setattr(worker, "schedule_again", events.append)
    asyncio.run(worker.serve(one))
    assert events == ["runs ended, stopping: True", "worker ended", run_id]


def test_a_worker_that_ends_by_itself_says_why(monkeypatch):
    class Fake:
        async def start(self):
            raise RuntimeError("Service exceeded error threshold.")

    with pytest.raises(RuntimeError, match="threshold"):
        asyncio.run(worker.serve(Fake()))


@pytest.mark.parametrize(("arguments", "limit"), [([], 1), (["--limit", "2"], 2), (["--limit", "0"], None)])
def test_the_limit_of_a_worker(arguments, limit, monkeypatch):
    served = []

    async def serve(one):
        served.append((one._work_pool_name, one._limit, os.environ[deployed_run.WORKER]))

    monkeypatch.setenv(deployed_run.WORKER, "")
    monkeypatch.setattr(worker, "serve", serve)
    monkeypatch.setattr(worker, "setup_logging", lambda: None)
    assert worker.main(["gpu", *arguments]) == 0
    assert served == [("gpu", limit, str(os.getpid()))]
