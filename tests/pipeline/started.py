"""`alpro up` as a process, and requests to the servers that it started."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def call(address: str, method: str, path: str, body: dict | None = None) -> Any:
    """One request to a server; None where nothing answers."""
    request = urllib.request.Request(address + path, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, None if body is None else json.dumps(body).encode(), timeout=60) as answer:
            return json.loads(answer.read() or "null")
    except OSError:
        return None


def wait_for(condition: Callable[[], Any], seconds: float, check: Callable[[], None] = lambda: None) -> Any:
    """Waits until the condition returns something true, and returns it. `check` may raise what makes it impossible."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        check()
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


def finished(address: str, run: str) -> dict | None:
    """A flow run that has ended."""
    found = call(address, "GET", f"/flow_runs/{run}")
    return found if found and found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


class Up:
    """A context in which `alpro up` runs. At the end it is stopped, or killed with everything that it started."""

    def __init__(self, workspace: Path, prefect_port: int, mlflow_port: int, settings: Mapping[str, str] | None = None):
        self.prefect, self.mlflow = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
        self.command = [sys.executable, "-m", "alpro.pipeline.cli.main", "up", "--workspace", str(workspace)]
        self.command += ["--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)]
        workspace.parent.mkdir(parents=True, exist_ok=True)
        self.log = workspace.parent / "up.out"
        left_out = {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"}
        self.environment = {name: value for name, value in os.environ.items() if name not in left_out}
        self.environment |= {"ALPRO_CONFIGS": str(ROOT / "tests")} | dict(settings or {})

    def __enter__(self) -> "Up":
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.log.parent, env=self.environment
            )
        try:
            wait_for(lambda: "Ctrl-C stops everything" in self.output(), 1200, self.check)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(300)

    def output(self) -> str:
        return self.log.read_text()

    def check(self) -> None:
        assert self.process.poll() is None, self.output()

    def start(self, name: str, **parameters: Any) -> str:
        """Starts a run of a deployment; returns its id. On a busy machine a request may have no answer: it is repeated,
        and Prefect starts one run for one key."""
        body = {"parameters": parameters, "idempotency_key": uuid4().hex}
        known = wait_for(lambda: call(self.prefect, "GET", f"/deployments/name/{name}"), 300, self.check)
        path = f"/deployments/{known['id']}/create_flow_run"
        return wait_for(lambda: call(self.prefect, "POST", path, body), 300, self.check)["id"]

    def deploy(self, name: str, **parameters: Any) -> dict:
        """Runs a deployment to its end; returns its run."""
        run = self.start(name, **parameters)
        return wait_for(lambda: finished(self.prefect, run), 1800, self.check)
