"""Prefect's temporary server, for the duration of one command. It runs until the flow has ended, also after Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading

from prefect.server.api.server import SubprocessASGIServer

EXIT_SECONDS = 60.0  # time to finish a migration of the database and shut down once the command has ended


class TemporaryServer(SubprocessASGIServer):
    """The server that Prefect starts if it has no PREFECT_API_URL, in a session of its own.

    Ctrl-C in a terminal goes to the whole process group. In that group the server ends at once, and Prefect's client
    then tries for a minute to report to it that the flow was stopped. Once there is an instance, Prefect uses it: the
    base class keeps one server for each process.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen:
        # The server's standard input ends with this process, however that happens.
        ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "alpro.pipeline.server", str(self.port)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | ephemeral,
        )


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
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="on",
        log_level="error",
    )
