"""Units in a pool: each is done once, whatever becomes of the processes that do them."""

import os
import subprocess
import sys
from functools import partial

import pytest

from alpro.errors import InputError
from alpro.stages.execution import workers
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import WorkerDied, run_in_subprocess, run_units
from tests.stages.execution.units_of_workers import misbehave, note

TWO = Resources(workers=2)


def test_every_unit_is_processed_and_yielded_once(tmp_path):
    results = list(run_units(iter(range(7)), partial(note, folder=tmp_path, crashing=(2, 5)), TWO))
    assert sorted(results) == [(number, 10 * number) for number in range(7)]
    assert len(list(tmp_path.glob("*-done"))) == 7
    assert len(list(tmp_path.glob("*-death-*"))) == 2


def test_a_unit_that_always_crashes_raises_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_DEATHS", 2)
    with pytest.raises(InputError, match="3 workers"):
        list(run_units([0], partial(note, folder=tmp_path, crashing=(0,), times=99), TWO))


def test_deaths_are_counted_only_in_succession(tmp_path, monkeypatch):
    """Each of two units kills its process once; between them another unit ends."""
    monkeypatch.setattr(workers, "MAX_DEATHS", 1)
    results = list(
        run_units(
            [0, 1, 2, 3], partial(note, folder=tmp_path, crashing=(0, 2)), Resources(workers=1)
        )
    )
    assert sorted(results) == [(number, 10 * number) for number in range(4)]


def test_exceptions_propagate(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(run_units([1], partial(note, folder=tmp_path / "missing"), TWO))
    assert list(run_units([], print, TWO)) == []  # without units, no result


def test_units_are_consumed_lazily(tmp_path):
    taken: list[int] = []

    def units():
        for number in range(20):
            taken.append(number)
            yield number

    made = run_units(units(), partial(note, folder=tmp_path), Resources(workers=1))
    next(made)
    assert len(taken) <= 4
    made.close()


def test_a_subprocess_returns_its_result_raises_crashes_or_hangs(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 600)  # on a busy machine
    assert run_in_subprocess(misbehave, "compute", seconds=30) == "compute"
    with pytest.raises(ValueError, match="no"):
        run_in_subprocess(misbehave, "raise", seconds=30)
    with pytest.raises(WorkerDied, match="status -11"):
        run_in_subprocess(misbehave, "crash", seconds=30)
    with pytest.raises(TimeoutError, match=r"longer than 0.5 s"):
        run_in_subprocess(misbehave, "hang", seconds=0.5)


PARENT = """
import os, threading
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import work_pool

if __name__ == "__main__":
    with work_pool(Resources(workers=2)) as submit:
        print(submit(os.getpid).result(), flush=True)
        threading.Event().wait()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path, wait_for_end):
    (tmp_path / "parent.py").write_text(PARENT)
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    wait_for_end(worker)
