"""Where units of work run: a pool of processes on this machine, or a cluster of many.

A process may die in the middle of a unit: native code crashes, the system runs short of memory, somebody kills it. Its
pool is then made anew and the units that were under way are begun again; what killed it is for the unit to remember.
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

Unit = TypeVar("Unit")
Result = TypeVar("Result")
DEATHS = 50  # of workers in succession, without a unit done in between, after which the fault is not a unit's
START_SECONDS = 60.0  # what a process may take to start, on a machine that is busy with others
REFILL_SECONDS = 5.0  # how often a cluster is asked whether it has more workers now
STUCK = 70  # exit status of a process that ended itself because its work did not
# Opens an executor at an address, for resources.dask. The pipeline sets it: stages know nothing of its task runner.
open_cluster: Callable[[str], AbstractContextManager[Executor]] | None = None


class Died(Exception):
    """A process that was to compute something has crashed, or was killed."""


@contextmanager
def work_pool(resources: Resources) -> Iterator[Executor]:
    """An executor for functions of plain arguments that write their results to files."""
    if resources.dask:
        if open_cluster is None:
            raise InputError("resources.dask: only a pipeline sends units to a cluster; run the stage by `alpro`")
        with open_cluster(resources.dask) as executor:
            yield executor
        return
    # Spawned, not forked: the caller may hold threads (Prefect's, MLflow's) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(resources.worker_count, mp_context=context, initializer=end_with_parent) as executor:
        yield executor


def do_units(
    units: Iterable[Unit], do: Callable[[Unit], Result], resources: Resources
) -> Iterator[tuple[Unit, Result]]:
    """Does every unit in a pool; yields each with its result when it is done, in any order. Few units are held at a
    time, however many there are.

    `do` must be able to do again what was begun, and to avoid what took its process down. Raises InputError when
    processes die one after the other all the same.
    """
    waiting, lost, deaths = iter(units), deque[Unit](), 0
    while (first := lost.popleft() if lost else next(waiting, None)) is not None:
        left = chain([first], _emptied(lost), waiting)
        with work_pool(resources) as pool:
            for done in _until_broken(pool, left, lost, do, resources):
                deaths = 0
                yield done
        deaths += 1
        if lost and deaths > DEATHS:
            raise InputError(
                f"{deaths} worker processes died one after the other; if memory is short, lower resources.workers"
            )


def _emptied(units: deque[Unit]) -> Iterator[Unit]:
    for _ in range(len(units)):
        yield units.popleft()


def _until_broken(
    pool: Executor, units: Iterator[Unit], lost: deque[Unit], do: Callable[[Unit], Result], resources: Resources
) -> Iterator[tuple[Unit, Result]]:
    """Does units until there are none or the pool breaks; those that were under way are then in `lost`."""
    running: dict[Future, Unit] = {}
    broken = False
    while not broken:
        # A cluster tells how many it has: machines may join it at any time.
        most = 2 * getattr(pool, "worker_count", resources.worker_count)
        while len(running) < most and (unit := next(units, None)) is not None:
            try:
                running[pool.submit(do, unit)] = unit
            except BrokenProcessPool:
                lost.append(unit)
                broken = True
                break
        if not running:
            return
        done, _ = wait(running, timeout=REFILL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            unit, error = running.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                lost.append(unit)
                broken = True
            elif type(error).__name__ == "KilledWorker":  # Dask has given it up; its other units go on
                lost.append(unit)
            else:
                yield unit, future.result()
    lost.extend(running.values())


def end_with_parent() -> None:
    """Ends this process of a pool when the one that made the pool is gone: it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(STUCK)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ends this process if the body takes longer: native code that hangs heeds nothing else."""
    timer = threading.Timer(seconds, os._exit, [STUCK])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_own_process(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """What a function returns or raises in a process of its own, which may crash or hang.

    Not one of multiprocessing's: those of Dask may have no children. Raises Died where the process ended without a
    word, and TimeoutError after `seconds`.
    """
    question = pickle.dumps((seconds, function, arguments))
    command = [sys.executable, "-c", "from alpro.stages.execution.workers import answer; answer()"]
    path = os.pathsep.join(filter(None, sys.path))
    environment, most = {**os.environ, "PYTHONPATH": path}, seconds + START_SECONDS
    try:
        said = subprocess.run(command, input=question, stdout=subprocess.PIPE, timeout=most, env=environment)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"longer than {most:g} s") from None
    if said.returncode == STUCK:
        raise TimeoutError(f"longer than {seconds:g} s")
    if said.returncode:
        raise Died(f"its process ended with status {said.returncode}")
    found, error = pickle.loads(said.stdout)
    if error is not None:
        raise error
    return found


def answer() -> None:
    """The other side of `in_own_process`. It ends itself where the function does not (loading is not counted)."""
    seconds, function, arguments = pickle.load(sys.stdin.buffer)
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints is no answer
    with ended_after(seconds):
        result: tuple[Any, Exception | None]
        try:
            result = function(*arguments), None
        except Exception as error:
            result = None, error
    with told:
        told.write(pickle.dumps(result))
