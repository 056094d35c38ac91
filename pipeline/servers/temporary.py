"""The Prefect server of a command without PREFECT_API_URL. It ends with the command."""

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

from alpro.errors import InputError
from alpro.log import log
from alpro.pipeline.servers.checks import PREFECT_DATABASE, check_sqlite

TEMPORARY = "ALPRO_TEMPORARY_SERVER"  # environment variable: the address of the server, for the command's processes
STARTUP_SECONDS = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
POLL_SECONDS = 0.1
MAX_STARTS = 3
EXIT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
PAST_PROXIES = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server of this machine answers a request."""
    try:
        with PAST_PROXIES.open(url, timeout=ANSWER_SECONDS) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


def prefect_home() -> Path:
    """The folder of Prefect's profiles, and of its database if there is no other."""
    home = os.environ.get("PREFECT_HOME")
    return Path(home).expanduser().resolve() if home else Path.home() / ".prefect"


def uses_server() -> bool:
    """Whether Prefect's settings name a server. They are only read if there may be any besides the environment:
    importing Prefect takes as long as all else that a command does whose results are cached."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    files = [prefect_home() / "profiles.toml", Path("prefect.toml"), Path(".env")]
    project = Path("pyproject.toml")
    in_project = project.exists() and "[tool.prefect" in project.read_text("utf-8", errors="replace")
    if not (in_project or "PREFECT_PROFILES_PATH" in os.environ or any(file.exists() for file in files)):
        return False
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


class TemporaryServer:
    """A server in a process of its own. It starts at once, and the command imports its modules in the meantime.

    The process has a session of its own: Ctrl-C in a terminal goes to the whole process group. In that group the server
    would end at once, and Prefect's client would try for a minute to report to it that the flow was stopped.

    This process listens on the port before the server runs, so that no other program can take it, and the first request
    waits for the server.
    """

    def __init__(self) -> None:
        self.port = 0
        self.process = self._start()
        self.address = f"http://127.0.0.1:{self.port}"
        atexit.register(self.stop)
        # Prefect reads its environment when it is imported, and so do the processes of stages.
        os.environ |= {"PREFECT_API_URL": f"{self.address}/api", TEMPORARY: self.address}

    def _start(self) -> subprocess.Popen:
        with socket.create_server(("127.0.0.1", self.port), backlog=128) as listening:
            self.port = listening.getsockname()[1]
            return self._program(listening)

    def _program(self, listening: socket.socket) -> subprocess.Popen:
        ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        ephemeral["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = f"http://127.0.0.1:{self.port}"
        return subprocess.Popen(
            [sys.executable, "-m", "alpro.pipeline.servers.prefect_server", str(self.port), str(listening.fileno())],
            stdin=subprocess.PIPE,  # ends with this process, however that happens, and then the server ends
            pass_fds=[listening.fileno()],
            start_new_session=True,
            env=os.environ | ephemeral,
        )

    def wait(self) -> None:
        """Waits until the server answers. Raises InputError if it ends or does not answer in time.

        One that ends is started again: if two commands create the database at the same time, one of them fails.
        """
        seconds, starts = float(os.environ[STARTUP_SECONDS]), 1
        end = time.monotonic() + seconds
        while not answers(f"{self.address}/api/health"):
            if (status := self.process.poll()) is not None and starts < MAX_STARTS:
                self.process, starts = self._start(), starts + 1
            elif status is not None:
                raise InputError(
                    f"Prefect's server ended with status {status}; PREFECT_SERVER_LOGGING_LEVEL=ERROR shows why; "
                    f"its database is in {prefect_home()}"
                )
            if time.monotonic() > end:
                self.stop()
                raise InputError(
                    f"Prefect's server did not answer within {seconds:g} s: this machine is busy; run again later, "
                    f"allow more with {STARTUP_SECONDS}, or use a server that runs already with PREFECT_API_URL"
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ends the server."""
        self.process.terminate()
        try:
            self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for name in ("PREFECT_API_URL", TEMPORARY):
            os.environ.pop(name, None)


def start_temporary_server() -> TemporaryServer | None:
    """The server of this command; None if Prefect has one. Raises InputError if its database cannot be used."""
    if uses_server():
        return None
    check_sqlite(database := prefect_home() / "prefect.db")
    if not database.exists() and PREFECT_DATABASE not in os.environ:
        log.info(f"creating Prefect's database in {database.parent}, once: about 10 s")
    return TemporaryServer()
