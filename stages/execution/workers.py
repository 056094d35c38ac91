"""Runs units of work in processes on this machine, or on a Dask cluster.

A process may die while it processes a unit: native code crashes, memory runs out, or it is killed. The process is then
replaced and the unit starts again; other units are not affected. The unit itself records what killed its process.
"""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources
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
    with _Processes(resources.worker_count) as executor:
        yield executor


class _Processes(Executor):
    """An executor of independent processes. The death of one raises BrokenProcessPool only from its own futures.

    Each process has a pool of its own, since a ProcessPoolExecutor stops all its processes when one dies. Leaving the
    context by an exception kills the processes: their units can be repeated.
    """

    def __init__(self, count: int) -> None:
        # Spawned, not forked: a fork would copy the locks of the caller's threads (Prefect, MLflow).
        self.context = multiprocessing.get_context("spawn")
        self.alive, self.here = self.context.Pipe(duplex=False)
        self.pools = [self._start() for _ in range(count)]
        self.futures: list[list[Future]] = [[] for _ in range(count)]

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self.context, end_with_parent, (self.alive,))

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind:
            self.here.close()
        self.shutdown(cancel_futures=kind is not None)
        self.here.close()
        self.alive.close()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        self.futures = [[future for future in futures if not future.done()] for futures in self.futures]
        idlest = min(range(len(self.pools)), key=lambda index: len(self.futures[index]))
        with interrupts_blocked():
            try:
                future = self.pools[idlest].submit(function, *arguments, **named)
            except BrokenProcessPool:
                self.pools[idlest] = self._start()
                future = self.pools[idlest].submit(function, *arguments, **named)
        self.futures[idlest].append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self.pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def run_units(
    units: Iterable[UnitT], function: Callable[[UnitT], Result], resources: Resources
) -> Iterator[tuple[UnitT, Result]]:
    """Runs a function on every unit in a pool and yields each unit with its result, in order of completion. Only a few
    units are in memory at a time.

    `function` must support a restart of a unit, and must avoid what killed its process before. Raises InputError if
    processes keep dying.
    """
    pending = iter(units)
    if not (lost := deque(islice(pending, 1))):
        return
    running: dict[Future, UnitT] = {}
    deaths: set[BaseException] = set()  # all futures of a dead process have the same exception
    with work_pool(resources) as pool:
        while True:
            # A cluster reports its current number of workers: machines may join at any time.
            max_running = 2 * getattr(pool, "worker_count", resources.worker_count)
            while len(running) < max_running and (unit := lost.popleft() if lost else next(pending, None)) is not None:
                running[pool.submit(function, unit)] = unit
            if not running:
                return
            STOP.get().check()
            for future in wait(running, timeout=REFILL_SECONDS, return_when=FIRST_COMPLETED).done:
                unit, error = running.pop(future), future.exception()
                # Dask raises KilledWorker, by default after four deaths.
                if isinstance(error, BrokenProcessPool) or (error and type(error).__name__ == "KilledWorker"):
                    deaths.add(error)
                    lost.append(unit)
                else:
                    deaths.clear()
                    yield unit, future.result()
            if len(deaths) > MAX_DEATHS:
                raise InputError(
                    f"{len(deaths)} worker processes died in succession; if memory is short, lower resources.workers"
                )


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in this thread and in processes that the body starts. Ctrl-C goes to every process of a terminal.
    Their parent ends them; by themselves they would print tracebacks, even before their first import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(alive: Connection) -> None:
    """Ends this pool process when the other end of the connection is closed: by its parent, or because its parent has
    ended. Otherwise it would finish its unit, or wait for work forever."""

    def watch() -> None:
        with suppress(EOFError, OSError):
            alive.recv_bytes()
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
