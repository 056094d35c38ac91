"""The benchmark of full-size steps: a task whose process is killed."""

import importlib.util
import queue
from pathlib import Path

import pytest


@pytest.fixture
def full_size():
    file = Path(__file__).parents[2] / "benchmarks" / "full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Process:
    """Is alive for `polls` - 1 calls of is_alive, and puts `last` before it ends."""

    def __init__(self, polls: int, results: queue.Queue, last: dict | None):
        self.polls, self.results, self.last = polls, results, last

    def is_alive(self) -> bool:
        self.polls -= 1
        if self.polls == 0 and self.last:
            self.results.put(self.last)
        return self.polls > 0


@pytest.mark.parametrize("last", [None, {"seconds": 1.0}])
def test_waiting_ends_with_the_process(full_size, last):
    results = queue.Queue()
    assert full_size.wait(Process(3, results, last), results, seconds=0.001) == last
