"""Work in threads, ahead of the one who reads it; and the number of cores to plan for."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 16  # of a machine with many cores


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: what a container or a job may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) of each item in order, computed in threads, at most two items a thread ahead.

    `items` may be a generator without an end; it is read no further than that.
    """
    count = min(MAX_THREADS, cores())
    pending = deque[Future[Result]]()
    pool = ThreadPoolExecutor(count)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Also if the reader stops early: what has not begun is not computed.
        pool.shutdown(cancel_futures=True)
