"""Where units of work run: a pool of processes on this machine, or a Dask cluster of many."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from shards.schema import InputError
from stages.artifacts import Resources

Unit = TypeVar("Unit")


@contextmanager
def work_pool(resources: Resources) -> Iterator[Executor]:
    """An executor for functions of plain arguments that write their results to files."""
    if resources.dask:
        with _dask(resources.dask) as executor:
            yield executor
        return
    # Spawned, not forked: the caller may hold threads (Prefect's, MLflow's) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(resources.worker_count, mp_context=context) as executor:
        yield executor


def do_units(
    units: list[Unit], do: Callable[[Unit], Any], rescue: Callable[[Unit], Any], resources: Resources
) -> Iterator[Unit]:
    """Does every unit in a pool; yields each when it is done.

    A unit that takes its process down with it (a crash in native code) breaks the pool. Those that were under way are
    then done again one at a time, and the one that breaks it again, alone, is left to `rescue`.
    """
    waiting = deque(units)
    while waiting:
        suspects: list[Unit] = []
        with work_pool(resources) as pool:
            yield from _until_broken(pool, waiting, suspects, do, 2 * resources.worker_count)
        for unit in suspects:
            with work_pool(resources.model_copy(update={"workers": 1})) as pool:
                alone = pool.submit(do, unit)
                culprit = isinstance(alone.exception(), BrokenProcessPool)
                if not culprit:
                    alone.result()
            if culprit:
                with work_pool(resources.model_copy(update={"workers": 1})) as pool:
                    pool.submit(rescue, unit).result()
            yield unit


def _until_broken(
    pool: Executor, waiting: deque[Unit], suspects: list[Unit], do: Callable[[Unit], Any], most: int
) -> Iterator[Unit]:
    """Does units until there are none or the pool breaks; those that were under way then become suspects."""
    running: dict[Future, Unit] = {}
    while waiting or running:
        try:
            while waiting and len(running) < most:
                running[pool.submit(do, waiting[0])] = waiting[0]
                waiting.popleft()
        except BrokenProcessPool:
            suspects += running.values()
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            if isinstance(future.exception(), BrokenProcessPool):
                suspects += running.values()
                return
            unit = running.pop(future)
            future.result()
            yield unit


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "resources.dask is set, but Dask is not installed: pip install 'alpro-pipeline[dask]'"
        ) from None
    try:
        client = Client(address, timeout="10s")
    except OSError as error:
        raise InputError(f"resources.dask = {address}: no Dask scheduler answers there ({error})") from error
    with client, client.get_executor() as executor:
        yield executor
