"""If `alpro up` is killed, its guard ends what it has started."""

import os
import subprocess
import sys
from uuid import uuid4

import psutil
import pytest

from alpro.pipeline import guard
from alpro.pipeline.guard import MARK, marked, runs_still

READY = "print('ready', flush=True); "
SLEEP = READY + "threading.Event().wait()"
# A run: it ends its own process when it receives SIGTERM, and then writes a file.
RUN = (
    """
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()", "training"])
def stop(*_):
    open(sys.argv[1], "w").write("running" if child.poll() is None else "ended before")
    child.kill()
    child.wait()
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
"""
    + SLEEP
)
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture
def start():
    """start(mark, program, *arguments, **environment): a process of the guarded program, in a session of its own."""
    started = []

    def run(mark: str, program: str, *arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os, signal, subprocess, sys, threading\n{program}", *arguments],
            env=os.environ | {MARK: mark} | environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_when_its_input_ends_the_guard_ends_all_marked_processes(start, tmp_path):
    mark, other = uuid4().hex, uuid4().hex
    run = start(mark, RUN, str(tmp_path / "out"), PREFECT__FLOW_RUN_ID="r")
    programs = [run, start(mark, SLEEP, "worker", "start"), start(mark, STUBBORN)]
    foreign = start(other, SLEEP)
    processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children()]
    assert len(marked(mark)) == 4
    watching = subprocess.Popen([sys.executable, "-m", "alpro.pipeline.guard", mark], stdin=subprocess.PIPE)
    assert all(program.poll() is None for program in programs)
    watching.communicate()  # `alpro up` is gone
    assert watching.returncode == 0
    for program in programs:
        program.wait()
    assert not any(map(runs_still, processes))
    assert (tmp_path / "out").read_text() == "running"  # the run was asked, its training was not
    assert marked(mark) == {}
    assert foreign.poll() is None


def test_a_process_that_does_not_end_is_killed(start, monkeypatch):
    mark = uuid4().hex
    monkeypatch.setattr(guard, "RUN_SECONDS", 0)
    run = start(mark, STUBBORN, PREFECT__FLOW_RUN_ID="r")
    guard.end_all(mark)
    assert run.wait() == -9
