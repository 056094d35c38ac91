"""`alpro up`: Prefect, MLflow and a worker for each work pool on this machine, until Ctrl-C.

Each program runs in a session of its own, with a log file in WORKSPACE/up. Both servers listen on 127.0.0.1 only. A
worker or server that ends is started again. At the end, the workers end first: their runs write checkpoints and are
scheduled again, for the next `alpro up`. If this process is killed, all programs end by themselves in the same order
(lifecycle.py).
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from alpro.pipeline.execution.lifecycle import EXIT_SECONDS, WORKER_SECONDS
from alpro.pipeline.servers.checks import MLFLOW_DATABASE, PREFECT_DATABASE, lock
from alpro.pipeline.servers.temporary import answers

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
POOLS = ("cpu", "gpu")  # in the order in which their workers end: a pipeline in `cpu` cancels its stages in `gpu`
START_SECONDS = 600.0  # the first start creates both databases
POLL_SECONDS = 0.25
MAX_STARTS, STARTS_SECONDS = 4, 600.0  # a program that ends more often in this time is not started again
DEVICES = "import torch; print('devices', torch.cuda.device_count())"


class Ended(Exception):
    """A program that should run ended, or did not start. The message is one line."""


@dataclass
class Program:
    """A program of `alpro up`, with its log file, which older output stays in."""

    name: str
    command: list[str]
    log: Path
    settings: dict[str, str]
    stdin: int = subprocess.DEVNULL
    pass_fds: tuple[int, ...] = ()
    starts: list[float] = field(default_factory=list)
    process: subprocess.Popen = field(init=False)

    def start(self) -> "Program":
        self.starts.append(time.monotonic())
        with open(self.log, "ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {self.name}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                self.command,
                stdin=self.stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env=environment() | self.settings,
                start_new_session=True,
                pass_fds=self.pass_fds,
            )
        return self

    def check(self) -> None:
        """Raises Ended if it is not running."""
        status = self.process.poll()
        if status is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1].strip()}" if lines and status > 0 else ""  # a signal is not in its log
            raise Ended(f"{self.name} ended with status {status}{last}; its log is {self.log}")

    def keep(self) -> None:
        """Starts it again if it has ended. Raises Ended if that happens too often."""
        try:
            self.check()
        except Ended as error:
            if len(self.starts) >= MAX_STARTS and time.monotonic() - self.starts[-MAX_STARTS] < STARTS_SECONDS:
                raise
            print(f"{error}; it is started again", file=sys.stderr, flush=True)
            self.start()

    def end(self, seconds: float, impatient: Event) -> None:
        """Asks it to end and waits; kills it after `seconds` or if the user is impatient."""
        self.process.terminate()
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end and not impatient.wait(POLL_SECONDS):
            pass
        self.process.kill()
        self.process.wait()


def up(workspace: Path, prefect_port: int, mlflow_port: int) -> int:
    """Runs everything until SIGINT, SIGTERM or SIGHUP. Returns the exit status.

    Args:
        workspace: absolute. Artifacts, reports, both databases (unless the environment names others) and logs.
    """
    (workspace / "up").mkdir(exist_ok=True)
    machine = Machine(workspace, prefect_port, mlflow_port)
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


@dataclass
class Machine:
    """The programs of one `alpro up`."""

    workspace: Path
    prefect_port: int
    mlflow_port: int
    servers: list[Program] = field(default_factory=list)
    workers: list[Program] = field(default_factory=list)
    # The standard input of the servers. This process and the workers have its other end, and so outlive them.
    pipe: tuple[int, int] = field(default_factory=os.pipe)
    # That of the workers. Only this process has its other end.
    workers_pipe: tuple[int, int] = field(default_factory=os.pipe)
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
        (self.workspace / "prefect").mkdir(exist_ok=True)
        print("starting Prefect and MLflow", flush=True)
        module = [sys.executable, "-m"]
        prefect = [*module, "alpro.pipeline.servers.prefect_server", str(self.prefect_port)]
        store = ["--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1"]
        store += ["--no-serve-artifacts", "--default-artifact-root", (self.workspace / "mlflow").as_uri()]
        mlflow = [*module, "alpro.pipeline.execution.lifecycle", *module, "mlflow", "server", *store]
        for name, command, own in (
            ("prefect", prefect, self.prefect_settings()),
            ("mlflow", mlflow, self.mlflow_settings()),
        ):
            self.servers.append(self.program(name, command, own, self.pipe[0]).start())
        count = int(re.findall(r"devices (\d+)", self.finish("devices", [sys.executable, "-c", DEVICES], {}))[-1])
        self.until(lambda: answers(f"{self.prefect_url}/api/health"))
        self.until(lambda: answers(f"{self.mlflow_url}/health"))
        print("deploying", flush=True)
        settings = self.client_settings()
        slots = {"cpu": 0, "gpu": max(count, 1)}  # 0: no limit
        self.finish(
            "pools", [*module, "alpro.pipeline.servers.pools", *(f"{k}={n}" for k, n in slots.items())], settings
        )
        self.finish("automations", [*module, "alpro.pipeline.servers.automations"], settings)
        for pool in POOLS:
            command = [*module, "alpro.pipeline.servers.worker", pool, "--limit", "0"]  # the pool has the limit
            own = self.worker_settings()
            self.workers.append(
                self.program(f"worker-{pool}", command, own, self.workers_pipe[0], self.pipe[1:]).start()
            )
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
            f"workers    cpu, gpu ({slots}; {where})\n"
            f"logs       {self.workspace / 'up'}\n"
            "Start a run on Prefect's page, or in another terminal:\n"
            f"  export PREFECT_API_URL={self.prefect_url}/api\n"
            "  prefect deployment run alpro/alpro -p config=sample --watch\n"
            "Ctrl-C stops everything; runs write a checkpoint, and continue with the next alpro up.",
            flush=True,
        )

    def client_settings(self) -> dict[str, str]:
        """For Prefect's commands and workers, and so for runs."""
        home = os.environ.get("PREFECT_HOME", str(self.workspace / "prefect"))
        query = os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3")  # Prefect's 10 s are for many workers
        return {
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": home,
            "PREFECT_WORKER_QUERY_SECONDS": query,
        }

    def worker_settings(self) -> dict[str, str]:
        """For workers: where their runs write."""
        return self.client_settings() | {
            "ALPRO_WORKSPACE": str(self.workspace),
            "ALPRO_TRACKING_URI": self.mlflow_url,
        }

    def prefect_settings(self) -> dict[str, str]:
        """For Prefect's server. Other sites' pages must not call it: whoever may deploy may run commands."""
        origins = f"{self.prefect_url},http://localhost:{self.prefect_port}"
        settings = {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
            "PREFECT_SERVER_UI_API_URL": f"{self.prefect_url}/api",
            # Prefect would show a run as cancelled after 300 s although it still runs.
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "86400",
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

    def program(self, name: str, command: list[str], settings: dict[str, str], *streams: Any) -> Program:
        return Program(name, command, self.workspace / "up" / f"{name}.log", settings, *streams)

    def finish(self, name: str, command: list[str], settings: dict[str, str]) -> str:
        """Runs a program to its end; returns its log. Raises Ended if it fails."""
        program = self.program(name, command, settings).start()
        try:
            self.until(lambda: program.process.poll() is not None)
        finally:
            program.process.kill()
        if program.process.returncode:
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
        """Raises Ended if a program is not running."""
        for program in (*self.servers, *self.workers):
            program.check()

    def wait(self) -> None:
        """Keeps the programs running until a signal comes. Raises Ended if one ends again and again."""
        while not self.stopping.wait(POLL_SECONDS):
            for program in (*self.servers, *self.workers):
                program.keep()

    def stop(self) -> None:
        """Ends the workers with their runs, then the servers."""
        self.stopping.set()
        for program in self.workers:
            program.end(WORKER_SECONDS, self.impatient)
        for program in reversed(self.servers):
            program.end(EXIT_SECONDS, self.impatient)
        for number in (*self.pipe, *self.workers_pipe):
            os.close(number)


def environment() -> dict[str, str]:
    """The environment of the programs: without the databases, of which only their server may know, and without what
    only holds for commands. Requests to this machine go past a proxy."""
    left_out = {PREFECT_DATABASE, MLFLOW_DATABASE, "PREFECT_API_URL", "ALPRO_COMMAND_LINE"}
    values = {name: value for name, value in os.environ.items() if name not in left_out}
    for name in ("NO_PROXY", "no_proxy"):
        values[name] = ",".join(filter(None, (values.get(name), "127.0.0.1", "localhost")))
    return values | {"DO_NOT_TRACK": "1"}
