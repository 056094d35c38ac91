"""Run the tasks of a stage on the workers of its resources."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from alpro.errors import InputError
from alpro.pool import Died, each
from alpro.stages.execution.interface import Resources

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    tasks: Iterable[Task], work: Callable[[Task], Result], resources: Resources
) -> Iterator[tuple[Task, Result | Died]]:
    """Run a function on tasks, on this machine or on a cluster. See `alpro.pool.each`."""
    return each(tasks, work, resources.worker_count, resources.scheduler)


def run_again(
    died: Iterable[tuple[Task, Died]],
    work: Callable[[Task], Result],
    resources: Resources,
    get_name: Callable[[Task], str],
) -> Iterator[tuple[Task, Result]]:
    """Run tasks whose processes died a second time, one after another: memory may have been short.

    Args:
        get_name: Returns the name of a task for a message.

    Raises:
        InputError: If a task dies again.
    """
    alone = resources.model_copy(update={"workers": 1})
    deaths = list(died)
    tasks = [task for task, _ in deaths]
    for task, result in run_tasks(tasks, work, alone):
        if isinstance(result, Died):
            raise InputError(
                f"{get_name(task)}: {result.reason}, twice; if memory is short, free some, or lower "
                "resources.workers"
            )
        yield task, result
