"""The server that a command starts for itself: on a busy machine it fails with one line, and leaves no process."""

import subprocess
import sys

import pytest

from alpro.errors import InputError
from alpro.pipeline import server
from alpro.pipeline.server import MAX_STARTS, TemporaryServer

SLEEPS, ENDS = "import sys; sys.stdin.read()", "import sys; sys.exit(3)"


@pytest.fixture
def start(monkeypatch):
    """start(answer, *programs): starts the server as these programs, one after the other; `answer` is whether one
    answers. Returns the processes, and the server or its error."""
    monkeypatch.setattr(TemporaryServer, "_instances", {})
    monkeypatch.setattr(server, "POLL_SECONDS", 0)

    def run(answer, *programs: str):
        processes: list[subprocess.Popen] = []

        def start_program(self):
            processes.append(subprocess.Popen([sys.executable, "-c", programs[len(processes)]], stdin=subprocess.PIPE))
            return processes[-1]

        monkeypatch.setattr(TemporaryServer, "_run_uvicorn_command", start_program)
        monkeypatch.setattr(server, "answers", lambda url: answer(processes))
        one = TemporaryServer()
        try:
            one.start(timeout=1)
            one.start(timeout=1)  # it runs already
        except InputError as error:
            return processes, error
        return processes, one

    return run


def test_a_server_that_answers_is_started_once(start):
    processes, one = start(lambda processes: True, SLEEPS)
    assert one.running
    assert len(processes) == 1
    one.stop()
    assert processes[0].poll() is not None


def test_a_server_that_does_not_answer_is_ended(start):
    (process,), error = start(lambda processes: False, SLEEPS)
    assert "did not answer within 1 s: this machine is busy" in str(error)
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS" in str(error)
    assert process.poll() is not None


def test_a_server_that_ends_is_started_again_on_another_port(start):
    """Another program has taken the port."""
    processes, one = start(lambda processes: bool(processes[1:]), ENDS, SLEEPS)
    assert (one.running, len(processes)) == (True, 2)
    one.stop()


def test_a_server_that_always_ends_is_one_line(start):
    def ended(processes) -> bool:
        processes[-1].wait()
        return False

    processes, error = start(ended, *[ENDS] * MAX_STARTS)
    assert str(error).startswith("Prefect's server ended with status 3; PREFECT_SERVER_LOGGING_LEVEL=ERROR shows why")
    assert "\n" not in str(error)
    assert len(processes) == MAX_STARTS
