"""Runs units of work in a pool of processes on this machine, or on a Dask cluster.

A process may die while it processes a unit: native code crashes, memory runs out, or it is killed. The pool is then
rebuilt and the units in progress start again. The unit itself records what killed its process.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, TypeVar

from alpro.errors import InputError
from alpro.stages.artifacts.store import Resources
from alpro.stages.execution.stop import STOP

UnitT = TypeVar("UnitT")
Result = TypeVar("Result")
MAX_DEATHS = 50  # consecutive deaths of workers, without a finished unit in between, before the stage fails
START_SECONDS = 60.0  # time for a process to start on a busy machine
REFILL_SECONDS = 1.0  # interval of checking a cluster for new workers, and whether the pipeline stops
EXIT_TIMEOUT = 70  # exit status of a process that exceeds its time limit
# Opens an executor for resources.dask. The pipeline sets it: stages do not depend on its task runner.
open_cluster: Callable[[str], AbstractContextManager[Executor]] | None = None


class WorkerDied(Exception):
    """A worker process crashed or was killed."""


@contextmanager
def work_pool(resources: Resources) -> Iterator[Executor]:
    """An executor for functions with picklable arguments that write their results to files."""
    if resources.dask:
        if open_cluster is None:
            raise InputError("resources.dask: only a pipeline can use a cluster; run the stage with `alpro`")
        with open_cluster(resources.dask) as executor:
            yield executor
        return
    # Spawned, not forked: a fork would copy the locks of the caller's threads (Prefect, MLflow).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(resources.worker_count, mp_context=context, initializer=end_with_parent) as executor:
        yield executor


def run_units(
    units: Iterable[UnitT], function: Callable[[UnitT], Result], resources: Resources
) -> Iterator[tuple[UnitT, Result]]:
    """Runs a function on every unit in a pool and yields each unit with its result, in order of completion. Only a few
    units are in memory at a time.

    `function` must support a restart of a unit, and must avoid what killed its process before. Raises InputError if
    processes keep dying.
    """
    pending, lost, deaths = iter(units), deque[UnitT](), 0
    while (first := lost.popleft() if lost else next(pending, None)) is not None:
        remaining = chain([first], _drain(lost), pending)
        with work_pool(resources) as pool:
            for result in _run_until_broken(pool, remaining, lost, function, resources):
                deaths = 0
                yield result
        deaths += 1
        if lost and deaths > MAX_DEATHS:
            raise InputError(
                f"{deaths} worker processes died in succession; if memory is short, lower resources.workers"
            )


def _drain(units: deque[UnitT]) -> Iterator[UnitT]:
    for _ in range(len(units)):
        yield units.popleft()


def _run_until_broken(
    pool: Executor,
    units: Iterator[UnitT],
    lost: deque[UnitT],
    function: Callable[[UnitT], Result],
    resources: Resources,
) -> Iterator[tuple[UnitT, Result]]:
    """Runs units until all are done or the pool breaks; the units in progress are then added to `lost`."""
    running: dict[Future, UnitT] = {}
    broken = False
    while not broken:
        # A cluster reports its current number of workers: machines may join at any time.
        max_running = 2 * getattr(pool, "worker_count", resources.worker_count)
        while len(running) < max_running and (unit := next(units, None)) is not None:
            try:
                running[pool.submit(function, unit)] = unit
            except BrokenProcessPool:
                lost.append(unit)
                broken = True
                break
        if not running:
            return
        done, _ = wait(running, timeout=REFILL_SECONDS, return_when=FIRST_COMPLETED)
        STOP.get().check()
        for future in done:
            unit, error = running.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                lost.append(unit)
                broken = True
            elif type(error).__name__ == "KilledWorker":  # raised by Dask for this unit only
                lost.append(unit)
            else:
                yield unit, future.result()
    lost.extend(running.values())


def end_with_parent() -> None:
    """Ends this pool process when its parent has ended. Otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(EXIT_TIMEOUT)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def exit_after(seconds: float) -> Iterator[None]:
    """Exits this process if the body takes longer: hanging native code cannot be interrupted."""
    timer = threading.Timer(seconds, os._exit, [EXIT_TIMEOUT])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_in_subprocess(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """Calls a function in a subprocess, which may crash or hang, and returns or raises its result.

    It does not use multiprocessing, since Dask's daemonic processes cannot have children. Raises WorkerDied if the
    process ends without a result, and TimeoutError after `seconds`.
    """
    call = pickle.dumps((seconds, function, arguments))
    command = [sys.executable, "-c", "from alpro.stages.execution.workers import subprocess_main; subprocess_main()"]
    path = os.pathsep.join(filter(None, sys.path))
    environment, timeout = {**os.environ, "PYTHONPATH": path}, seconds + START_SECONDS
    try:
        process = subprocess.run(command, input=call, stdout=subprocess.PIPE, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"longer than {timeout:g} s") from None
    if process.returncode == EXIT_TIMEOUT:
        raise TimeoutError(f"longer than {seconds:g} s")
    if process.returncode:
        raise WorkerDied(f"its process ended with status {process.returncode}")
    result, error = pickle.loads(process.stdout)
    if error is not None:
        raise error
    return result


def subprocess_main() -> None:
    """The subprocess of `run_in_subprocess`. It exits if the function exceeds its time limit, not counting imports."""
    seconds, function, arguments = pickle.load(sys.stdin.buffer)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep prints of native code out of the result
    with exit_after(seconds):
        result: tuple[Any, Exception | None]
        try:
            result = function(*arguments), None
        except Exception as error:
            result = None, error
    with output:
        output.write(pickle.dumps(result))
