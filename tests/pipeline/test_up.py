"""`alpro up`: what it checks, and its servers and workers as processes."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import psutil
import pytest
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import Settings

from alpro.errors import InputError
from alpro.pipeline.cli.main import execute, parser
from alpro.pipeline.servers import checks, pools, up
from alpro.pipeline.servers.checks import MLFLOW_DATABASE, PREFECT_DATABASE
from tests.pipeline.started import ROOT, TINY, Up, call, finished, wait_for

LONG = ["train_prompter.phases.0.steps=100000", "resources.checkpoint_interval=600"]


@pytest.fixture(autouse=True)
def no_databases(monkeypatch):
    for name in (PREFECT_DATABASE, MLFLOW_DATABASE, "PREFECT_HOME", "PREFECT_WORKER_QUERY_SECONDS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def found(tmp_path, free_port):
    """found(ports=..., workspace=...): what `alpro up --check` says is wrong."""

    def look(workspace: Path = tmp_path / "new" / "workspace", **ports: int) -> list[str]:
        numbers = {"--prefect-port": free_port(), "--mlflow-port": free_port()} | {
            f"--{name}-port": number for name, number in ports.items()
        }
        return list(checks.problems(workspace, numbers))

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


def test_the_check_prints_what_is_wrong_and_starts_nothing(tmp_path, free_port, capsys):
    ports = [free_port(), free_port()]

    def status(prefect: int) -> int:
        numbers = ["--prefect-port", str(prefect), "--mlflow-port", str(ports[1])]
        return execute(parser().parse_args(["up", "--check", "--workspace", str(tmp_path / "w"), *numbers]))

    assert status(ports[0]) == 0
    assert capsys.readouterr().out == "ok: ports, databases, and no other alpro up\n"
    assert status(ports[1]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: --prefect-port and --mlflow-port are the same port")
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_cannot_be_created(tmp_path, free_port, capsys):
    (tmp_path / "file").write_text("")
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    assert execute(parser().parse_args(["up", "--workspace", str(tmp_path / "file" / "w"), *ports])) != 0
    assert capsys.readouterr().err == f"error: --workspace {tmp_path}/file/w: Not a directory\n"


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


def test_pools_have_their_slots_and_are_not_paused():
    made, changed = [], []

    def create(pool):
        if pool.name == "gpu":
            raise ObjectAlreadyExists(Exception())
        made.append((pool.name, pool.type, pool.concurrency_limit, bool(pool.base_job_template)))

    def update(name, pool):
        changed.append((name, pool.concurrency_limit, pool.is_paused))

    pools.create_pools(SimpleNamespace(create_work_pool=create, update_work_pool=update), {"cpu": 0, "gpu": 2})
    assert made == [("cpu", "process", None, True)]
    assert changed == [("gpu", 2, False)]


def test_runs_without_a_process_are_crashed_with_a_word_on_how_to_go_on(monkeypatch):
    states = []
    runs = [SimpleNamespace(id="a"), SimpleNamespace(id="b")]
    client = SimpleNamespace(
        read_flow_runs=lambda flow_run_filter: runs,
        set_flow_run_state=lambda run_id, state, force: states.append((run_id, state.type.value, state.message, force)),
    )
    monkeypatch.setattr(pools, "is_dead", lambda run: run.id == "b")
    pools.end_dead_runs(client)
    message = "its process ended without a report; prefect flow-run retry b continues it"
    assert states == [("b", "CRASHED", message, True)]


@pytest.mark.parametrize(("pid", "queue", "dead"), [("", "q", True), ("no", "q", True), (None, None, False)])
def test_runs_without_a_process_are_dead(pid, queue, dead):
    assert pools.is_dead(SimpleNamespace(id="r", work_queue_id=queue, infrastructure_pid=pid)) is dead


def test_a_run_lives_if_its_process_is_its_own(monkeypatch):
    run = SimpleNamespace(id="r", work_queue_id="q", infrastructure_pid=str(os.getpid()))
    for run_id, dead in (("r", False), ("another", True)):
        monkeypatch.setattr(psutil.Process, "environ", lambda self, run_id=run_id: {"PREFECT__FLOW_RUN_ID": run_id})
        assert pools.is_dead(run) is dead


# A port that is used nowhere here.
DATABASES = {
    PREFECT_DATABASE: "postgresql+asyncpg://me:hush@db/prefect",
    MLFLOW_DATABASE: "postgresql+psycopg://me:hush@db/mlflow",
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(**environment): the programs of an `alpro up` that starts none of them, by name, with the whole
    environment of each."""

    def start(**variables: str) -> dict[str, SimpleNamespace]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        found: dict[str, SimpleNamespace] = {}

        def record(program: up.Program) -> up.Program:
            whole = up.environment() | program.settings
            found[program.name] = SimpleNamespace(**vars(program), environment=whole)
            program.log.parent.mkdir(parents=True, exist_ok=True)
            program.log.write_text("a warning\ndevices 2\n")
            program.process = SimpleNamespace(poll=lambda: 0, returncode=0, kill=lambda: None)
            return program

        monkeypatch.setattr(up.Program, "start", record)
        monkeypatch.setattr(up.Machine, "check", lambda self: None)
        monkeypatch.setattr(up, "answers", lambda url: True)
        machine = up.Machine(tmp_path, 41, 42)
        machine.start()
        for number in (*machine.pipe, *machine.workers_pipe):
            os.close(number)
        return found | {"machine": machine}

    return start


def test_what_is_started(programs, tmp_path, capsys):
    found = programs()
    machine = found.pop("machine")
    commands = {name: " ".join(program.command).replace(sys.executable, "python") for name, program in found.items()}
    assert commands == {
        "prefect": "python -m alpro.pipeline.servers.prefect_server 41",
        "mlflow": "python -m alpro.pipeline.execution.lifecycle python -m mlflow server --host 127.0.0.1 --port 42 "
        "--workers 1 "
        f"--no-serve-artifacts --default-artifact-root file://{tmp_path}/mlflow",
        "devices": f"python -c {up.DEVICES}",
        "pools": "python -m alpro.pipeline.servers.pools cpu=0 gpu=2",
        "automations": "python -m alpro.pipeline.servers.automations",
        "worker-cpu": "python -m alpro.pipeline.servers.worker cpu --limit 0",
        "worker-gpu": "python -m alpro.pipeline.servers.worker gpu --limit 0",
        "deploy": f"python -m prefect --no-prompt deploy --all --prefect-file {up.DEPLOYMENTS}",
    }
    # Servers end after this process and the workers, workers with this process.
    streams = {name: (program.stdin, program.pass_fds) for name, program in found.items()}
    (read, write), (workers_read, _) = machine.pipe, machine.workers_pipe
    assert streams["prefect"] == streams["mlflow"] == (read, ())
    assert streams["worker-cpu"] == streams["worker-gpu"] == (workers_read, (write,))
    assert streams["deploy"] == (subprocess.DEVNULL, ())
    assert [program.name for program in machine.workers] == ["worker-cpu", "worker-gpu"]
    printed = capsys.readouterr().out
    assert "Prefect    http://127.0.0.1:41\n" in printed
    assert "2 slots; 2 GPUs" in printed


def test_each_program_has_its_settings_and_no_other(programs, tmp_path):
    found = programs(PREFECT_API_URL="http://elsewhere/api", ALPRO_COMMAND_LINE="1", NO_PROXY="host", **DATABASES)
    found.pop("machine")
    own = {name: program.environment for name, program in found.items()}
    for name, values in own.items():
        databases = {variable: value for variable, value in values.items() if "hush" in value}
        server = {"prefect": PREFECT_DATABASE, "mlflow": MLFLOW_DATABASE}.get(name)
        assert databases == ({server: DATABASES[server]} if server else {}), name
        assert "ALPRO_COMMAND_LINE" not in values
        assert values["NO_PROXY"] == "host,127.0.0.1,localhost"
        assert values["DO_NOT_TRACK"] == "1"
        clients = name not in ("devices", "mlflow")
        assert values.get("PREFECT_API_URL") == ("http://127.0.0.1:41/api" if clients else None), name
    workers = {
        "ALPRO_WORKSPACE": str(tmp_path),
        "ALPRO_TRACKING_URI": "http://127.0.0.1:42",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "3",
    }
    assert workers.items() <= own["worker-cpu"].items()
    assert workers.items() <= own["worker-gpu"].items()
    assert found["prefect"].settings == {
        PREFECT_DATABASE: DATABASES[PREFECT_DATABASE],
        "PREFECT_API_URL": "http://127.0.0.1:41/api",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:41,http://localhost:41",
        "PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:41/api",
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "86400",
    }
    assert found["mlflow"].settings == {
        MLFLOW_DATABASE: DATABASES[MLFLOW_DATABASE],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def test_prefect_knows_the_settings(programs, monkeypatch):
    """What it does not know it ignores without a word."""
    for name, value in programs()["prefect"].settings.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.server.analytics_enabled is False
    assert settings.server.api.cors_allowed_origins == "http://127.0.0.1:41,http://localhost:41"
    assert settings.server.ui.api_url == settings.api.url == "http://127.0.0.1:41/api"
    assert settings.server.services.cancellation_cleanup.cancelling_timeout_seconds == 86400
    assert settings.worker.query_seconds == 3


def test_without_databases_both_are_files_of_the_workspace(programs, tmp_path):
    found = programs()
    assert PREFECT_DATABASE not in found["prefect"].environment  # in PREFECT_HOME
    assert found["mlflow"].settings[MLFLOW_DATABASE] == f"sqlite:///{tmp_path}/mlflow.db"


def program(tmp_path: Path, *code: str) -> up.Program:
    (tmp_path / "up").mkdir(exist_ok=True)
    command = [sys.executable, "-c", "\n".join(("import signal, sys", *code))]
    return up.Program("one", command, tmp_path / "up" / "one.log", {"OWN": "1"})


def test_a_program_that_ends_is_started_again_but_not_for_ever(tmp_path, capsys):
    """Its log keeps what it printed before."""
    one = program(tmp_path, "print('first line'); print('why it ended'); sys.exit(3)")
    one.start()
    for _ in range(up.MAX_STARTS - 1):
        one.process.wait()
        one.keep()
    one.process.wait()
    with pytest.raises(up.Ended, match="one ended with status 3: why it ended; its log is"):
        one.keep()
    assert one.log.read_text().count("first line") == up.MAX_STARTS
    assert capsys.readouterr().err.count("it is started again") == up.MAX_STARTS - 1
    one.starts[0] -= up.STARTS_SECONDS  # long ago
    one.keep()
    one.process.wait()


def test_a_program_that_runs_is_left_alone(tmp_path):
    one = program(tmp_path, "signal.pause()").start()
    process = one.process
    one.keep()
    assert one.process is process
    one.end(60, Event())
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("seconds", "impatient"), [(0, False), (600, True)])
def test_a_program_that_does_not_end_is_killed(seconds, impatient, tmp_path):
    one = program(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); signal.pause()")
    one.start()
    wait_for(lambda: one.log.read_text().endswith("x\n"), 600)
    second = Event()
    if impatient:
        second.set()
    one.end(seconds, second)
    assert one.process.returncode == -signal.SIGKILL


def test_it_stops_workers_first_and_servers_last(tmp_path):
    ended = []
    machine = up.Machine(tmp_path, 1, 2)
    machine.servers = [SimpleNamespace(end=lambda *_, name=name: ended.append(name)) for name in ("prefect", "mlflow")]
    machine.workers = [SimpleNamespace(end=lambda *_, name=name: ended.append(name)) for name in up.POOLS]
    machine.stop()
    assert ended == ["cpu", "gpu", "mlflow", "prefect"]


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
        assert status_of(flows, **{"Content-Type": "application/json", "Host": "evil.example"}) == 403
        assert status_of(flows, **{"Content-Type": "application/json", "Origin": "http://evil.example"}) == 403
        assert status_of(flows, **{"Content-Type": "", "Origin": "http://evil.example"}) == 403
        assert call(machine.prefect, "POST", "/work_pools/filter", {})[1]["concurrency_limit"] == 1
        (automation,) = call(machine.prefect, "POST", "/automations/filter", {})
        assert automation["name"] == "alpro: runs without heartbeats"
        again = subprocess.run(machine.command, capture_output=True, text=True, cwd=ROOT)
        assert (again.returncode, again.stdout) == (1, "")
        assert f"error: alpro up already runs in {tmp_path / 'w'}" in again.stderr

        refused = machine.deploy("render-sample/render-sample", config="nowhere.toml")
        assert "nowhere.toml: no such configuration file" in refused["state"]["message"]

        # Ctrl-C while a model trains.
        long = machine.start("train-prompter/train-prompter", config=TINY, changes=LONG)
        trained = tmp_path / "w" / "artifacts" / "train_prompter"
        wait_for(lambda: list(trained.glob("*/metrics.jsonl")), 600, machine.check)
        processes = psutil.Process(machine.process.pid).children(recursive=True)
        assert len(processes) >= 6
        machine.process.send_signal(signal.SIGINT)
        assert machine.process.wait(300) == 0
        assert machine.output().splitlines()[-1] == "stopped"
        assert [process for process in processes if process.is_running()] == []
        assert list(trained.glob("*/checkpoints/step-*"))
    assert state_of(tmp_path / "w", long) == "AwaitingRetry"  # the next `alpro up` continues it
    assert mlflow_running(tmp_path / "w") == 0


def state_of(workspace: Path, run: str) -> str:
    with sqlite3.connect(workspace / "prefect" / "prefect.db") as database:
        ((state,),) = database.execute("select state_name from flow_run where id = ?", (run,)).fetchall()
    return state


def mlflow_running(workspace: Path) -> int:
    with sqlite3.connect(workspace / "mlflow.db") as database:
        return database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0]


class Training:
    """The training of the prompter in a workspace, which is never done."""

    def __init__(self, workspace: Path):
        self.folder = workspace / "artifacts" / "train_prompter"

    def step(self) -> int:
        """The last step in its metrics; 0 before the first."""
        lines = [line for file in self.folder.glob("*/metrics.jsonl") for line in file.read_text().splitlines()]
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def checkpoint(self) -> int:
        """The step of its newest checkpoint."""
        found = self.folder.glob("*/checkpoints/step-*")
        return max((int(path.name.removeprefix("step-")) for path in found if path.suffix == ""), default=0)

    def goes_on(self, check: Callable[[], None]) -> int:
        """Waits for some more steps; returns the last one."""
        before = self.step()
        wait_for(lambda: self.step() > before + 20, 600, check)
        return self.step()


def below(process: psutil.Process, *words: str) -> psutil.Process | None:
    """The first process below one with these words on its command line."""
    for one in process.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if set(words) <= set(one.cmdline()):
                return one
    return None


@pytest.mark.long
def test_whatever_is_killed_no_step_is_lost_and_all_goes_on(tmp_path, free_port):
    """A pipeline whose stages run as deployments: its worker, the other worker, the servers, `alpro up`."""
    workspace, ports = tmp_path / "w", (free_port(), free_port())
    training = Training(workspace)
    with Up(workspace, *ports) as machine:
        run = machine.start("alpro/alpro", config=TINY, changes=LONG)
        training.goes_on(machine.check)
        own = psutil.Process(machine.process.pid)
        for words in (
            ("alpro.pipeline.servers.worker", "gpu"),
            ("alpro.pipeline.servers.worker", "cpu"),
            ("alpro.pipeline.servers.prefect_server",),
            ("mlflow.server.fastapi_app:app",),  # the process of MLflow that has the port
            ("alpro.pipeline.execution.lifecycle",),
        ):
            step = training.goes_on(machine.check)
            victim = below(own, *words)
            victim.kill()
            if "alpro.pipeline.servers.worker" in words:
                wait_for(lambda step=step: training.checkpoint() >= step, 300, machine.check)
            wait_for(lambda victim=victim: not victim.is_running(), 600)
            wait_for(lambda words=words: below(own, *words), 300, machine.check)
            training.goes_on(machine.check)
        for name in ("worker-gpu", "worker-cpu", "prefect", "mlflow"):
            assert f"{name} ended with status" in machine.output()
        assert machine.output().count("it is started again") == 5

        step = training.goes_on(machine.check)
        processes = own.children(recursive=True)
        machine.process.kill()
        psutil.wait_procs(processes, 300)
        assert [process for process in processes if process.is_running()] == []
        assert training.checkpoint() >= step
    assert state_of(workspace, run) == "AwaitingRetry"

    with Up(workspace, *ports) as machine:
        training.goes_on(machine.check)  # nobody started it
        call(machine.prefect, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        assert wait_for(lambda: finished(machine.prefect, run), 300, machine.check)["state"]["type"] == "CANCELLED"
        runs = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED", "CANCELLING"]}}}}
        wait_for(lambda: call(machine.prefect, "POST", "/flow_runs/filter", runs) == [], 300, machine.check)
