"""Units in a pool: each is done once, whatever becomes of the processes that do them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.stages.artifacts.store import Resources
from alpro.stages.execution import workers
from alpro.stages.execution.workers import Died, do_units, in_own_process

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
def test_every_unit_is_done_and_told_once(crashing, times, tmp_path):
    told = list(do_units(iter(range(7)), partial(note, folder=tmp_path, crashing=crashing, times=times), TWO))
    assert sorted(told) == [(number, 10 * number) for number in range(7)]
    assert done(tmp_path) == [f"{n}-done" for n in range(7)]
    assert len(list(tmp_path.glob("*-death-*"))) == len(crashing) * times


def test_a_unit_that_crashes_for_ever_ends_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "DEATHS", 2)
    with pytest.raises(InputError, match="3 worker processes died one after the other"):
        list(do_units([0], partial(note, folder=tmp_path, crashing=(0,), times=99), TWO))


def test_an_exception_comes_through(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(do_units([1], partial(note, folder=tmp_path / "missing"), TWO))


def test_no_units_start_no_process():
    assert list(do_units([], print, TWO)) == []


def test_units_are_taken_as_they_are_needed(tmp_path):
    taken: list[int] = []

    def units():
        for number in range(20):
            taken.append(number)
            yield number

    made = do_units(units(), partial(note, folder=tmp_path), Resources(workers=1))
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


def test_what_a_process_of_its_own_computes_comes_back():
    assert in_own_process(misbehave, "compute", seconds=30) == "compute"
    with pytest.raises(ValueError, match="no"):
        in_own_process(misbehave, "raise", seconds=30)


def test_a_process_of_its_own_crashes_or_hangs_alone():
    with pytest.raises(Died, match="status -11"):
        in_own_process(misbehave, "crash", seconds=30)
    with pytest.raises(TimeoutError, match=r"longer than 0.5 s"):
        in_own_process(misbehave, "hang", seconds=0.5)


def test_a_process_whose_work_does_not_end_ends_itself():
    def stuck() -> None:
        with workers.ended_after(0.1):
            threading.Event().wait()

    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    process.join()
    assert process.exitcode == workers.STUCK


PARENT = """
import os, threading
from alpro.stages.artifacts.store import Resources
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
