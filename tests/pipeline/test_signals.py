"""Signals: a parent that is killed, a stage that is stopped, torchrun and its ranks."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from alpro.files import write_json
from alpro.stages.execution.interface import EXIT_INTERRUPTED
from tests.conftest import ROOT
from tests.pipeline.test_execution import TORCHRUN, python

# Programs that end with their parent.


@pytest.mark.parametrize("ends", ["before", "later"])
def test_a_program_ends_with_its_parent(ends, tmp_path, wait_for_end):
    """The kernel sends SIGTERM when the parent is gone; one that is gone already is noticed."""
    waits = textwrap.dedent(f"""
        import os, signal
        print(os.getpid(), flush=True)
        signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / "ended")!r}, "w"), os._exit(0)))
        print("ready", flush=True)
        signal.pause()""")
    starter = """
        import os, signal, subprocess, sys
        from alpro.stages.execution.lifecycle import with_parent
        command = with_parent([sys.executable, "-c", sys.argv[1]])
        if sys.argv[2] == "before":
            command[4] = "1"
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        first, second = child.stdout.readline().strip(), child.stdout.readline().strip()
        print(first, second, child.wait() if command[4] == "1" else "")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)"""
    done = subprocess.run(
        [*python(starter), waits, ends], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    if ends == "before":
        assert done.stdout.split() == ["1"]  # the status; the program has not started
        return
    wait_for_end(int(done.stdout.split()[0]))
    assert (tmp_path / "ended").exists()


def test_a_run_that_starts_after_its_worker_was_killed_ends():
    gone = subprocess.Popen(["true"])
    gone.wait()
    run = python("from alpro.pipeline.flows import flow; flow.end_with_worker(); print('runs')")
    environment = os.environ | {"ALPRO_PARENT": str(gone.pid)}
    ended = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_run_receives_one_signal_when_its_worker_is_killed():
    """The kernel sends one for each thread of a parent."""
    run = """
        import os, signal, sys, threading
        from alpro.pipeline.flows import flow
        received = []
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        flow.end_with_worker()
        os.write(int(sys.argv[1]), b"ready")
        never = threading.Event()
        while not received:
            never.wait(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)  # as of a thread that ends later
        print(received)"""
    worker = """
        import os, signal, subprocess, sys
        reading, writing = os.pipe()
        run = [sys.executable, "-c", sys.argv[1], str(writing)]
        subprocess.Popen(run, pass_fds=[writing])
        os.read(reading, 5)
        os.kill(os.getpid(), signal.SIGKILL)"""
    command = [*python(worker), textwrap.dedent(run)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, f"[{signal.SIGTERM.value}]\n")


def test_signals_that_are_ignored_reach_the_programs_that_are_started():
    program = """
        import os, signal, subprocess, sys
        from alpro.stages.execution.lifecycle import ignore_signals
        ignore_signals(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        child = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
        sys.exit(-subprocess.run([sys.executable, "-c", child]).returncode)"""
    assert subprocess.run(python(program), cwd=ROOT).returncode == signal.SIGTERM


# The program of a stage.


@pytest.mark.parametrize(
    ("context", "status"),
    [
        ("threading.Event().wait()", -signal.SIGALRM),  # forever
        ("raise RuntimeError('cannot join thread before it is started')", EXIT_INTERRUPTED),
    ],
)
def test_a_stage_that_receives_sigterm_ends_whatever_that_interrupts(context, status, tmp_path):
    write_json(tmp_path / "work.json", {"out": str(tmp_path)})
    stage = f"""
        import os, pathlib, signal, sys, threading
        from alpro.pipeline.execution import run_stage

        def run(work):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                {context}

        run_stage.run, run_stage.END_SECONDS = run, 1
        run_stage.start(pathlib.Path(sys.argv[1]))"""
    ended = subprocess.run([*python(stage), tmp_path / "work.json"], cwd=ROOT, timeout=600)
    assert ended.returncode == status


# torchrun.


@pytest.mark.long
def test_torchrun_ends_if_it_receives_another_signal_while_its_ranks_stop(tmp_path):
    """The kernel sends one for each thread of a parent that is killed."""
    rank = "import os, signal; tell = lambda *_: os.kill(os.getppid(), signal.SIGTERM)\n"
    rank += "signal.signal(signal.SIGTERM, lambda *_: exit(tell())); tell(); signal.pause()"
    (tmp_path / "rank.py").write_text(rank)
    ended = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=1", "--standalone", tmp_path / "rank.py"], timeout=600
    )
    assert ended.returncode == 75


# torchrun, which receives a signal just after it has called a function.
SIGNALLED = """
import os, runpy, signal, sys
from {module} import {owner}

def and_signal(*arguments, function={owner}.{function}, **options):
    result = function(*arguments, **options)
    os.kill(os.getpid(), signal.{signal})
    return result

{owner}.{function} = and_signal
runpy.run_module("alpro.pipeline.execution.torchrun", run_name="__main__", alter_sys=True)
"""


# The second one sends the signal, if nothing else does.
RANK = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "owner", "function", "signal"),
    [
        # The rank runs, and the agent does not know it yet.
        ("subprocess", "Popen", "_execute_child", "SIGTERM"),
        # Neither does it know the thread that reads the rank's output, which never ends then.
        ("concurrent.futures", "ThreadPoolExecutor", "submit", "SIGTERM"),
        # With a lock that the end needs, too.
        ("subprocess", "Popen", "poll", "SIGTERM"),
        ("subprocess", "Popen", "poll", "SIGINT"),
        # Another one while it stops the ranks.
        ("subprocess", "Popen", "send_signal", "SIGINT"),
    ],
)
def test_torchrun_leaves_no_rank_whenever_it_receives_a_signal(
    tmp_path, module, owner, function, signal
):
    source = SIGNALLED.format(module=module, owner=owner, function=function, signal=signal)
    (tmp_path / "signalled.py").write_text(source)
    (rank := tmp_path / "rank.py").write_text(RANK)

    program = [sys.executable, "-P", tmp_path / "signalled.py", *TORCHRUN[4:]]
    program += ["--nproc-per-node=2", "--standalone", rank]
    ended = subprocess.run(program, timeout=600, stderr=subprocess.PIPE, text=True)

    assert ended.returncode == 75
    # Every rank could write a checkpoint: none ignored SIGTERM until it was killed.
    assert "forcefully exiting" not in ended.stderr
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(rank) in command] == []
