"""`alpro up`: what it checks, and its servers and workers as processes."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from alpro.errors import InputError
from alpro.pipeline import checks, pools
from alpro.pipeline.checks import MLFLOW_DATABASE, PREFECT_DATABASE, check
from alpro.pipeline.cli import parser
from alpro.pipeline.commands import execute
from alpro.pipeline.guard import runs_still
from tests.pipeline.started import ROOT, TINY, Up, call, wait_for

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_databases(monkeypatch):
    for name in (PREFECT_DATABASE, MLFLOW_DATABASE, "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def found(tmp_path, free_port):
    """found(ports=..., workspace=...): what `alpro up --check` says is wrong."""

    def look(workspace: Path = tmp_path / "new" / "workspace", **ports: int) -> list[str]:
        numbers = {"--prefect-port": free_port(), "--mlflow-port": free_port()} | {
            f"--{name}-port": number for name, number in ports.items()
        }
        return checks.problems(workspace, numbers)

    return look


def test_nothing_is_wrong_and_nothing_is_created(found, tmp_path):
    assert found() == []
    assert list(tmp_path.iterdir()) == []


def test_ports_in_use_and_equal_ports(found):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (problem,) = found(mlflow=port)
    assert problem.startswith(f"port {port} is in use or not allowed")
    assert problem.endswith("choose another with --mlflow-port")
    assert found(mlflow=port, prefect=port) == [
        "--prefect-port and --mlflow-port are the same port; choose another for one of them"
    ]


def test_a_workspace_that_cannot_be_written(found, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert found(tmp_path / "file" / "below")[0].startswith(f"{tmp_path / 'file'} is not a folder")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert found(tmp_path)[0].startswith(f"{tmp_path} is not writable")


def test_a_full_disk(found, tmp_path, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(10, 9, 1_200_000_000))
    assert found(tmp_path) == [
        f"{tmp_path}: 1.2 GB are free, 5.4 GB are needed; free some, or choose another disk with --workspace"
    ]


def test_sqlite_files_that_are_not_usable(found, tmp_path):
    sqlite3.connect(tmp_path / "mlflow.db").close()
    assert found(tmp_path) == []
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"garbage" * 500)
    (problem,) = found(tmp_path)
    assert problem.startswith(f"{tmp_path}/prefect/prefect.db: not usable (file is not a database)")


def test_databases_that_do_not_answer_or_are_the_same(found, free_port, monkeypatch):
    place = f"me:hush@127.0.0.1:{free_port()}/both"
    monkeypatch.setenv(PREFECT_DATABASE, f"postgresql+asyncpg://{place}")
    monkeypatch.setenv(MLFLOW_DATABASE, f"postgresql+psycopg://{place}")
    prefect, mlflow, same = found()
    assert prefect.startswith(f"{PREFECT_DATABASE}: cannot connect (")
    assert mlflow.startswith(f"{MLFLOW_DATABASE}: cannot connect (")
    assert same == f"{PREFECT_DATABASE} and {MLFLOW_DATABASE} are the same database; create one for each"
    assert not any("hush" in line or "\n" in line for line in (prefect, mlflow))
    monkeypatch.setenv(PREFECT_DATABASE, f"postgresql://{place}")
    assert found()[0].startswith(f"{PREFECT_DATABASE}: does not start with postgresql+asyncpg://")


def test_missing_decoders_and_packages(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("alpro.shards.ffmpeg_binary.ffmpeg_version", lambda: (_ for _ in ()).throw(InputError("no x")))
    versions = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.0" if name == "prefect" else versions(name))
    pyav, ffmpeg, packages = found()
    assert pyav.startswith("no PyAV")
    assert ffmpeg == "no x"
    assert packages.startswith("prefect is 2.0, needed is prefect")


def test_the_check_prints_a_line_each_and_its_status(tmp_path, free_port, capsys):
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]

    def status(workspace: Path) -> int:
        return execute(parser().parse_args(["up", "--check", "--workspace", str(workspace), *ports]))

    assert status(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(check(tmp_path, {"--a": free_port(), "--b": free_port()})))
    assert all(line.startswith("ok     ") for line in lines)
    (tmp_path / "file").write_text("")
    assert status(tmp_path / "file") == 1
    assert f"error  {tmp_path / 'file'} is not a folder" in capsys.readouterr().out


def test_a_second_one_in_the_workspace_is_refused(found, tmp_path):
    (tmp_path / "up").mkdir()
    with checks.lock(tmp_path):
        assert found(tmp_path) == [f"alpro up already runs in {tmp_path}; stop it, or choose another with --workspace"]
    assert found(tmp_path) == []


def test_a_tracking_uri_with_a_password_is_refused():
    for uri in ("", "http://host:5000", "postgresql+psycopg://me@host/mlflow"):
        checks.check_tracking_uri(uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as error:
        checks.check_tracking_uri("http://me:hush@host:5000")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(("pid", "queue", "dead"), [("", "q", True), ("no", "q", True), (None, None, False)])
def test_runs_without_a_process_are_dead(pid, queue, dead):
    assert pools.is_dead(SimpleNamespace(id="r", work_queue_id=queue, infrastructure_pid=pid)) is dead


def test_a_run_lives_if_its_process_is_its_own(monkeypatch):
    run = SimpleNamespace(id="r", work_queue_id="q", infrastructure_pid=str(os.getpid()))
    for run_id, dead in (("r", False), ("another", True)):
        monkeypatch.setattr(psutil.Process, "environ", lambda self, run_id=run_id: {"PREFECT__FLOW_RUN_ID": run_id})
        assert pools.is_dead(run) is dead


def status_of(url: str, method: str = "POST", body: bytes = b'{"name": "evil"}', **headers: str) -> int:
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.long
def test_up_refuses_other_sites_and_leaves_no_process(tmp_path, free_port):
    with Up(tmp_path / "w", free_port(), free_port()) as machine:
        flows = f"{machine.prefect}/flows/"
        assert status_of(flows, **{"Content-Type": "application/json", "Host": "evil.example"}) == 400
        assert status_of(flows, **{"Content-Type": "application/json", "Origin": "http://evil.example"}) == 403
        assert status_of(flows, **{"Content-Type": "", "Origin": "http://evil.example"}) == 403
        assert call(machine.prefect, "POST", "/work_pools/filter", {})[1]["concurrency_limit"] == 1
        (automation,) = call(machine.prefect, "POST", "/automations/filter", {})
        assert automation["name"] == "alpro: runs without heartbeats"
        again = subprocess.run(machine.command, capture_output=True, text=True, cwd=ROOT)
        assert (again.returncode, again.stdout) == (1, "")
        assert f"error: alpro up already runs in {tmp_path / 'w'}" in again.stderr

        # What a page cannot send: files outside the workspace, values out of bounds, commands.
        refused = machine.deploy("render-sample/render-sample", config="/etc/passwd")
        assert "config = /etc/passwd: neither a shipped configuration" in refused["state"]["message"]
        form = call(machine.prefect, "GET", "/deployments/name/pretrain/pretrain")
        start = f"/deployments/{form['id']}/create_flow_run"
        assert call(machine.prefect, "POST", start, {"parameters": {"values": {"lr": -1}}}) is None
        page = {"Content-Type": "application/json", "Origin": machine.prefect.removesuffix("/api")}
        command = b'{"job_variables": {"command": "touch /tmp/x"}}'
        assert status_of(machine.prefect + start, body=command, **page) == 403

        # Ctrl-C while a model trains.
        long = machine.start(
            "train-prompter/train-prompter", config=TINY, changes=["train_prompter.phases.0.steps=100000"]
        )
        trained = tmp_path / "w" / "artifacts" / "train_prompter"
        wait_for(lambda: list(trained.glob("*/metrics.jsonl")), 600, machine.check)
        processes = psutil.Process(machine.process.pid).children(recursive=True)
        assert len(processes) >= 6
        machine.process.send_signal(signal.SIGINT)
        assert machine.process.wait(300) == 0
        assert machine.output().splitlines()[-1] == "stopped"
        assert [process for process in processes if process.is_running()] == []
        assert list(trained.glob("*/checkpoints/step-*"))
    with sqlite3.connect(tmp_path / "w" / "prefect" / "prefect.db") as database:
        ((state,),) = database.execute("select state_name from flow_run where id = ?", (long,)).fetchall()
    assert state == "Crashed"
    with sqlite3.connect(tmp_path / "w" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'RUNNING'").fetchone() == (0,)


@pytest.mark.long
def test_if_it_is_killed_nothing_is_left(tmp_path, free_port):
    with Up(tmp_path / "w", free_port(), free_port()) as machine:
        run = machine.start(
            "train-prompter/train-prompter", config=TINY, changes=["train_prompter.phases.0.steps=100000"]
        )
        trained = tmp_path / "w" / "artifacts" / "train_prompter"
        wait_for(lambda: list(trained.glob("*/metrics.jsonl")), 600, machine.check)
        processes = psutil.Process(machine.process.pid).children(recursive=True)
        assert len(processes) >= 7  # with the guard
        machine.process.kill()
        wait_for(lambda: not any(map(runs_still, processes)), 300)
        assert list(trained.glob("*/checkpoints/step-*"))
    with sqlite3.connect(tmp_path / "w" / "prefect" / "prefect.db") as database:
        ((state,),) = database.execute("select state_name from flow_run where id = ?", (run,)).fetchall()
    assert state == "Crashed"  # it reported that itself: the servers are the last to end
    with sqlite3.connect(tmp_path / "w" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'RUNNING'").fetchone() == (0,)
