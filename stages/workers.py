"""Where units of work run: a pool of processes on this machine, or a Dask cluster of many."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from shards.schema import InputError
from stages.artifacts import Resources


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
