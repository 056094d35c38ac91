"""`alpro up`: Prefect, MLflow and a worker for each work pool on this machine, until Ctrl-C.

Each program runs in a session of its own, with a log file in WORKSPACE/up. Both servers listen on 127.0.0.1 only. A
worker starts each run in one more session, and a run starts training in another: at the end, the runs have time to
write their checkpoints, then every process below this one is ended. If this process is killed, a guard does that.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any
from uuid import uuid4

import psutil

from alpro.pipeline.checks import MLFLOW_DATABASE, PREFECT_DATABASE, check, lock, problems, split
from alpro.pipeline.guard import EXIT_SECONDS, MARK, RUN_SECONDS
from alpro.pipeline.loopback import answers, request
from alpro.shards.storage import absolute

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
POOLS = ("cpu", "gpu")
START_SECONDS = 600.0  # the first start creates both databases
POLL_SECONDS = 0.25
DEVICES = "import torch; print(torch.cuda.device_count())"


class Ended(Exception):
    """A program that should run ended, or did not start. The message is one line."""


@dataclass
class Program:
    """A program that runs until it is ended."""

    name: str
    log: Path
    process: subprocess.Popen

    def check(self) -> None:
        """Raises Ended if it is not running."""
        status = self.process.poll()
        if status is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1].strip()}" if lines and status > 0 else ""  # a signal is not in its log
            raise Ended(f"{self.name} ended with status {status}{last}; its log is {self.log}")


def up(workspace: Path, prefect_port: int, mlflow_port: int, data: list[str] | None = None) -> int:
    """Runs everything until SIGINT, SIGTERM or SIGHUP. Returns the exit status.

    Args:
        workspace: absolute. Artifacts, reports, both databases (unless the environment names others) and logs.
        data: folders and URLs that runs may read besides the workspace.
    """
    if wrong := problems(workspace, {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}):
        print(*(f"error: {problem}" for problem in wrong), sep="\n", file=sys.stderr)
        return 1
    (workspace / "up").mkdir(parents=True, exist_ok=True)
    machine = Machine(workspace, prefect_port, mlflow_port, data or [])
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Programs that are started from here on have the default handlers, also if this one was started with `&`.
    before = {number: signal.signal(number, machine.request_stop) for number in handled}
    with lock(workspace):
        try:
            machine.start()
            machine.wait()
            status = 0
        except Ended as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = 1
        finally:
            machine.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
    print("stopped", flush=True)
    return status


def print_checks(workspace: Path, prefect_port: int, mlflow_port: int) -> int:
    """`alpro up --check`. Returns 0 if nothing is wrong, else 1."""
    status = 0
    for name, problem in check(workspace, {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}):
        print(f"error  {problem}" if problem else f"ok     {name}", flush=True)
        status = 1 if problem else status
    return status


@dataclass
class Machine:
    """The programs of one `alpro up`."""

    workspace: Path
    prefect_port: int
    mlflow_port: int
    data: list[str] = field(default_factory=list)  # folders and URLs that runs may read
    servers: list[Program] = field(default_factory=list)
    workers: list[Program] = field(default_factory=list)
    guards: list[Program] = field(default_factory=list)
    seen: set[psutil.Process] = field(default_factory=set)  # every process below this one, so far
    mark: str = field(default_factory=lambda: uuid4().hex)  # in the environment of every process below this one
    # Prefect's server ends with its standard input. This process and the guard have the other end.
    pipe: tuple[int, int] = field(default_factory=os.pipe)
    stopping: Event = field(default_factory=Event)
    impatient: Event = field(default_factory=Event)  # a second signal

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        (self.impatient if self.stopping.is_set() else self.stopping).set()

    def start(self) -> None:
        """Starts the servers, then the workers, and deploys the flows. Raises Ended."""
        adopt_orphans()
        (self.workspace / "prefect").mkdir(exist_ok=True)
        print("starting Prefect and MLflow", flush=True)
        module = [sys.executable, "-m"]
        self.guards.append(self.run("guard", [*module, "alpro.pipeline.guard", self.mark], {}))
        prefect = [*module, "alpro.pipeline.server", str(self.prefect_port)]
        store = ["--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1"]
        store += ["--no-serve-artifacts", "--default-artifact-root", (self.workspace / "mlflow").as_uri()]
        self.servers.append(self.run("prefect", prefect, self.prefect_settings()))
        self.servers.append(self.run("mlflow", [*module, "mlflow", "server", *store], self.mlflow_settings()))
        devices = self.finish("devices", [sys.executable, "-c", DEVICES], {})
        count = int(devices.split()[-1])
        self.until(lambda: answers(f"{self.prefect_url}/api/health"))
        self.until(lambda: answers(f"{self.mlflow_url}/health"))
        print("deploying", flush=True)
        settings = self.client_settings()
        pools = ["alpro.pipeline.pools", *(f"{pool}={limit}" for pool, limit in (("cpu", 0), ("gpu", max(count, 1))))]
        self.finish("pools", [*module, *pools], settings)
        self.finish("automations", [*module, "alpro.pipeline.automations"], settings)
        for pool in POOLS:
            command = [*module, "prefect", "worker", "start", "--pool", pool, "--type", "process"]
            self.workers.append(self.run(f"worker-{pool}", command, settings | self.limits()))
        deploy = [*module, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
        self.finish("deploy", deploy, settings)
        self.print_addresses(count)

    def print_addresses(self, devices: int) -> None:
        where = f"{devices} GPU{'s' if devices > 1 else ''}" if devices else "no GPU: models train on the CPU"
        slots = f"{max(devices, 1)} slot{'s' if devices > 1 else ''}"
        print(
            f"Prefect    {self.prefect_url}\n"
            f"MLflow     {self.mlflow_url}/#/experiments?workflowType=machine_learning\n"
            f"workspace  {self.workspace}\n"
            f"data       {', '.join(split(self.limits()['ALPRO_DATA']) or [str(self.workspace / 'data')])}\n"
            f"workers    cpu, gpu ({slots}; {where})\n"
            f"logs       {self.workspace / 'up'}\n"
            "Start a run on Prefect's page, or in another terminal:\n"
            f"  export PREFECT_API_URL={self.prefect_url}/api\n"
            "  prefect deployment run alpro/alpro -p config=sample --watch\n"
            "Ctrl-C stops everything; runs write a checkpoint first.",
            flush=True,
        )

    def client_settings(self) -> dict[str, str]:
        """For Prefect's commands and workers, and so for runs."""
        home = os.environ.get("PREFECT_HOME", str(self.workspace / "prefect"))
        query = os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3")  # Prefect's 15 s are for many workers
        return {
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": home,
            "PREFECT_WORKER_QUERY_SECONDS": query,
        }

    def limits(self) -> dict[str, str]:
        """For workers: what runs may read and write (access.py)."""
        data = [str(absolute(place)) for place in self.data]
        data += split(os.environ.get("ALPRO_DATA", ""))
        return {
            "ALPRO_WORKSPACE": str(self.workspace),
            "ALPRO_TRACKING_URI": self.mlflow_url,
            "ALPRO_DATA": ",".join(data),
        }

    def prefect_settings(self) -> dict[str, str]:
        """For Prefect's server. Other sites' pages must not call it: whoever may deploy may run commands."""
        origins = f"{self.prefect_url},http://localhost:{self.prefect_port}"
        settings = {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
            "PREFECT_SERVER_UI_API_URL": f"{self.prefect_url}/api",
        }
        database = os.environ.get(PREFECT_DATABASE)
        return self.client_settings() | settings | ({PREFECT_DATABASE: database} if database else {})

    def mlflow_settings(self) -> dict[str, str]:
        """For MLflow's server. The database's URL may contain a password, which a command line would show."""
        return {
            MLFLOW_DATABASE: os.environ.get(MLFLOW_DATABASE) or f"sqlite:///{self.workspace / 'mlflow.db'}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }

    def run(self, name: str, command: list[str], settings: dict[str, str]) -> Program:
        """Starts a program in a session of its own, with its output in a log file."""
        path = self.workspace / "up" / f"{name}.log"
        inputs = {"guard": subprocess.PIPE, "prefect": self.pipe[0]}  # the others have none
        with open(path, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=inputs.get(name, subprocess.DEVNULL),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=path.parent,
                env=environment() | settings | {MARK: self.mark},
                start_new_session=True,
                pass_fds=self.pipe[1:] if name == "guard" else (),
            )
        return Program(name, path, process)

    def finish(self, name: str, command: list[str], settings: dict[str, str]) -> str:
        """Runs a program to its end; returns its output. Raises Ended if it fails."""
        program = self.run(name, command, settings)
        self.until(lambda: program.process.poll() is not None)
        if program.process.returncode and not self.stopping.is_set():
            program.check()
        return program.log.read_text(errors="replace")

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits for a condition. Raises Ended after START_SECONDS, if a program ended, or if a signal came."""
        end = time.monotonic() + START_SECONDS
        while not condition():
            self.check()
            if self.stopping.wait(POLL_SECONDS):
                raise Ended("stopped before everything had started")
            if time.monotonic() > end:
                raise Ended(f"not everything started within {START_SECONDS:.0f} s; logs are in {self.workspace / 'up'}")

    def check(self) -> None:
        """Raises Ended if a server, a worker or the guard is not running."""
        for program in (*self.servers, *self.workers, *self.guards):
            program.check()

    def wait(self) -> None:
        """Waits for a signal. Raises Ended if a program ends before."""
        while not self.stopping.wait(POLL_SECONDS):
            self.check()

    def stop(self) -> None:
        """Ends everything: runs, then workers, then servers. Whatever is left is killed."""
        self.stopping.set()
        if self.workers:
            self.end_runs()
        for programs in (self.workers, self.servers, self.guards):  # a worker without its server does not end
            self.remember()
            for program in programs:
                program.process.terminate()
            self.wait_for(programs)
        self.remember()
        for process in self.seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.seen, EXIT_SECONDS)

    def end_runs(self) -> None:
        """Asks the runs to end and waits for their checkpoints. A worker that was asked to end would kill them, so the
        pools are paused in the meantime; the next start continues them."""
        for pool in POOLS:
            request(f"{self.prefect_url}/api/work_pools/{pool}", "PATCH", {"is_paused": True})
        asked: dict[psutil.Process, str] = {}
        end = time.monotonic() + RUN_SECONDS
        while True:
            runs = {run for worker in self.workers for run in children(worker.process.pid, recursive=False)}
            for run in runs - asked.keys():  # a worker may have started one more before the pause
                with suppress(psutil.Error):
                    asked[run] = run.environ().get("PREFECT__FLOW_RUN_ID", "")
                    run.terminate()
            self.remember()
            if not runs or time.monotonic() > end or self.impatient.wait(POLL_SECONDS):
                break
        crashed = {"type": "CRASHED", "message": "alpro up was stopped; start the run again to continue"}
        for run_id in filter(None, asked.values()):
            found = request(f"{self.prefect_url}/api/flow_runs/{run_id}", "GET")
            if found and found["state_type"] in ("PENDING", "RUNNING", "CANCELLING"):
                request(
                    f"{self.prefect_url}/api/flow_runs/{run_id}/set_state", "POST", {"state": crashed, "force": True}
                )

    def wait_for(self, programs: list[Program]) -> None:
        """Waits until programs that were asked to end have ended, at most EXIT_SECONDS."""
        end = time.monotonic() + EXIT_SECONDS
        while any(program.process.poll() is None for program in programs):
            if time.monotonic() > end or self.impatient.wait(POLL_SECONDS):
                return

    def remember(self) -> None:
        self.seen.update(children(os.getpid(), recursive=True))


def environment() -> dict[str, str]:
    """The environment of the programs: without the databases, of which only their server may know, and without what
    only holds for commands. Requests to this machine go past a proxy."""
    left_out = {PREFECT_DATABASE, MLFLOW_DATABASE, "PREFECT_API_URL", "ALPRO_COMMAND_LINE"}
    values = {name: value for name, value in os.environ.items() if name not in left_out}
    for name in ("NO_PROXY", "no_proxy"):
        values[name] = ",".join(filter(None, (values.get(name), "127.0.0.1", "localhost")))
    return values | {"DO_NOT_TRACK": "1"}


def children(pid: int, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def adopt_orphans() -> None:
    """On Linux, a process whose parent ends becomes a child of this one, so that it is found at the end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
