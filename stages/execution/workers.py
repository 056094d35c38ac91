"""Runs units of work in processes on this machine.

A process may die while it processes a unit: native code crashes, memory runs out, or it is killed.
The processes are then replaced, and the units that were running start again. The unit itself
records what killed its process.
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
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from alpro.errors import InputError
from alpro.interpreter import interpreter
from alpro.stages.execution.lifecycle import end_with_parent

# Each new process imports this module; pydantic and pyarrow only if its function needs them.
if TYPE_CHECKING:
    from alpro.stages.execution.interface import Resources

UnitT = TypeVar("UnitT")
Result = TypeVar("Result")
# Consecutive deaths of workers, without a finished unit in between, before the stage fails.
MAX_DEATHS = 50
START_SECONDS = 60.0  # time for a process to start on a busy machine
EXIT_TIMEOUT = 70  # exit status of a process that exceeds its time limit


class WorkerDied(Exception):
    """A worker process crashed or was killed."""


_pools_are_used = True


@contextmanager
def without_pools() -> Iterator[None]:
    """Within it, units run in this process when they are submitted: a debugger follows them, and
    the patches of a test apply. It holds for all threads."""
    global _pools_are_used
    before = _pools_are_used
    _pools_are_used = False
    try:
        yield
    finally:
        _pools_are_used = before


def _call_now(function: Callable[..., Any], *arguments: Any) -> Future:
    """Calls a function; returns its result or exception as a pool's `submit` does."""
    future: Future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


@contextmanager
def work_pool(resources: "Resources") -> Iterator[Callable[..., Future]]:
    """Submits functions with picklable arguments that write their results to files. Leaving the
    context by an exception kills its processes: their units can be repeated."""
    if not _pools_are_used:
        yield _call_now
        return

    # Spawned, not forked: a fork would copy the locks of the caller's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(resources.worker_count, context, initialize_worker) as pool:
        try:
            yield pool.submit
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def initialize_worker() -> None:
    """Ends a worker with its parent, and not by Ctrl-C, which goes to every process of a
    terminal."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Killed, as there is nothing to save: its unit starts again.
    end_with_parent(parent.pid, signal.SIGKILL)


def run_units(
    units: Iterable[UnitT], function: Callable[[UnitT], Result], resources: "Resources"
) -> Iterator[tuple[UnitT, Result]]:
    """Runs a function on every unit in a pool and yields each unit with its result, in order of
    completion. Only a few units are in memory at a time.

    `function` must support a restart of a unit, and must avoid what killed its process before.
    Raises InputError if processes keep dying.
    """
    pending = iter(units)
    # Without any unit, no process is started.
    lost = deque(islice(pending, 1))
    deaths: set[BaseException] = set()  # all futures of a broken pool have the same exception
    # For each worker a unit that runs and one that waits.
    max_running = 2 * resources.worker_count

    while lost:  # once, and again with a new pool after a process died
        running: dict[Future, UnitT] = {}
        broken = False
        with work_pool(resources) as submit:
            while True:
                while not broken and len(running) < max_running:
                    unit = lost.popleft() if lost else next(pending, None)
                    if unit is None:
                        break
                    try:
                        running[submit(function, unit)] = unit
                    except BrokenProcessPool:
                        # A worker died since the last look.
                        lost.append(unit)
                        broken = True
                if not running:
                    break

                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unit = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        broken = True
                        deaths.add(error)
                        lost.append(unit)
                    else:
                        deaths.clear()
                        yield unit, future.result()

                if len(deaths) > MAX_DEATHS:
                    raise InputError(
                        f"{len(deaths)} workers died in succession; if memory is short, lower "
                        f"resources.workers"
                    )


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

    It is a program of its own, and no child of multiprocessing, so that neither a crash nor prints
    of native code reach this process. Raises WorkerDied if the process ends without a result, and
    TimeoutError after `seconds`.
    """
    call = pickle.dumps((seconds, function, arguments))
    program = "from alpro.stages.execution.workers import subprocess_main; subprocess_main()"
    command = interpreter("-c", program)

    # The function may be of a module that only this process's path leads to.
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    # The child counts `seconds` after its imports; this limit is for one that never gets there.
    timeout = seconds + START_SECONDS
    try:
        process = subprocess.run(
            command, input=call, stdout=subprocess.PIPE, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"longer than {timeout:g} s") from None

    if process.returncode == EXIT_TIMEOUT:
        raise TimeoutError(f"longer than {seconds:g} s")
    if process.returncode:
        raise WorkerDied(f"its process ended with status {process.returncode}")

    # Of a process that this one has started: no pickle of a file or a store is read.
    result, error = pickle.loads(process.stdout)
    if error is not None:
        raise error
    return result


def subprocess_main() -> None:
    """The subprocess of `run_in_subprocess`. It exits if the function exceeds its time limit, not
    counting imports."""
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
