"""Units in a pool: each is done once, and one that takes its process down costs nobody else."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from stages.artifacts import Resources
from stages.workers import do_units

TWO = Resources(workers=2)


def note(unit: int, folder: Path, crashing: tuple[int, ...] = (), how: str = "done") -> None:
    """Leaves a file that says how a unit was done; a crashing one ends its process as a fault in native code does."""
    if unit in crashing:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{unit}-{how}").touch()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_unit_is_done_and_told_once(tmp_path):
    told = list(
        do_units(list(range(7)), partial(note, folder=tmp_path), partial(note, folder=tmp_path, how="rescued"), TWO)
    )
    assert sorted(told) == list(range(7))
    assert left(tmp_path) == [f"{n}-done" for n in range(7)]


@pytest.mark.parametrize("crashing", [(0,), (2, 5)])
def test_a_unit_that_crashes_is_rescued_and_no_other(crashing, tmp_path):
    do = partial(note, folder=tmp_path, crashing=crashing)
    told = list(do_units(list(range(7)), do, partial(note, folder=tmp_path, how="rescued"), TWO))
    assert sorted(told) == list(range(7))
    assert left(tmp_path) == sorted(f"{n}-{'rescued' if n in crashing else 'done'}" for n in range(7))


def test_an_exception_comes_through(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(do_units([1], partial(note, folder=tmp_path / "missing"), print, TWO))


def test_no_units_start_no_process():
    assert list(do_units([], print, print, TWO)) == []
