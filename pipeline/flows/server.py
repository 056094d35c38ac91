"""The Prefect server of a command without PREFECT_API_URL. It ends with the command.

Prefect starts one by itself, too, but only when its first client asks, and in the process group of the command, where
Ctrl-C ends it before the flow's state is reported. This one starts while the command imports its modules.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException

from alpro.errors import InputError
from alpro.stages.execution.lifecycle import with_parent

START_SECONDS = 300.0  # it creates its database first
MAX_STARTS = 3  # if two commands create the database at the same time, one of them fails
POLL_SECONDS = 0.1
PAST_PROXIES = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server answers a request."""
    try:
        with PAST_PROXIES.open(url, timeout=10) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


class TemporaryServer:
    """A server in a process and a session of its own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.process = self._start(port)
        atexit.register(self.stop)
        # Prefect reads its environment when it is imported.
        os.environ["PREFECT_API_URL"] = f"{self.address}/api"

    def _start(self, port: int) -> subprocess.Popen:
        app = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--port", str(port)]
        ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        ephemeral |= {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        ephemeral |= {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}
        return subprocess.Popen(
            with_parent([sys.executable, "-m", *app, "--log-level", "error"]),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | ephemeral,
        )

    def wait(self) -> None:
        """Waits until the server answers. Raises InputError if it ends or does not answer in time."""
        starts, until = 1, time.monotonic() + START_SECONDS
        while not answers(f"{self.address}/api/health"):
            if (status := self.process.poll()) is not None:
                if starts == MAX_STARTS:
                    raise InputError(
                        f"Prefect's server ended with status {status}; PREFECT_SERVER_LOGGING_LEVEL=ERROR shows why"
                    )
                self.process, starts = self._start(int(self.address.rpartition(":")[2])), starts + 1
            if time.monotonic() > until:
                raise InputError(f"Prefect's server did not answer within {START_SECONDS:.0f} s; run again")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ends the server."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.environ.pop("PREFECT_API_URL", None)


def start_temporary_server() -> TemporaryServer | None:
    """The server of this command; None if the environment names one."""
    return None if os.environ.get("PREFECT_API_URL") else TemporaryServer()
