"""Prefect's and MLflow's own programs on this machine: a temporary server for a command, and `alpro up`.

Each program has a session of its own, so that Ctrl-C in a terminal reaches this process only, which ends them in order.
If this process is killed, the kernel ends them.
"""

import atexit
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from alpro.interpreter import interpreter
from alpro.stages.execution.interface import StageFailed
from alpro.stages.execution.lifecycle import signal_group, with_parent

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI")
START_SECONDS, POLL_SECONDS = 600.0, 0.1  # the first start creates the databases
GRACE_SECONDS = 60.0  # for workers, whose runs write checkpoints; Prefect gives them 30
PAST_PROXIES = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server answers a request."""
    try:
        with PAST_PROXIES.open(url, timeout=10) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


class Programs:
    """Programs that run until one of them ends. logs: the folder of their output; None: this terminal."""

    def __init__(self, logs: Path | None = None):
        self.logs, self.running = logs, dict[str, subprocess.Popen]()

    def start(self, name: str, module: list[str], environment: Mapping[str, str]) -> None:
        with open(self.logs / f"{name}.log", "ab") if self.logs else nullcontext() as log:
            self.running[name] = subprocess.Popen(
                with_parent(interpreter("-m", *module)),
                env=environment,
                cwd=self.logs,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Waits. Raises StageFailed if a program ends."""
        end = time.monotonic() + seconds
        while not condition():
            for name, program in self.running.items():
                if (status := program.poll()) is not None:
                    where = f"; its log is {self.logs / name}.log" if self.logs else ""
                    raise StageFailed(f"{name} ended with status {status}{where}")
            if time.monotonic() > end:
                raise StageFailed(
                    f"{', '.join(self.running)}: not everything started within {seconds:.0f} s"
                )
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """Ends the workers, whose runs report their end to the servers, and then these. A second signal ends everything
        at once."""
        with suppress(KeyboardInterrupt):
            for workers in (True, False):
                ending = [
                    program
                    for name, program in self.running.items()
                    if name.startswith("worker") == workers
                ]
                for program in ending:
                    program.terminate()
                for program in ending:
                    with suppress(subprocess.TimeoutExpired):
                        program.wait(GRACE_SECONDS)
        for program in self.running.values():
            signal_group(program.pid, signal.SIGKILL)
            program.wait()


def start_temporary_server() -> Callable[[], None]:
    """Starts the Prefect server of a command, which ends with it, unless PREFECT_API_URL names one. Returns a function
    that waits until it answers. Call before Prefect is imported, which reads its environment then.

    Prefect starts one by itself, too, but only when its first client asks, and in the process group of the command,
    where Ctrl-C ends it before the flow's state is reported. This one starts while the command imports its modules.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    starting = FileLock(
        Path(os.environ["PREFECT_HOME"]) / "starting.lock"
    )  # two would create the database at once
    starting.acquire()
    app = [
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    environment = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    server = Programs()
    server.start("Prefect's server", app, os.environ | environment | guarded(address))
    atexit.register(server.end)
    os.environ["PREFECT_API_URL"] = f"{address}/api"

    def wait() -> None:
        server.until(lambda: answers(f"{address}/api/health"))
        starting.release()

    return wait


def guarded(address: str, *more: str) -> dict[str, str]:
    """Settings of a Prefect server, to which pages of other addresses than these must not send: whoever may deploy may
    run commands."""
    return {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join([address, *more]),
    }


@contextmanager
def programs(logs: Path) -> Iterator[Programs]:
    """Programs that end at the end of the body."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, programs would too
    logs.mkdir(exist_ok=True)
    started = Programs(logs)
    try:
        yield started
    finally:
        started.end()


def up(workspace: Path, prefect_port: int, mlflow_port: int) -> None:
    """Runs a Prefect server, an MLflow server and a worker for each work pool until SIGINT or SIGTERM. Raises
    StageFailed if one of them ends; the systemd units in docs/cluster start them again.

    workspace: absolute. Artifacts, reports, logs, and both databases unless the environment names others.
    """
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    common = {name: value for name, value in os.environ.items() if name not in DATABASES}
    common |= {
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_API_URL": f"{prefect}/api",
        "DO_NOT_TRACK": "1",
    }
    common |= {"PREFECT_WORKER_QUERY_SECONDS": "3"} | dict.fromkeys(
        ("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"
    )
    server = common | guarded(prefect, f"http://localhost:{prefect_port}")
    server |= {
        "PREFECT_SERVER_UI_API_URL": f"{prefect}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{workspace / 'mlflow.db'}",
    }
    server |= {name: os.environ[name] for name in DATABASES if name in os.environ}
    worker = common | {"ALPRO_WORKSPACE": str(workspace), "ALPRO_TRACKING_URI": mlflow}
    worker.pop("ALPRO_COMMAND_LINE", None)
    address = ["--host", "127.0.0.1", "--port"]
    artifacts = [
        "--no-serve-artifacts",
        "--default-artifact-root",
        (workspace / "mlflow").as_uri(),
        "--workers",
        "1",
    ]
    with programs(workspace / "logs") as running:
        print("starting Prefect and MLflow", flush=True)
        running.start(
            "prefect", ["prefect", "server", "start", *address, str(prefect_port)], server
        )
        running.start(
            "mlflow", ["mlflow", "server", *address, str(mlflow_port), *artifacts], server
        )
        count = subprocess.check_output(
            interpreter("-c", "import torch; print(torch.cuda.device_count())")
        )
        gpus = max(int(count), 1)
        running.until(lambda: answers(f"{prefect}/api/health") and answers(f"{mlflow}/health"))
        for pool, limit in (("cpu", []), ("gpu", ["--limit", str(gpus)])):
            options = ["--pool", pool, "--type", "process", *limit]
            running.start(f"worker-{pool}", ["prefect", "worker", "start", *options], worker)
        words = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
        deploy = interpreter("-m", *words)

        def deployed() -> bool:  # not before the workers have created their pools
            with open(workspace / "logs" / "deploy.log", "ab") as log:
                return (
                    subprocess.call(
                        deploy, env=common, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                    == 0
                )

        running.until(deployed)
        print(
            f"Prefect    {prefect}\nMLflow     {mlflow}/#/experiments?workflowType=machine_learning\n"
            f"workspace  {workspace}\nlogs       {workspace / 'logs'}\n"
            f"workers    cpu; gpu, {gpus} run{'s' if gpus > 1 else ''} at a time\n"
            f"Start a run on Prefect's page, or in another terminal:\n  export PREFECT_API_URL={prefect}/api\n"
            "  prefect deployment run alpro/alpro -p config=sample --watch\nCtrl-C stops everything.",
            flush=True,
        )
        running.until(lambda: False, seconds=float("inf"))
