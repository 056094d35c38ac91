"""A worker on a machine that is taken away: its runs are scheduled again and continue from their checkpoints."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from prefect.client import orchestration
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running

from alpro.pipeline import worker
from alpro.pipeline.up import DEPLOYMENTS
from tests.pipeline.started import ROOT, TINY, call, finished, wait_for

CHANGE = 'pretrain.phases=[{corpora=["clips","stills"],weights=[1,1],steps=400}]'
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

    def read_flow_run(self, run_id: str) -> SimpleNamespace:
        return self.runs[run_id]

    def set_flow_run_state(self, run_id: str, state, force: bool) -> None:
        assert force  # a crashed run has ended for Prefect
        assert state.is_scheduled()
        self.scheduled.append(run_id)


def test_only_runs_that_were_interrupted_are_scheduled_again(monkeypatch, capsys):
    interrupted = {"running": Running(), "pending": Pending(), "crashed": Crashed()}
    ended = {"done": Completed(), "failed": Failed(), "cancelled": Cancelled(), "cancelling": Cancelling()}
    client = Client({**interrupted, **ended})
    monkeypatch.setattr(orchestration, "get_client", lambda sync_client: client)
    worker.schedule_again({*interrupted, *ended})
    assert sorted(client.scheduled) == ["crashed", "pending", "running"]
    assert "running is scheduled again" in capsys.readouterr().out


def test_runs_are_asked_to_end_and_waited_for():
    program = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {RUN + '; time.sleep(600)'!r}]).wait())"
    )
    run_id = str(uuid4())
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {worker.RUN_ID: run_id}, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"  # of the run, whose output is its parent's
        assert worker.end_runs(parent) == {run_id}
        assert parent.stdout.read() == "0\n"


def test_a_worker_that_ends_by_itself_ends_the_program(monkeypatch):
    started = []

    def popen(command: list[str], **options: object) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(poll=lambda: 3, returncode=3)

    monkeypatch.setattr(worker, "adopt_orphans", lambda: None)
    monkeypatch.setattr(worker.subprocess, "Popen", popen)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert worker.main(["gpu", "--limit", "2"]) == 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert " ".join(started[0]).endswith("worker start --pool gpu --type process --limit 2")


@pytest.mark.long
def test_a_run_continues_on_another_worker_from_its_checkpoint(tmp_path, free_port):
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    left_out = {"PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": address}
    environment |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "ALPRO_WORKSPACE": str(tmp_path / "workspace")}
    environment |= {"ALPRO_CONFIGS": str(ROOT / "tests")}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]

    with ExitStack() as stack:

        def start(name: str, *command: str) -> subprocess.Popen:
            log = stack.enter_context(open(tmp_path / f"{name}.log", "w"))
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
            stack.callback(end, process)
            return process

        def stage() -> str:
            logs = call(address, "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
            return "\n".join(line["message"] for line in logs or ())

        start("server", *prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for(lambda: call(address, "GET", "/health"), 600)
        for command in (
            ["work-pool", "create", "gpu", "--type", "process"],
            ["work-pool", "create", "cpu", "--type", "process"],
        ):
            subprocess.run([*prefect, *command], env=environment, check=True, cwd=tmp_path)
        deploy = [*prefect, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
        subprocess.run(deploy, env=environment, check=True, cwd=tmp_path)
        known = wait_for(lambda: call(address, "GET", "/deployments/name/pretrain/pretrain"), 300)
        parameters = {"config": TINY, "changes": [CHANGE, "resources.checkpoint_interval=1"]}
        body = {"parameters": parameters, "idempotency_key": "the only run"}  # a busy server may not answer at first
        path = f"/deployments/{known['id']}/create_flow_run"
        run = wait_for(lambda: call(address, "POST", path, body), 300)["id"]

        first = start("first", sys.executable, "-m", "alpro.pipeline.worker", "gpu")
        checkpoints = tmp_path / "workspace" / "artifacts" / "pretrain"
        wait_for(lambda: list(checkpoints.glob("*/checkpoints/step-*")), 1200)
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 0
        assert not psutil.pid_exists(first.pid)
        state = call(address, "GET", f"/flow_runs/{run}")["state"]
        assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingRetry")

        start("second", sys.executable, "-m", "alpro.pipeline.worker", "gpu")
        done = wait_for(lambda: finished(address, run), 1200)
        assert done["state"]["type"] == "COMPLETED", done["state"]["message"]
        assert int(re.search(r"continuing from step (\d+) of 400", stage())[1]) > 0
        assert list(checkpoints.glob("*/artifact.json"))


def end(process: subprocess.Popen) -> None:
    """Ends a program and everything below it."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    psutil.wait_procs(below, 20)
    for one in below:
        if one.is_running():
            one.kill()
    process.kill()
    process.wait()
