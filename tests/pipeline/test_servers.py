"""Real processes and servers: a killed `alpro run` leaves no artifact and no process, and the next
one continues; runs of deployments with `alpro up`, kills, a schedule, cancellation, and its end."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from filelock import Timeout

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.pipeline.config.load import CONFIGS, shipped
from alpro.pipeline.flows import servers
from alpro.stages import STAGES, WITH_MODEL
from alpro.stages.execution.interface import StageFailed
from alpro.stages.training.metrics import read_metrics
from tests.pipeline.conftest import ROOT, TINY, wait_for

LONG = ["train_prompter.phases.0.steps=100000", "resources.checkpoint_interval=600"]
SHORT = ["--set", "train_prompter.phases.0.steps=400", "--set", "resources.checkpoint_interval=0.2"]


def test_a_command_has_a_server_of_its_own_unless_the_environment_names_one(tmp_path, monkeypatch):
    """One that ends is an error; the command ends it, and another command meanwhile creates no
    database."""
    commands = list[list[str]]()
    processes = list[subprocess.Popen]()
    popen = subprocess.Popen
    programs = ["import signal; signal.pause()", "raise SystemExit(3)"]

    def start(command: list[str], **options: Any) -> subprocess.Popen:
        assert options["start_new_session"]
        assert options["env"]["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
        commands.append(command)
        processes.append(popen([sys.executable, "-c", programs[(len(commands) - 1) % 2]]))
        return processes[-1]

    atexit = []
    started = servers.FileLock(tmp_path / "starting.lock")
    monkeypatch.setattr(os, "environ", os.environ | {"PREFECT_API_URL": "http://host/api"})
    monkeypatch.setattr(servers.subprocess, "Popen", start)
    monkeypatch.setattr(servers, "GRACE_SECONDS", 0)
    monkeypatch.setattr(servers.atexit, "register", atexit.append)
    monkeypatch.setattr(
        servers, "answers", lambda url: url.startswith("http://127") and len(commands) == 1
    )
    checked: list[str] = []
    monkeypatch.setattr(servers, "check_server", checked.append)
    servers.start_temporary_server()()
    assert (commands, checked) == ([], ["http://host/api"])
    os.environ |= {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": ""}
    wait = servers.start_temporary_server()
    port = commands[0][commands[0].index("--port") + 1]
    assert os.environ["PREFECT_API_URL"] == f"http://127.0.0.1:{port}/api"
    with pytest.raises(Timeout):
        started.acquire(blocking=False)
    wait()
    started.acquire(blocking=False)
    started.release()
    del os.environ["PREFECT_API_URL"]
    failing = servers.start_temporary_server()
    with pytest.raises(StageFailed, match="status 3"):
        failing()
    both = servers.Programs()
    for name in ("one", "two"):
        both.start(name, [], {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"})
    with pytest.raises(StageFailed, match="two ended with status 3"):
        both.until(lambda: False, seconds=60)
    for end in (*atexit, both.end):
        end()
    assert all(
        program.returncode is not None for program in processes
    )  # waited for: none is a zombie


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """start(workspace, *arguments): `alpro run train_prompter` on the tiny pipeline, in a process
    group of its own, as a terminal starts it, whose Ctrl-C goes to the whole group."""
    started = []

    def run(workspace: Path, *arguments: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "alpro.pipeline.cli.main",
            "run",
            "train_prompter",
            "--config",
            TINY,
            *SHORT,
        ]
        command += ["--workspace", str(workspace), *arguments]
        # A shell that starts the tests in the background has them ignore Ctrl-C, and their children
        # with them.
        enable = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        options = {
            "stderr": subprocess.PIPE,
            "text": True,
            "preexec_fn": enable,
            "start_new_session": True,
        }
        started.append(
            subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)
        )
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stages_of(folder: Path) -> list[psutil.Process]:
    """The processes of stages of a workspace or of an artifact."""
    found = [(one, " ".join(one.info["cmdline"] or ())) for one in psutil.process_iter(["cmdline"])]
    return [one for one, line in found if "execution.run_stage" in line and str(folder) in line]


def servers_of(workspace: Path) -> list[psutil.Process]:
    """The temporary servers of a workspace."""
    found = [
        one
        for one in psutil.process_iter(["cmdline", "environ"])
        if "uvicorn" in (one.info["cmdline"] or ())
    ]
    return [
        one
        for one in found
        if (one.info["environ"] or {}).get("PREFECT_HOME") == str(workspace / "prefect")
    ]


def rows(database: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(query)]


@pytest.mark.parametrize(
    ("proxies", "is_needed"),
    [
        ({}, False),
        ({"https_proxy": "http://proxy:3128"}, False),  # Prefect is at http://
        ({"http_proxy": "http://proxy:3128"}, True),
        ({"ALL_PROXY": "socks5://proxy:1080"}, True),
    ],
)
def test_a_terminal_with_a_proxy_is_told_to_reach_this_machine(proxies, is_needed, monkeypatch):
    monkeypatch.setattr(os, "environ", proxies)
    assert ("export NO_PROXY=" in servers.proxy_line()) is is_needed


def test_clients_take_a_socks_proxy():
    for scheme in ("socks5", "socks5h"):
        # ImportError without its package.
        with httpx.Client(proxy=f"{scheme}://proxy:1080") as client:
            assert not client.is_closed


def test_a_named_server_that_does_not_answer_is_a_mistake_without_its_password(free_port):
    port = free_port()
    for address in (f"http://me:hush@127.0.0.1:{port}/api", "127.0.0.1/api"):
        with pytest.raises(InputError, match="PREFECT_API_URL") as raised:
            servers.check_server(address)
        assert "hush" not in str(raised.value)


def test_a_program_imports_nothing_from_the_current_folder_and_needs_a_folder_of_logs(
    tmp_path, monkeypatch, interruptible
):
    started = []
    monkeypatch.setattr(
        servers.subprocess, "Popen", lambda command, **options: started.append(options)
    )
    servers.Programs(tmp_path).start("mlflow", ["mlflow"], {"UVICORN_APP_DIR": "."})
    options = started[0]
    assert options["cwd"] == tmp_path
    # A command without a folder of logs: Prefect would read settings in the current one.
    servers.Programs().start("prefect", ["prefect"], {"PYTHONPATH": "."})
    assert Path(started[1]["cwd"], "os.py").is_file()
    assert started[1]["env"]["PYTHONPATH"] == str(Path.cwd())
    # uvicorn would put the current folder first on its path.
    assert Path(options["env"]["UVICORN_APP_DIR"], "os.py").is_file()

    (tmp_path / "file").touch()
    for read_only in (Path("/proc/logs"), tmp_path / "file" / "logs"):
        with pytest.raises(InputError, match=str(read_only)), servers.programs(read_only):
            pass

    (log := tmp_path / "prefect.log").mkdir()
    with pytest.raises(InputError, match=str(log)):
        servers.Programs(tmp_path).start("prefect", ["prefect"], {})


def test_the_log_of_a_program_that_fails_stays_also_in_a_temporary_folder(tmp_path):
    (tmp_path / "logs").touch()  # where the folder would be
    with pytest.raises(StageFailed), servers.log_folder(tmp_path) as folder:
        raise StageFailed("mlflow ended with status 1")
    assert tmp_path not in folder.parents
    folder.rmdir()


@pytest.mark.long
@pytest.mark.parametrize(
    "how", ["training process", "pipeline", "pipeline of two ranks", "ctrl-c", "all"]
)
def test_a_killed_stage_leaves_no_artifact_and_continues(how, start, tmp_path):
    process = start(tmp_path, *(["--set", "resources.processes=2"] if "ranks" in how else []))
    wait_for(lambda: list(tmp_path.glob("artifacts/train_prompter/*/checkpoints/step-*")))
    (folder,) = tmp_path.glob("artifacts/train_prompter/*/")
    (server,) = servers_of(tmp_path)
    assert os.getsid(server.pid) == server.pid  # out of the reach of a terminal's Ctrl-C
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "all":  # as systemd or a batch system ends a job
        for one in (server, psutil.Process(process.pid), *stages_of(folder)):
            with suppress(psutil.NoSuchProcess):  # the pipeline has ended it
                one.terminate()
    elif how == "training process":  # not one that loads its data
        (leader,) = (one for one in stages_of(folder) if os.getsid(one.pid) == one.pid)
        leader.kill()
    else:
        process.kill()
    assert process.wait(600) != 0
    if how in ("ctrl-c", "all"):
        assert process.returncode == (130 if how == "ctrl-c" else 143)
        *progress, last = process.stderr.read().splitlines()
        assert last == "stopped; run the same command again to continue"
        assert not [line for line in progress if "Traceback" in line or "ERROR" in line]
        # The server was there to the end, unless it received the signal: it has the final state of
        # the flow.
        assert how == "all" or rows(
            tmp_path / "prefect/prefect.db", "select state_type from flow_run"
        ) == ["CRASHED"]
        unfinished = rows(
            tmp_path / "mlflow.db", "select status from runs where status != 'FINISHED'"
        )
        assert unfinished == ["KILLED", "KILLED"]  # the pipeline and the stage
        assert not servers_of(tmp_path)
    wait_for(lambda: not stages_of(folder) and not servers_of(tmp_path))  # orphans end
    assert read_record(folder) is None
    reached = max(int(p.name.removeprefix("step-")) for p in folder.glob("checkpoints/step-*"))

    again = start(tmp_path)
    _, output = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert f"continuing from step {reached} of 400" in output
    assert read_record(folder) is not None
    steps = [
        line["step"] for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line
    ]
    assert steps == list(range(2, 401, 2))


class Machine:
    """A running `alpro up` in a workspace."""

    def __init__(self, workspace: Path, ports: tuple[int, int]):
        self.workspace = workspace
        self.api = f"http://127.0.0.1:{ports[0]}/api"
        self.log = workspace / "up.out"
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = own | {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(workspace / "client"),
        }
        command = [
            sys.executable,
            "-m",
            "alpro.pipeline.cli.main",
            "up",
            "--workspace",
            str(workspace),
        ]
        command += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=own | {"OMP_NUM_THREADS": "1"}
            )
        wait_for(lambda: "Ctrl-C stops everything" in self.log.read_text(), 1200, self.check)
        self.programs = psutil.Process(self.process.pid).children(recursive=True)

    def check(self) -> None:
        assert self.process.poll() is None, self.log.read_text()

    def prefect(self, *words: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *changes: str) -> str:
        """Starts a run of a deployment; returns its id."""
        values = ("-p", f"config={TINY}", "-p", f"changes={json.dumps(changes)}")
        return re.findall(
            r"UUID: (\S+)", self.prefect("deployment", "run", f"alpro/{name}", *values)
        )[0]

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api, httpx_settings={"timeout": 120})

    def ended(self, run: str) -> Any:
        """The final state of a run."""
        with self.client() as client:
            wait_for(
                lambda: (state := client.read_flow_run(run).state) and state.is_final(),
                1800,
                self.check,
            )
            return client.read_flow_run(run).state

    def kill_worker(self) -> None:
        """Kills that of the pool `gpu`; `alpro up` and the worker's runs end with it."""
        (worker,) = (
            one
            for one in self.programs
            if one.is_running() and {"worker", "gpu"} <= set(one.cmdline())
        )
        runs = worker.children(recursive=True)
        worker.kill()
        assert self.process.wait(300) == 1
        assert psutil.wait_procs(runs, 300)[1] == []

    def step(self) -> int:
        """The last step of the training of the prompter; 0 before the first."""
        files = self.workspace.glob("artifacts/train_prompter/*/metrics.jsonl")
        return max((line["step"] for file in files for line in read_metrics(file)), default=0)

    def trains(self) -> int:
        before = self.step()
        wait_for(lambda: self.step() > before, 1200, self.check)
        return self.step()

    def checkpoint(self) -> int:
        found = self.workspace.glob("artifacts/train_prompter/*/checkpoints/step-*")
        return max(
            (int(path.name.removeprefix("step-")) for path in found if path.suffix == ""), default=0
        )

    def end(self, number: signal.Signals, status: int) -> None:
        """Ends `alpro up`; nothing is left behind."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        everything = {*self.programs, *children, *stages_of(self.workspace)}
        self.process.send_signal(number)
        assert self.process.wait(300) == status
        assert psutil.wait_procs(everything, 120)[1] == []


@pytest.fixture
def machine(tmp_path, free_port) -> Iterator[Callable[[], Machine]]:
    """machine(): `alpro up` in one workspace, with the same ports each time."""
    ports = (free_port(), free_port())
    started = []
    yield lambda: started.append(Machine(tmp_path, ports)) or started[-1]
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.mark.long
def test_deployments_through_two_pools_kills_and_the_end(machine, tmp_path):
    first = machine()
    for kind in ("application/json", "text/plain"):
        evil = {"Content-Type": kind, "Origin": "http://evil.example"}
        answer = httpx.post(
            f"{first.api}/flows/", content=b'{"name": "evil"}', headers=evil, timeout=60
        )
        assert answer.status_code == 403

    # A pipeline in the pool `cpu`, whose steps with a model are runs in `gpu`.
    run = first.start("alpro")
    assert first.ended(run).is_completed()
    with first.client() as client:
        runs = client.read_flow_runs()
        pools = {one.work_pool_name for one in runs if one.id != client.read_flow_run(run).id}
        assert pools == {"gpu"}
    assert len(runs) == 8
    assert len(list(tmp_path.glob("artifacts/*/*/artifact.json"))) == 12

    # A mistake is one line.
    state = first.ended(first.start("pretrain", "pretrain.lrr=1"))
    assert state.is_failed()
    assert "pretrain.lrr" in state.message

    # A schedule, as in docs/operate.md, every minute.
    pool = (
        "--pool",
        "cpu",
        "--cron",
        "* * * * *",
        "--param",
        f"config={TINY}",
        "--param",
        "stage=build_vocabulary",
    )
    first.prefect("deploy", "alpro.pipeline.flows.flow:alpro", "--name", "nightly", *pool)

    def scheduled() -> bool:
        with first.client() as client:
            found = client.read_flow_runs()
        return any(one.auto_scheduled and one.state and one.state.is_completed() for one in found)

    wait_for(scheduled, 900, first.check)
    first.prefect("deployment", "delete", "alpro/nightly")

    # A run that is cancelled leaves a checkpoint and no process.
    run = first.start("alpro", *LONG)
    step = first.trains()
    first.prefect("flow-run", "cancel", run)
    assert first.ended(run).is_cancelled()
    wait_for(lambda: not stages_of(tmp_path), 300, first.check)
    assert first.checkpoint() >= step

    # A worker that is killed ends its run with a checkpoint, and `alpro up` with it.
    run = first.start("train_prompter", *LONG)
    step = first.trains()
    first.kill_worker()
    assert "worker-gpu" in first.log.read_text().splitlines()[-1]
    wait_for(lambda: not stages_of(tmp_path), 300)
    reached = first.checkpoint()
    assert reached >= step

    # The same deployment run again continues; Ctrl-C leaves nothing behind.
    second = machine()
    second.start("train_prompter", *LONG)
    wait_for(lambda: second.step() > reached, 1200, second.check)
    log = (tmp_path / "logs" / "worker-gpu.log").read_text()
    assert int(re.findall(r"continuing from step (\d+) of 100000", log)[-1]) == reached
    second.end(signal.SIGINT, 130)
    assert second.checkpoint() >= reached

    # A worker that is killed while a run of it starts leaves the only slot of `gpu` to the next
    # run.
    third = machine()
    with third.client() as client:
        run = third.start("train_prompter", *LONG)
        wait_for(
            lambda: client.read_flow_run(run).state.name not in ("Scheduled", "Late"),
            300,
            third.check,
        )
    third.kill_worker()

    # If `alpro up` is killed, the kernel ends the rest.
    fourth = machine()
    fourth.start("train_prompter", *LONG)
    fourth.trains()
    fourth.end(signal.SIGKILL, -signal.SIGKILL)


def test_deployments_are_the_flow_with_each_stage_in_the_pool_of_its_kind():
    """A form whose fields nobody touched changes nothing; prefect.yaml that `alpro up` reads is the
    top one."""
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools import validate

    from alpro.pipeline.flows import flow

    text = (ROOT / "prefect.yaml").read_text()
    assert servers.DEPLOYMENTS.read_text() == text
    found = {one["name"]: one for one in yaml.safe_load(text)["deployments"]}
    assert found.keys() == {"alpro", *STAGES}
    for name, one in found.items():
        assert one["entrypoint"] == "alpro.pipeline.flows.flow:alpro"
        assert one["work_pool"]["name"] == ("gpu" if name in WITH_MODEL else "cpu")
        assert one.get("parameters", {}) == ({} if name == "alpro" else {"stage": name})
        assert one["description"]
    schema = parameter_schema(flow.alpro).model_dump()
    shown = schema["properties"]
    assert {name: field["default"] for name, field in shown.items()} == {
        "config": "sample",
        "data": "",
        "changes": [],
        "stage": "",
        "parent_run": "",
    }
    # Choices in the form: a configuration that ships or a file, and a stage.
    shipped_or_file = shown["config"]["anyOf"]
    assert set(shipped_or_file[0]["enum"]) == set(shipped(CONFIGS))
    assert shown["stage"]["enum"] == ["", *STAGES]
    assert all(field["description"] for field in shown.values())
    assert validate({"changes": "pretrain.lr=1e-4"}, schema)
