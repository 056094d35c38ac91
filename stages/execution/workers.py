"""Run the tasks of a stage on the workers of its resources."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from alpro.log import log
from alpro.pool import Died, each
from alpro.stages.execution.interface import Resources

Task = TypeVar("Task")
Result = TypeVar("Result")
# Returns the results of tasks whose processes died.
Retry = Callable[[list[tuple[Task, Died]]], Iterable[tuple[Task, Result]]]


def run_tasks(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    resources: Resources,
    retry: Retry[Task, Result] | None = None,
) -> Iterator[tuple[Task, Result]]:
    """Run a function on tasks, on this machine or on a cluster (`alpro.pool.each`).

    Args:
        retry: Returns the results of the tasks whose processes died, after all others.

    Returns:
        The tasks with their results, in order of completion.

    Raises:
        RuntimeError: If a process died and there is no `retry`. Memory may have been short: a stage
            that has finished some tasks runs again.
    """
    died: list[tuple[Task, Died]] = []
    for task, result in each(tasks, work, resources.worker_count, resources.scheduler):
        if isinstance(result, Died):
            died.append((task, result))
        else:
            yield task, result

    if not died:
        return
    if retry is None:
        task, death = died[0]
        raise RuntimeError(
            f"{task}: {death.reason}; if memory is short, free some, or lower resources.workers"
        )
    log.info(f"processes of {len(died)} units died; they are tried again")
    yield from retry(died)
