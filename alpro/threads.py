"""Prefetch in threads, and the number of available cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 16  # on a machine with many cores


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores of a container or a job
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    count: int = min(MAX_THREADS, cores()),
) -> Iterator[Result]:
    """Yield function(item) of each item in order, prefetching at most two items per thread.

    Args:
        items: They may be an infinite generator, which is read only as far as items are prefetched.
        count: Number of threads.
    """
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
        # If the consumer stops early, items that have not begun are not computed.
        pool.shutdown(cancel_futures=True)
