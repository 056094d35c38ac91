"""Everything ends when what started it ends."""

import os
import signal
import subprocess
import sys

import pytest

from alpro.pipeline.execution import lifecycle

# A program that says when it runs, and when it is asked to end.
PROGRAM = """
import os, signal, sys
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1]).write_text("asked")
    os._exit(3)
signal.signal(signal.SIGTERM, stop)
"""
READY = "print('ready', flush=True); signal.pause()"


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join((PROGRAM, *lines, READY))]


def start(*command: object, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_process_ends_with_its_input(tmp_path):
    watching = "from alpro.pipeline.execution.lifecycle import end_after, input_ended; end_after(input_ended, 600)"
    process = start(*program(watching), tmp_path / "out")
    process.stdin.write("whatever\n")
    process.stdin.flush()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait() == 3
    assert (tmp_path / "out").read_text() == "asked"


def test_a_process_that_does_not_end_is_ended(tmp_path):
    stubborn = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "from alpro.pipeline.execution.lifecycle import end_after, input_ended; "
        "end_after(input_ended, 0, 7)"
    )
    process = start(*program(stubborn), tmp_path / "out")
    process.stdin.close()
    assert process.wait() == 7


def test_a_process_ends_with_its_parent(tmp_path):
    watching = (
        "from alpro.pipeline.execution import lifecycle; lifecycle.PARENT_SECONDS = 0.01; parent = os.getppid(); "
        "lifecycle.end_after(lambda: lifecycle.parent_ended(parent), 600)"
    )
    child = [*program(watching), str(tmp_path / "out")]
    parent = start(sys.executable, "-c", f"import subprocess; subprocess.run({child!r})")
    parent.kill()
    assert parent.stdout.read() == ""  # the child had it open, too
    assert (tmp_path / "out").read_text() == "asked"


@pytest.mark.parametrize("how", ["input", "SIGTERM", "SIGKILL"])
def test_a_program_that_knows_nothing_ends_with_what_runs_it(how, tmp_path):
    process = start(sys.executable, "-m", "alpro.pipeline.execution.lifecycle", *program(), tmp_path / "out")
    if how == "input":
        process.stdin.close()
    else:
        process.send_signal(getattr(signal, how))
    assert process.stdout.read() == ""
    assert process.wait() == (-9 if how == "SIGKILL" else 3)
    assert (tmp_path / "out").read_text() == "asked"


def test_what_a_program_leaves_behind_ends_with_it(tmp_path):
    """MLflow's server has a process of its own, which would keep the port."""
    child = [*program(), str(tmp_path / "out")]
    parent = (
        f"import os, subprocess; child = subprocess.Popen({child!r}, stdout=subprocess.PIPE); child.stdout.readline(); "
        "print('ready', flush=True); os._exit(9)"
    )
    process = start(
        sys.executable, "-m", "alpro.pipeline.execution.lifecycle", sys.executable, "-c", parent, stderr=subprocess.PIPE
    )
    assert process.stderr.read() == ""  # it ends when nobody has it open
    assert process.wait() == 9
    assert not (tmp_path / "out").exists()


def test_output_without_a_reader_goes_nowhere():
    """Otherwise the next line of a run whose worker is gone would end it."""
    dropping = (
        "from alpro.pipeline.execution.lifecycle import drop_output; print('ready', flush=True); sys.stdin.read(); "
    )
    process = start(sys.executable, "-c", f"import sys; {dropping} drop_output(); print('dropped', flush=True)")
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == 0


def test_who_is_alive():
    assert lifecycle.alive(os.getpid())
    assert lifecycle.alive(1)  # of another user, perhaps
    done = subprocess.Popen(["true"])
    done.wait()
    assert not lifecycle.alive(done.pid)
