"""Tasks of a stage whose processes died: all others are finished, and these are tried again."""

from functools import partial

import pytest

from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_tasks
from tests.pool_tasks import note

TWO = Resources(workers=2)


def test_a_task_that_dies_ends_the_stage_after_all_others(tmp_path):
    tasks = run_tasks(range(6), partial(note, folder=tmp_path, crashing=(0,)), TWO)

    results = [next(tasks) for _ in range(5)]

    assert sorted(results) == [(n, 10 * n) for n in range(1, 6)]
    with pytest.raises(
        RuntimeError, match=r"^0: its process ended with status -11; .*lower"
    ):
        next(tasks)
