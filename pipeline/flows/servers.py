"""Prefect's and MLflow's own programs on this machine: a temporary server for a command, and `alpro
up`.

Each program has a session of its own, so that Ctrl-C in a terminal reaches this process only, which
ends them in order. If this process is killed, the kernel ends them.
"""

import atexit
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile, mkdtemp
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from filelock import FileLock

from alpro.environment import NEUTRAL_FOLDER, reach_this_machine
from alpro.errors import InputError
from alpro.interpreter import interpreter
from alpro.locks import acquire
from alpro.stages.execution.interface import StageFailed
from alpro.stages.execution.lifecycle import signal_group, with_parent

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI")
# the first start creates the databases
START_SECONDS = 600.0
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # for workers, whose runs write checkpoints; Prefect gives them 30
PAST_PROXIES = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server answers a request."""
    # A proxy would look for 127.0.0.1 on its own machine.
    try:
        with PAST_PROXIES.open(url, timeout=10) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


class Programs:
    """Programs that run until one of them ends. logs: the folder of their output; None: this
    terminal."""

    def __init__(self, logs: Path | None = None):
        self.logs = logs
        self.running = dict[str, subprocess.Popen]()

    def start(self, name: str, module: list[str], environment: Mapping[str, str]) -> None:
        """Starts `python -m MODULE...`. uvicorn, which all servers run on, is kept from importing
        from the current folder, which it would put first on its path, and Prefect from reading
        settings there."""
        variables = {**environment, "UVICORN_APP_DIR": NEUTRAL_FOLDER}
        if "PYTHONPATH" in variables:
            folders = [path for path in variables["PYTHONPATH"].split(os.pathsep) if path]
            variables["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
        with self.log_of(name) as log:
            self.running[name] = subprocess.Popen(
                with_parent(interpreter("-m", *module)),
                env=variables,
                cwd=self.logs or NEUTRAL_FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log_of(self, name: str) -> AbstractContextManager[Any]:
        """The open log of a program. Raises InputError if it cannot be written, as one of another
        user."""
        if not self.logs:
            return nullcontext()

        file = self.logs / f"{name}.log"
        try:
            return open(file, "ab")
        except OSError as error:
            raise InputError(
                f"{file}: {error.strerror}; {name} writes its log there: make it writable, or "
                "remove it"
            ) from error

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
        """Ends the workers, whose runs report their end to the servers, and then these. A second
        signal ends everything at once."""
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

        # Also what a program has started, which may live longer.
        for program in self.running.values():
            signal_group(program.pid, signal.SIGKILL)
            program.wait()


def start_temporary_server() -> Callable[[], None]:
    """Starts the Prefect server of a command, which ends with it, unless PREFECT_API_URL names one.
    Returns a function that waits until it answers. Call before Prefect is imported, which reads its
    environment then.

    Prefect starts one by itself, too, but only when its first client asks, and in the process group
    of the command, where Ctrl-C ends it before the flow's state is reported. This one starts while
    the command imports its modules. Raises InputError if the lock of the start cannot be taken.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        return lambda: check_server(named)

    # The kernel chooses a free port.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"

    # Two would create the database at once.
    starting = FileLock(Path(os.environ["PREFECT_HOME"]) / "starting.lock")
    acquire(starting)

    app = ["uvicorn", "--factory", "prefect.server.api.server:create_app"]
    options = ["--port", str(port), "--log-level", "error"]
    # As Prefect sets them for a server that it starts by itself (SubprocessASGIServer).
    settings = {
        "PREFECT_HOME": os.path.abspath(os.environ["PREFECT_HOME"]),  # noqa: PTH100 - a text
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }

    server = Programs()
    server.start("Prefect's server", [*app, *options], os.environ | settings | guarded(address))
    atexit.register(server.end)
    # For Prefect, which is imported next, and for the stages' processes.
    os.environ["PREFECT_API_URL"] = f"{address}/api"

    def wait() -> None:
        server.until(lambda: answers(f"{address}/api/health"))
        starting.release()

    return wait


def check_server(url: str) -> None:
    """Raises InputError if no server answers at the address in PREFECT_API_URL."""
    # Messages do not repeat the password that an address may have.
    place = urlsplit(url).netloc.rpartition("@")[2] or url
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except HTTPError:
        return  # it answers; Prefect knows how to log in
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # Prefect has settings of its own for certificates
        raise InputError(
            f"PREFECT_API_URL: no Prefect server answers at {place} ({reason}); start one with "
            f"`alpro up`, or unset "
            "the variable: a command then has a server of its own"
        ) from error


def guarded(address: str, *more: str) -> dict[str, str]:
    """Settings of a Prefect server, to which pages of other addresses than these must not send:
    whoever may deploy may run commands."""
    return {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join([address, *more]),
    }


@contextmanager
def log_folder(workspace: Path) -> Iterator[Path]:
    """The folder of the logs of programs, for the time of the body: that of a workspace, or a
    temporary one if the workspace can only be read. Raises InputError if nothing can be written
    anywhere."""
    logs = workspace / "logs"
    with ExitStack() as at_end:
        try:
            logs.mkdir(exist_ok=True)
            # A mode does not tell that a disk is full or mounted read-only.
            TemporaryFile(dir=logs).close()
        except OSError as error:
            logs = temporary_folder(f"{logs}: {error.strerror}")
            at_end.callback(rmtree, logs, ignore_errors=True)

        try:
            yield logs
        except StageFailed:
            # Its message names the log, which stays.
            at_end.pop_all()
            raise


def temporary_folder(reason: str) -> Path:
    """A new folder for logs. Raises InputError if there is none. reason: why it is needed."""
    try:
        return Path(mkdtemp(prefix="alpro-logs-"))
    except OSError as error:
        raise InputError(
            f"{reason}, and there is no folder for temporary files; set TMPDIR to one that can be "
            "written, for the server's log"
        ) from error


@contextmanager
def programs(logs: Path) -> Iterator[Programs]:
    """Programs that end at the end of the body. Raises InputError if the folder of their logs
    cannot be created."""
    # A shell's background jobs ignore Ctrl-C, and so would programs that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        logs.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{logs}: {error.strerror}; the servers write their logs there") from error

    started = Programs(logs)
    try:
        yield started
    finally:
        started.end()


def up(workspace: Path, prefect_port: int, mlflow_port: int) -> None:
    """Runs a Prefect server, an MLflow server and a worker for each work pool until SIGINT or
    SIGTERM. Raises StageFailed if one of them ends; the systemd units in docs/cluster start them
    again.

    workspace: absolute. Artifacts, reports, logs, and both databases unless the environment names
    others.
    """
    from alpro.pipeline.tracking.store import check_store, runs_page

    prefect = f"http://127.0.0.1:{prefect_port}"
    mlflow = f"http://127.0.0.1:{mlflow_port}"
    server, worker = environments(workspace, prefect, prefect_port, mlflow)
    address = ["--host", "127.0.0.1", "--port"]
    # Workers write artifacts to the folder; the server would pass every byte on.
    files = ["--no-serve-artifacts", "--default-artifact-root", (workspace / "mlflow").as_uri()]

    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:
        check_store(workspace)

    with programs(workspace / "logs") as running:
        say("starting Prefect and MLflow; the first start creates their databases, about a minute")
        running.start(
            "prefect", ["prefect", "server", "start", *address, str(prefect_port)], server
        )
        running.start(
            "mlflow",
            ["mlflow", "server", *address, str(mlflow_port), *files, "--workers", "1"],
            server,
        )

        # In a process of its own: CUDA must not be initialised in one that forks.
        count = subprocess.check_output(
            interpreter("-c", "import torch; print(torch.cuda.device_count())")
        )
        gpus = max(int(count), 1)

        running.until(lambda: answers(f"{prefect}/api/health"))
        say("Prefect answers; starting the workers, waiting for MLflow")
        for pool, limit in (("cpu", []), ("gpu", ["--limit", str(gpus)])):
            options = ["--pool", pool, "--type", "process", *limit]
            running.start(f"worker-{pool}", ["prefect", "worker", "start", *options], worker)

        running.until(lambda: answers(f"{mlflow}/health"))
        say("MLflow answers; registering the deployments once the workers have made their pools")
        running.until(lambda: deployed(workspace / "logs" / "deploy.log", worker))
        page = runs_page(mlflow)

        say(
            f"Prefect    {prefect}\nMLflow     {mlflow}{page}\n"
            f"workspace  {workspace}\nlogs       {workspace / 'logs'}\n"
            f"workers    cpu; gpu, {gpus} run{'s' if gpus > 1 else ''} at a time\n"
            f"Start a run on Prefect's page, or in another terminal:\n  export "
            f"PREFECT_API_URL={prefect}/api"
            f"{proxy_line()}\n"
            "  prefect deployment run alpro/alpro -p config=sample --watch\nCtrl-C stops "
            "everything."
        )
        running.until(lambda: False, seconds=float("inf"))


def environments(
    workspace: Path, prefect: str, prefect_port: int, mlflow: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The environments of the servers and of the workers of `alpro up`."""
    # Only the servers have the databases' addresses, which may contain passwords.
    common = {name: value for name, value in os.environ.items() if name not in DATABASES}
    common |= {
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "DO_NOT_TRACK": "1",
    }
    reach_this_machine(common)

    server = common | guarded(prefect, f"http://localhost:{prefect_port}")
    server |= {
        "PREFECT_SERVER_UI_API_URL": f"{prefect}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{workspace / 'mlflow.db'}",
    }
    server |= {name: os.environ[name] for name in DATABASES if name in os.environ}

    worker = common | {"ALPRO_WORKSPACE": str(workspace), "ALPRO_TRACKING_URI": mlflow}
    # The runs of a worker log to Prefect, not to this terminal.
    worker.pop("ALPRO_COMMAND_LINE", None)
    return server, worker


def deployed(log: Path, environment: Mapping[str, str]) -> bool:
    """Registers the deployments; returns whether that succeeded. It fails until the workers have
    made their pools."""
    # Without questions, which nobody would see in the log.
    words = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
    with open(log, "ab") as output:
        status = subprocess.call(
            interpreter("-m", *words),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return status == 0


def proxy_line() -> str:
    """What a terminal needs besides, in which a proxy is set: Prefect's own command would ask it
    for this machine."""
    proxies = urllib.request.getproxies().keys() & {"http", "all"}
    return "\n  export NO_PROXY=$NO_PROXY,127.0.0.1,localhost" if proxies else ""


def say(text: str) -> None:
    print(text, flush=True)
