"""Units in a pool: each is done once, whatever becomes of the processes that do them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.stages.execution import workers
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import WorkerDied, run_in_subprocess, run_units

TWO = Resources(workers=2)


def note(unit: int, folder: Path, crashing: tuple[int, ...] = (), times: int = 1) -> int:
    """Leaves a file that says that a unit was done; a crashing one ends its process so many times first."""
    deaths = sorted(folder.glob(f"{unit}-death-*"))
    if unit in crashing and len(deaths) < times:
        (folder / f"{unit}-death-{len(deaths)}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{unit}-done").touch()
    return 10 * unit


def done(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*-done"))


@pytest.mark.parametrize(("crashing", "times"), [((), 0), ((0,), 1), ((2, 5), 2)])
def test_every_unit_is_processed_and_yielded_once(crashing, times, tmp_path):
    results = list(run_units(iter(range(7)), partial(note, folder=tmp_path, crashing=crashing, times=times), TWO))
    assert sorted(results) == [(number, 10 * number) for number in range(7)]
    assert done(tmp_path) == [f"{n}-done" for n in range(7)]
    assert len(list(tmp_path.glob("*-death-*"))) == len(crashing) * times


def meet(unit: int, folder: Path) -> None:
    """Unit 1 first kills its process as soon as unit 0 runs; unit 0 first waits for a byte in `finish`."""
    with open(folder / f"{unit}-starts", "ab") as starts:
        starts.write(b".")
    if (folder / f"{unit}-starts").stat().st_size > 1:
        return
    running, finish = (os.open(folder / name, os.O_RDWR) for name in ("running", "finish"))
    if unit == 1:
        os.read(running, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(running, b".")
    os.read(finish, 1)


def test_a_death_restarts_only_its_own_unit(tmp_path):
    for name in ("running", "finish"):
        os.mkfifo(tmp_path / name)
    with open(tmp_path / "running", "r+b", buffering=0), open(tmp_path / "finish", "r+b", buffering=0) as finish:
        for unit, _ in run_units([0, 1], partial(meet, folder=tmp_path), TWO):
            if unit == 1:
                finish.write(b".")
    assert [(tmp_path / f"{unit}-starts").stat().st_size for unit in (0, 1)] == [1, 2]


def test_a_unit_that_always_crashes_raises_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_DEATHS", 2)
    with pytest.raises(InputError, match="3 worker processes died in succession"):
        list(run_units([0], partial(note, folder=tmp_path, crashing=(0,), times=99), TWO))


def test_deaths_are_counted_only_in_succession(monkeypatch):
    """Each of three units dies once before it ends, so that no two deaths follow one another."""
    died: set[int] = set()

    class Pool:
        worker_count = 0.5  # one unit at a time

        def submit(self, function, unit):
            future = Future()
            if unit in died:
                future.set_result(function(unit))
            else:
                died.add(unit)
                future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr(workers, "MAX_DEATHS", 1)
    monkeypatch.setattr(workers, "work_pool", lambda resources: nullcontext(Pool()))
    assert list(run_units([1, 2, 3], lambda unit: 10 * unit, TWO)) == [(1, 10), (2, 20), (3, 30)]


def test_exceptions_propagate(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(run_units([1], partial(note, folder=tmp_path / "missing"), TWO))


def blocked_signals(unit):
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_does_not_reach_the_workers():
    assert [signals for _, signals in run_units([0], blocked_signals, Resources(workers=1))] == [{signal.SIGINT}]
    assert blocked_signals(0) == set()


def test_without_units_no_process_starts():
    assert list(run_units([], print, TWO)) == []


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


def misbehave(how: str) -> str:
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        threading.Event().wait()
    if how == "raise":
        raise ValueError("no")
    os.write(1, b"noise of native code\n")
    return how


def test_a_subprocess_returns_its_result():
    assert run_in_subprocess(misbehave, "compute", seconds=30) == "compute"
    with pytest.raises(ValueError, match="no"):
        run_in_subprocess(misbehave, "raise", seconds=30)


def test_a_subprocess_may_crash_or_hang():
    with pytest.raises(WorkerDied, match="status -11"):
        run_in_subprocess(misbehave, "crash", seconds=30)
    with pytest.raises(TimeoutError, match=r"longer than 0.5 s"):
        run_in_subprocess(misbehave, "hang", seconds=0.5)


def test_a_subprocess_exits_after_its_time_limit():
    def stuck() -> None:
        with workers.exit_after(0.1):
            threading.Event().wait()

    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    process.join()
    assert process.exitcode == workers.EXIT_TIMEOUT


PARENT = """
import os, threading
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import work_pool

if __name__ == "__main__":
    with work_pool(Resources(workers=2)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
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
