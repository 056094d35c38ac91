"""Tasks in processes: each task has one outcome, whatever becomes of the processes."""

import logging
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from multiprocessing import active_children

import pytest

from alpro import pool, versions
from alpro.errors import InputError
from alpro.log import log
from alpro.pool import Died, each, in_this_process
from tests.pool_tasks import behave, get_pid, note


@pytest.fixture(params=["machine", "cluster"])
def run(request, monkeypatch):
    """`each` on this machine, and on a cluster: the same laws hold."""
    scheduler = ""
    if request.param == "cluster":
        # Processes there outlive the iteration.
        monkeypatch.setattr(pool, "IDLE_SECONDS", 0.5)
        scheduler = request.getfixturevalue("cluster").scheduler_address
    return partial(each, workers=2, scheduler=scheduler)


@pytest.fixture
def lines(caplog):
    log.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield lambda: caplog.text
    log.removeHandler(caplog.handler)


def test_a_task_that_dies_has_no_result_and_all_others_have(run, tmp_path):
    work = partial(note, folder=tmp_path, crashing=(2, 5))

    results = dict(run(range(9), work))

    died = Died("its process ended with status -11")
    assert results == {n: died if n in (2, 5) else 10 * n for n in range(9)}
    # Only the processes of the two died: no other task was repeated.
    runs = Counter(int(path.name.partition("-")[0]) for path in tmp_path.iterdir())
    assert all(runs[n] == 1 for n in range(9) if n not in (2, 5))


def test_a_part_of_a_task_has_a_time_limit(run):
    results = dict(run(["hang in an item", "fine"], behave))

    assert results["fine"] == "fine"
    assert results["hang in an item"].timed_out


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", ValueError, "no"),
        ("raise for the user", InputError, "no such column"),
        ("raise an odd error", RuntimeError, "1 and 2"),  # an error that cannot be sent
    ],
)
def test_an_exception_is_raised_with_the_traceback_of_the_process(
    how, error, message, run
):
    with pytest.raises(error, match=message) as raised:
        list(run([how], behave))

    if error is ValueError:
        assert "in behave" in raised.value.__notes__[0]


def test_tasks_are_read_as_far_as_there_are_processes(run):
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = run(tasks(), get_pid)
    next(results)
    results.close()

    assert len(taken) <= 6


def test_nothing_is_started_without_a_task():
    assert list(each([], get_pid, workers=2, scheduler="tcp://127.0.0.1:1")) == []


def test_processes_end_after_the_iteration(run, wait_for_end):
    results = run([1, 2, 3], get_pid)
    _, process = next(results)

    results.close()

    wait_for_end(process)


def test_within_this_process_nothing_is_started():
    with in_this_process():
        assert list(each([1, 2], get_pid, workers=2)) == [
            (1, os.getpid()),
            (2, os.getpid()),
        ]
        # The test's own process is not ended by a limit.
        with pool.exit_after(0.001):
            pass


def test_killed_processes_lose_their_tasks_alone(tmp_path):
    """Each kill hits a process at a random instant: it starts, works, or waits for a task."""
    chance = random.Random(1)
    outcomes = []
    kills = 0

    for task, result in each(range(60), partial(note, folder=tmp_path), workers=3):
        outcomes.append((task, result))
        processes = active_children()
        if processes and chance.random() < 0.3:
            chance.choice(processes).kill()
            kills += 1

    assert sorted(task for task, _ in outcomes) == list(range(60))
    died = [task for task, result in outcomes if isinstance(result, Died)]
    assert kills > 5
    assert len(died) <= kills
    assert all(result == 10 * task for task, result in outcomes if task not in died)


PARENT = """
import os, sys
from functools import partial
from pathlib import Path
from alpro.pool import each
from tests.pool_tasks import kill_then_hang

if __name__ == "__main__":
    work = partial(kill_then_hang, pid_file=Path("pid").absolute())
    next(each([os.getpid()], work, workers=1, scheduler=sys.argv[1]))
"""


def test_processes_end_when_their_parent_is_killed(run, tmp_path, wait_for_end):
    """Also those of a cluster's worker."""
    (tmp_path / "parent.py").write_text(PARENT)
    path = os.pathsep.join(filter(None, sys.path))

    parent = subprocess.run(
        [sys.executable, "parent.py", run.keywords["scheduler"]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )

    assert parent.returncode == -signal.SIGKILL
    wait_for_end(int((tmp_path / "pid").read_text()))


def test_what_a_worker_prints_is_logged(cluster, lines):
    tasks = ["print", "print and crash"]

    results = dict(each(tasks, behave, workers=1, scheduler=cluster.scheduler_address))

    assert results["print"] == "print"
    assert isinstance(results["print and crash"], Died)
    printed = ("to standard output", "noise of native code", "a warning", "last words")
    assert all(text in lines() for text in printed)


def test_a_worker_with_other_versions_is_refused(cluster, monkeypatch):
    here = versions.get_versions()
    monkeypatch.setattr(versions, "get_versions", lambda: here | {"numpy": "1.0"})
    call = pickle.dumps((get_pid, 0))

    with pytest.raises(InputError, match=r"numpy 1\.0, and this machine 2\.0"):
        pool._answer(call, {**here, "numpy": "2.0"})


def test_a_scheduler_that_does_not_answer_is_a_line(monkeypatch):
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 0.5)

    with pytest.raises(InputError, match="no scheduler answers"):
        list(each([1], get_pid, workers=1, scheduler="tcp://127.0.0.1:1"))
