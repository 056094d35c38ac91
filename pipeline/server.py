"""Prefect's server on this machine: `python -m alpro.pipeline.server PORT`, until its standard input ends.

The server of `alpro up`, and the temporary one of a command without PREFECT_API_URL.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

from prefect.server.api.server import SubprocessASGIServer, create_app
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from alpro.errors import InputError
from alpro.pipeline.browser_requests import NoCommands
from alpro.pipeline.loopback import answers

LOCAL = ["127.0.0.1", "localhost"]
POLL_SECONDS = 0.1
MAX_STARTS = 3
_starting = threading.Lock()
EXIT_SECONDS = 60.0  # time to finish a migration of the database and shut down once the command has ended


class TemporaryServer(SubprocessASGIServer):
    """The server that Prefect starts if it has no PREFECT_API_URL, in a session of its own.

    Ctrl-C in a terminal goes to the whole process group. In that group the server ends at once, and Prefect's client
    then tries for a minute to report to it that the flow was stopped. Once there is an instance, Prefect uses it: the
    base class keeps one server for each process.
    """

    def start(self, timeout: int | None = None) -> None:
        """Starts the server once and waits until it answers. Raises InputError if it does not."""
        with _starting:
            if not self.running:
                self._start(timeout)

    def _start(self, timeout: int | None) -> None:
        seconds = timeout or PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        end, starts = time.monotonic() + seconds, 0
        while not self.running:
            status = self.server_process.poll() if self.server_process else 0
            if status is not None:  # not started yet, or ended: another program may have taken the port
                if starts == MAX_STARTS:
                    self.stop()
                    raise InputError(
                        f"Prefect's server ended with status {status}; PREFECT_SERVER_LOGGING_LEVEL=ERROR shows why; "
                        f"its database is in {PREFECT_HOME.value()}"
                    )
                starts += 1
                self.port = self.find_available_port()
                self.server_process = self._run_uvicorn_command()
            if time.monotonic() > end:
                self.stop()
                raise InputError(
                    f"Prefect's server did not answer within {seconds} s: this machine is busy; run again later, allow "
                    "more with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or use a server that runs already "
                    "with PREFECT_API_URL"
                )
            self.running = answers(f"{self.api_url}/health")
            if not self.running:
                time.sleep(POLL_SECONDS)
        atexit.register(self.stop)

    def _run_uvicorn_command(self) -> subprocess.Popen:
        # The server's standard input ends with this process, however that happens.
        ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        ephemeral["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = f"http://127.0.0.1:{self.port}"
        return subprocess.Popen(
            [sys.executable, "-m", "alpro.pipeline.server", str(self.port)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | ephemeral,
        )


class LocalApp:
    """Prefect's server for clients and browsers of this machine. Whoever may deploy may run commands, so pages of other
    sites are refused: by the Host header, where the site's name is made to resolve to 127.0.0.1, and by the Origin
    header, since not every request of a page needs CORS."""

    def __init__(self) -> None:
        self.app = TrustedHostMiddleware(NoCommands(create_app()), allowed_hosts=LOCAL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if origin := headers.get(b"origin", b"").decode("latin-1"):
            page, server = urlsplit(origin), urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}")
            if page.hostname not in LOCAL or page.port != server.port:
                await PlainTextResponse("a page of another site", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def end_with_command() -> None:
    """Waits for the end of standard input, then ends this process."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(EXIT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    import uvicorn

    threading.Thread(target=end_with_command, daemon=True).start()
    uvicorn.run(
        "alpro.pipeline.server:LocalApp",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="on",
        log_level="error",
    )
