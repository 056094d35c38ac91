"""`alpro up`: the programs of Prefect and MLflow on this machine, until Ctrl-C.

A Prefect server, an MLflow server and a worker for each work pool, each with a log file in WORKSPACE/logs. If one of
them ends, all end; the systemd units in docs/cluster start them again. If this process is killed, the
kernel ends the others.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alpro.pipeline.flows.server import answers
from alpro.stages.execution.interface import StageFailed
from alpro.stages.execution.lifecycle import signal_group, with_parent

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
MODULE = [sys.executable, "-m"]
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI")
START_SECONDS, POLL_SECONDS = 600.0, 0.25  # the first start creates both databases
GRACE_SECONDS = 60.0  # for workers, whose runs write checkpoints; Prefect gives them 30


def up(workspace: Path, prefect_port: int, mlflow_port: int) -> None:
    """Runs everything until SIGINT or SIGTERM. Raises StageFailed if a program ends.

    workspace: absolute. Artifacts, reports, logs, and both databases unless the environment names others.
    """
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    for name in ("prefect", "logs"):
        (workspace / name).mkdir(exist_ok=True)
    common = {"PREFECT_HOME": str(workspace / "prefect"), "PREFECT_API_URL": f"{prefect}/api", "DO_NOT_TRACK": "1"}
    common |= {
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    common = {name: value for name, value in os.environ.items() if name not in DATABASES} | common
    server = common | {name: os.environ[name] for name in DATABASES if name in os.environ}
    server |= {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Whoever may deploy may run commands: pages of other sites must not.
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{prefect},http://localhost:{prefect_port}",
        "PREFECT_SERVER_UI_API_URL": f"{prefect}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    server.setdefault("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    worker = common | {"ALPRO_WORKSPACE": str(workspace), "ALPRO_TRACKING_URI": mlflow}
    worker.pop("ALPRO_COMMAND_LINE", None)
    address = ["--host", "127.0.0.1", "--port"]
    artifacts = ["--no-serve-artifacts", "--default-artifact-root", (workspace / "mlflow").as_uri(), "--workers", "1"]
    with programs(workspace / "logs") as start:
        print("starting Prefect and MLflow", flush=True)
        start("prefect", ["prefect", "server", "start", *address, str(prefect_port)], server)
        start("mlflow", ["mlflow", "server", *address, str(mlflow_port), *artifacts], server)
        gpus = int(subprocess.check_output([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]))
        start.until(lambda: answers(f"{prefect}/api/health") and answers(f"{mlflow}/health"))
        for pool, limit in (("cpu", []), ("gpu", ["--limit", str(max(gpus, 1))])):
            start(f"worker-{pool}", ["prefect", "worker", "start", "--pool", pool, "--type", "process", *limit], worker)
        deploy = [*MODULE, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]

        def deployed() -> bool:  # not before the workers have created their pools
            with open(workspace / "logs" / "deploy.log", "ab") as log:
                return subprocess.call(deploy, env=common, stdin=subprocess.DEVNULL, stdout=log, stderr=log) == 0

        start.until(deployed)
        print(
            f"Prefect    {prefect}\nMLflow     {mlflow}/#/experiments?workflowType=machine_learning\n"
            f"workspace  {workspace}\nlogs       {workspace / 'logs'}\n"
            f"workers    cpu; gpu, {max(gpus, 1)} run{'s' if gpus > 1 else ''} at a time\n"
            f"Start a run on Prefect's page, or in another terminal:\n  export PREFECT_API_URL={prefect}/api\n"
            "  prefect deployment run alpro/alpro -p config=sample --watch\nCtrl-C stops everything.",
            flush=True,
        )
        start.until(lambda: False, seconds=float("inf"))


class Programs:
    """Programs that run until one of them ends."""

    def __init__(self, logs: Path):
        self.logs, self.running = logs, dict[str, subprocess.Popen]()

    def __call__(self, name: str, module: list[str], environment: dict[str, str]) -> None:
        """Starts a program, in a session of its own: Ctrl-C in a terminal reaches this process only."""
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                with_parent([*MODULE, *module]),
                env=environment,
                cwd=self.logs,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            for name, program in self.running.items():
                if (status := program.poll()) is not None:
                    raise StageFailed(f"{name} ended with status {status}; its log is {self.logs / name}.log")
            if time.monotonic() > end:
                raise StageFailed(f"not everything started within {seconds:.0f} s; logs are in {self.logs}")
            time.sleep(POLL_SECONDS)


@contextmanager
def programs(logs: Path) -> Iterator[Programs]:
    """Ends the programs at the end of the body, the last first: runs report their end to the servers. SIGTERM ends the
    body as Ctrl-C does; a second signal ends everything at once."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore Ctrl-C, and so would the programs
        signal.signal(number, signal.default_int_handler)
    started = Programs(logs)
    try:
        yield started
    finally:
        with suppress(KeyboardInterrupt):
            for group in (("worker-cpu", "worker-gpu"), ("mlflow", "prefect")):
                ending = [started.running[name] for name in group if name in started.running]
                for program in ending:
                    program.terminate()
                for program in ending:
                    with suppress(subprocess.TimeoutExpired):
                        program.wait(GRACE_SECONDS)
        for program in started.running.values():
            signal_group(program.pid, signal.SIGKILL)
            program.wait()
