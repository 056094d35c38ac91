"""Run tasks in processes that may die: on this machine, or on the workers of a Dask cluster.

Native code may crash, a decoder may hang, memory may run out: such a task is `Died`, and all others
go on. Each process has a pipe of its own. In a pool whose processes share a queue, one that dies
while it holds the queue's lock stops all others.

A worker of a cluster runs its tasks in child processes in the same way, so a file that crashes its
decoder has the same result there and here. If a worker itself is lost, the scheduler gives its
tasks to others.

Results travel through pipes: large ones belong in files.
"""

import faulthandler
import os
import pickle
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import Empty, SimpleQueue
from tempfile import NamedTemporaryFile
from threading import get_ident
from typing import Any, TypeVar

from alpro.errors import InputError, one_line
from alpro.interpreter import set_parent_death_signal
from alpro.log import TIMES, log
from alpro.versions import check_versions, get_versions

Task = TypeVar("Task")
Result = TypeVar("Result")

EXIT_TIMEOUT = 1  # exit status of faulthandler at a time limit
EXIT_ERROR = 70  # exit status of a child process that failed outside of a task
EXIT_IDLE = 75  # exit status of a child process that had nothing to do
CONNECT_SECONDS = 20.0
CAPACITY_SECONDS = 5.0  # how long the number of a cluster's threads is used
POLL_SECONDS = 1.0  # between looks whether a running task is still wanted
# Idle time after which a child process of a cluster's worker ends, with its memory. It outlives its
# job, because the next one may need the same model.
IDLE_SECONDS = 120.0


@dataclass(frozen=True)
class Died:
    """The outcome of a task whose process ended without a result.

    timed_out: whether it was ended because it took too long.
    """

    reason: str
    timed_out: bool = False


def each(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    workers: int,
    scheduler: str = "",
) -> Iterator[tuple[Task, Result | Died]]:
    """Run a function on tasks in other processes, and yield each task with its result.

    Args:
        tasks: They may be a generator, which is read as far as there are processes.
        work: A function that can be pickled. An exception that it raises is raised here.
        workers: Number of processes on this machine.
        scheduler: Address of a Dask scheduler, whose workers run the tasks instead.

    Returns:
        The tasks in order of completion. If the iteration ends early, by an exception or by
        Ctrl-C, running tasks are stopped.

    Raises:
        InputError: If the scheduler does not answer, or was lost (finished tasks are kept), or a
            worker has other versions.
    """
    pending = iter(tasks)
    if _runs_inline:
        for task in pending:
            yield task, work(task)
        return

    first = list(islice(pending, 1))
    if not first:  # no process is started, and no scheduler is asked
        return
    pending = chain(first, pending)

    engine = _Cluster(scheduler) if scheduler else _Processes(workers)
    running: dict[Any, Task] = {}  # by the futures of the engine
    finished: SimpleQueue[Any] = SimpleQueue()

    try:
        while True:
            # At least one task, also while a cluster has no workers.
            free = max(engine.capacity(), 1) - len(running)
            for task in islice(pending, max(free, 0)):
                future = engine.submit(pickle.dumps((work, task)))
                running[future] = task
                future.add_done_callback(finished.put)
            if not running:
                return

            try:
                future = finished.get(timeout=CAPACITY_SECONDS)
            except Empty:  # workers may have joined meanwhile
                continue
            task = running.pop(future)
            answer = engine.read(future)
            if isinstance(answer, Died):
                yield task, answer
                continue

            # This process has started the sender: no pickle from a file or a store is read.
            result, error = pickle.loads(answer)
            if error is not None:
                raise error
            yield task, result
    finally:
        engine.stop(running)


_runs_inline = False


@contextmanager
def in_this_process() -> Iterator[None]:
    """Let `each` call its function in this process and thread, as a debugger needs it."""
    global _runs_inline
    before = _runs_inline
    _runs_inline = True
    try:
        yield
    finally:
        _runs_inline = before


@contextmanager
def exit_after(seconds: float) -> Iterator[None]:
    """End this process if the body takes longer, with a traceback of where it is.

    Native code that hangs cannot be interrupted. Without effect within `in_this_process`.
    """
    if _runs_inline:
        yield
        return

    # A thread of C: it also ends a process that never releases Python's lock.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


# Child processes, which each run one task at a time


def _serve(tasks: Connection, parent: int, idle_seconds: float | None) -> None:
    """Run the tasks of the parent process, and end with it, or after some time without a task."""
    # Ctrl-C goes to all processes of a terminal, and the parent stops this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_parent_death_signal(parent, signal.SIGKILL)
    status = EXIT_IDLE
    try:
        while tasks.poll(idle_seconds):
            call, output = tasks.recv()
            tasks.send_bytes(_attempt(call, output))
    except EOFError:  # the parent has ended
        pass
    except BaseException:
        status = EXIT_ERROR
        traceback.print_exc()
    # At once: a task that is sent meanwhile would wait for threads and destructors.
    os._exit(status)


def _attempt(call: bytes, output: str) -> bytes:
    """Run a pickled task in a child process.

    Args:
        call: The pickled function and task. They are unpickled here, so that only this process
            needs their modules, and one that cannot be unpickled is an error like others.
        output: File that receives what is printed, for a child of a cluster's worker.

    Returns:
        The pickled result, and the exception that the function raised.
    """
    try:
        if output:
            os.environ[TIMES] = (
                "0"  # the log that receives the lines has times of its own
            )
            with open(output, "ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
        work, task = pickle.loads(call)
        return pickle.dumps((work(task), None))
    except Exception as error:
        return pickle.dumps((None, _picklable(error)))
    finally:
        with suppress(OSError):  # a full disk costs the lines
            sys.stdout.flush()


def _picklable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickle rebuilds it with other arguments
        return RuntimeError(text)
    if not isinstance(error, InputError):
        error.add_note(f"In a worker process:\n{text}")
    return error


def _start_child(idle_seconds: float | None) -> tuple[SpawnProcess, Connection]:
    """Start a child process. The pipe to it closes when it ends."""
    # Spawned: a fork would copy the locks of this process's threads.
    context: Any = get_context("spawn")  # a pipe has other types on Windows
    tasks, end_of_child = context.Pipe()
    values = (end_of_child, os.getpid(), idle_seconds)
    process = context.Process(target=_serve, args=values, daemon=True)
    process.start()
    end_of_child.close()
    return process, tasks


class _Processes:
    """Child processes of this process, each of which runs one task at a time. Thread-safe.

    A thread waits for each of the `workers` processes. On a Dask worker, these threads are Dask's.
    """

    def __init__(self, workers: int = 1):
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers)
        # By the threads that wait for them.
        self._children: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._is_stopped = False

    def capacity(self) -> int:
        return self._workers

    def submit(self, call: bytes) -> Future:
        return self._threads.submit(self.run, call)

    def read(self, future: Future) -> bytes | Died:
        return future.result()

    def run(
        self,
        call: bytes,
        output: str = "",
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> bytes | Died:
        """Run a task in the child process of this thread, which ends if the task is cancelled.
        Return the answer of `_attempt`, or Died."""
        thread = get_ident()
        while True:
            is_new = thread not in self._children
            if is_new:
                self._children[thread] = _start_child(IDLE_SECONDS if output else None)
            process, tasks = self._children[thread]
            is_sent = False
            try:
                tasks.send((call, output))
                is_sent = True
                while not tasks.poll(POLL_SECONDS):
                    if self._is_stopped or is_cancelled():
                        process.kill()
                return tasks.recv_bytes()
            except BaseException as error:
                # Its pipe is closed if the process has ended, also in the middle of a message.
                # Otherwise, the answer of this task would be taken for the next one's.
                process.kill()
                del self._children[thread]
                if not isinstance(error, EOFError | OSError):
                    raise

            # Process.start() in another thread may have reaped it, and not stored its status yet.
            while process.exitcode is None:
                process.join()
            # A process that ended while it had no task did not die of this one.
            is_idle = process.exitcode == EXIT_IDLE or not (is_sent or is_new)
            if process.exitcode == EXIT_TIMEOUT and not is_idle:
                return Died("its process took too long", timed_out=True)
            if not is_idle:
                return Died(f"its process ended with status {process.exitcode}")

    def stop(self, running: Iterable[Future] = ()) -> None:
        """End all processes."""
        self._is_stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        # A copy, because the threads remove the processes that end.
        children = [*self._children.values()]
        for process, _ in children:
            process.kill()
        for process, _ in children:  # before the caller deletes what they write
            process.join(POLL_SECONDS)


# Clusters


class _Cluster:
    """Workers of a Dask cluster, which see the same files as this machine."""

    def __init__(self, scheduler: str):
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                f"resources.scheduler = {scheduler!r} needs Dask: "
                "pip install 'alpro-pipeline[cluster]'"
            ) from None

        self._scheduler = scheduler
        try:
            self._client = Client(
                scheduler, timeout=CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"resources.scheduler = {scheduler!r}: no scheduler answers "
                f"({one_line(error)}); start it with `dask scheduler`"
            ) from error

        self._threads = 0
        self._asked = -CAPACITY_SECONDS
        if not self.capacity():
            log.warning(
                f"{scheduler}: no workers; start some with `dask worker {scheduler}`"
            )

    def capacity(self) -> int:
        now = time.monotonic()
        # Workers come and go. To ask for each task would cost more than a small task.
        if now - self._asked > CAPACITY_SECONDS:
            self._threads = self._client.scheduler_info(n_workers=0)["total_threads"]
            self._asked = now
        # One that runs and one that waits on each thread.
        return 2 * self._threads

    def submit(self, call: bytes) -> Any:
        # `pure=False` makes equal calls as often as they are submitted.
        return self._client.submit(_answer, call, get_versions(), pure=False)

    def read(self, future: Any) -> bytes | Died:
        from distributed import KilledWorker

        try:
            answer, lines = future.result()
        except CancelledError:
            raise InputError(
                f"{self._scheduler}: the scheduler was lost; start it, and run again to continue"
            ) from None
        except KilledWorker as killed:
            return Died(f"its worker was lost {killed.allowed_failures + 1} times")
        except ModuleNotFoundError as missing:
            raise InputError(
                f"{self._scheduler}: a worker lacks {missing.name}; install this project there"
            ) from missing

        for line in lines:
            log.info(line)
        return answer

    def stop(self, running: Iterable[Any]) -> None:
        if self._client.status == "running":
            self._client.cancel(list(running))
        self._client.close()


# The child processes of a cluster's worker, one for each of its threads.
_processes = _Processes()


def _answer(
    call: bytes, client_versions: Mapping[str, str]
) -> tuple[bytes | Died, list[str]]:
    """Run a task on a worker of a cluster, in a child process.

    Returns:
        The answer of `_attempt`, and the lines that the task printed.

    Raises:
        InputError: If the versions here differ from the client's.
    """
    from distributed import get_worker

    check_versions(client_versions)
    worker = get_worker()
    key = worker.get_current_task()

    def is_cancelled() -> bool:
        """Return whether the client has ended, or waits no longer."""
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    # Workers that Dask's nanny has started are daemons, which multiprocessing gives no children.
    # Ours end with this process by the kernel.
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]

    with NamedTemporaryFile() as output:
        answer = _processes.run(call, output.name, is_cancelled)
        text = output.read().decode(errors="replace")
    return answer, [f"{platform.node()}: {line}" for line in text.splitlines()]
