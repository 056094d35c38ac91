"""Tasks of a stage whose processes died run a second time."""

from functools import partial

import pytest

from alpro.errors import InputError
from alpro.pool import Died
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_again
from tests.pool_tasks import note

TWO = Resources(workers=2)
DIED = [(1, Died("its process ended")), (2, Died("its process ended"))]


def test_each_has_a_result_the_second_time(tmp_path):
    results = list(run_again(DIED, partial(note, folder=tmp_path), TWO, str))

    assert results == [(1, 10), (2, 20)]


def test_a_task_that_dies_again_is_a_line_that_names_it(tmp_path):
    work = partial(note, folder=tmp_path, crashing=(2,))

    with pytest.raises(InputError, match=r"^task 2: its process ended with status -11, twice"):
        list(run_again(DIED, work, TWO, lambda task: f"task {task}"))
