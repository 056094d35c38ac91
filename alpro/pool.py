"""Run tasks in processes that may die: on this machine, or on the workers of a Dask cluster.

Native code may crash, a decoder may hang, memory may run out: such a task is `Died`, and all others
go on. Each process has a pipe of its own: one that dies while it holds the lock of a shared queue
would stop all others.

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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from glob import glob
from hashlib import sha256
from itertools import chain, islice
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import get_ident
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from alpro.environment import package_versions
from alpro.errors import InputError, one_line
from alpro.interpreter import set_parent_death_signal
from alpro.log import TIMES, log

Task = TypeVar("Task")
Result = TypeVar("Result")

EXIT_TIMEOUT = 1  # exit status of faulthandler at a time limit
CONNECT_SECONDS = 20.0
CAPACITY_SECONDS = 5.0  # how long the number of a cluster's threads is used
MAX_RUNNING = 10_000  # tasks that a cluster has at once
IDLE_SECONDS = 600  # after which a child process ends, with its memory


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
        InputError: If the scheduler does not answer, or a worker has other versions.
        ConnectionError: If the scheduler was lost. Finished tasks are kept.
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
    running: dict[Future[bytes | Died], Task] = {}

    # A thread waits for each task. The engine ends the tasks before their threads are joined.
    with (
        ThreadPoolExecutor(MAX_RUNNING if scheduler else workers) as threads,
        closing(engine),
    ):
        while True:
            # At least one task, also while a cluster has no workers.
            free = max(engine.capacity, 1) - len(running)
            for task in islice(pending, max(free, 0)):
                future = threads.submit(engine.run, pickle.dumps((work, task)))
                running[future] = task
            if not running:
                return

            # Workers may join meanwhile.
            done, _ = wait(running, CAPACITY_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                answer = future.result()
                if isinstance(answer, Died):
                    yield task, answer
                    continue

                # This process has started the sender: no pickle from a file or a store is read.
                result, error = pickle.loads(answer)
                if error is not None:
                    raise error
                yield task, result


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


class _Child(NamedTuple):
    process: BaseProcess
    connection: Connection


def _start_child() -> _Child:
    # Spawned: a fork would copy the locks of this process's threads.
    context = get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, os.getpid()), daemon=True)
    process.start()
    # The child alone has this end from here on, so the connection closes when it ends.
    other_end.close()
    return _Child(process, connection)


def _serve(connection: Connection, parent: int) -> None:
    """Run the pickled tasks that arrive, until none has come for a while.

    The answer to each is the pickled result, and the exception that the function raised.
    """
    # Ctrl-C goes to all processes of a terminal, and the parent stops this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_parent_death_signal(parent, signal.SIGKILL)

    while connection.poll(IDLE_SECONDS):
        call = connection.recv_bytes()
        try:
            # Here, so a task that cannot be unpickled is an error like others.
            work, task = pickle.loads(call)
            answer = pickle.dumps((work(task), None))
        except Exception as error:
            answer = pickle.dumps((None, _picklable(error)))
        connection.send_bytes(answer)
    os._exit(0)  # at once: a task that comes now is lost


def _picklable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    error.add_note(f"In a worker process:\n{text}")
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # pickle rebuilds it with other arguments
        return RuntimeError(text)


class _Processes:
    """Child processes of this process, one for each thread that calls `run`."""

    def __init__(self, capacity: int = 1):
        self.capacity = capacity
        self._children: dict[int, _Child] = {}  # by the identifiers of the threads
        self._is_closed = False

    def run(self, call: bytes) -> bytes | Died:
        """Run a pickled task in the child process of this thread. Return the answer of `_serve`."""
        child = self._children.get(get_ident())
        if child is None or not child.process.is_alive():
            child = _start_child()
            self._children[get_ident()] = child
        # `close` has not seen a child that was started meanwhile.
        if self._is_closed:
            child.process.kill()

        try:
            child.connection.send_bytes(call)
            return child.connection.recv_bytes()
        except (EOFError, OSError):  # the process has ended
            child.process.join()
        if child.process.exitcode == EXIT_TIMEOUT:
            return Died("its process took too long", timed_out=True)
        return Died(f"its process ended with status {child.process.exitcode}")

    def close(self) -> None:
        """End all processes, and those of later tasks."""
        self._is_closed = True
        for child in [*self._children.values()]:
            child.process.kill()


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
        self._job = uuid4().hex
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
        if not self.capacity:
            log.warning(
                f"{scheduler}: no workers; start some with `dask worker {scheduler}`"
            )

    @property
    def capacity(self) -> int:
        now = time.monotonic()
        # Workers come and go. To ask for each task would cost more than a small task.
        if now - self._asked > CAPACITY_SECONDS:
            self._threads = self._client.scheduler_info(n_workers=0)["total_threads"]
            self._asked = now
        # One that runs and one that waits on each thread.
        return 2 * self._threads

    def run(self, call: bytes) -> bytes | Died:
        """Run a pickled task on a worker. Return the answer of `_serve`."""
        from distributed import KilledWorker

        # `pure=False` makes equal calls as often as they are submitted.
        arguments = (self._job, call, versions())
        future = self._client.submit(_answer, *arguments, pure=False)
        try:
            answer, lines = future.result()
        except CancelledError:
            raise ConnectionError(
                f"{self._scheduler}: the scheduler was lost"
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

    def close(self) -> None:
        if self._client.status == "running":
            self._client.run(_end_job, self._job, on_error="ignore")
        self._client.close()


# Processes of each job on a cluster's worker. They end with the job.
_jobs: defaultdict[str, _Processes] = defaultdict(_Processes)


def _answer(
    job: str, call: bytes, client_versions: Mapping[str, str]
) -> tuple[bytes | Died, list[str]]:
    """Run a task on a worker of a cluster, in a child process.

    Returns:
        The answer of `_serve`, and the lines that the task printed.

    Raises:
        InputError: If the versions here differ from the client's.
    """
    check_versions(client_versions)
    # Workers that Dask's nanny has started are daemons, which multiprocessing gives no children.
    # Ours end with this process by the kernel.
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]

    with NamedTemporaryFile() as output:
        printing = pickle.dumps((_print_to, (output.name, call)))
        answer = _jobs[job].run(printing)
        text = output.read().decode(errors="replace")
    return answer, [f"{platform.node()}: {line}" for line in text.splitlines()]


def _print_to(task: tuple[str, bytes]) -> Any:
    """Run a pickled task whose process prints into a file."""
    output, call = task
    os.environ[TIMES] = "0"  # the log that receives the lines has times of its own
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr  # which writes each line at once: a crash loses none

    work, inner = pickle.loads(call)
    return work(inner)


def _end_job(job: str) -> None:
    # The job stays known as closed, for its tasks that wait for a thread.
    _jobs[job].close()


@cache
def versions() -> dict[str, str]:
    """Return what may change a result: the versions of Python and of packages, and the digest of
    this project's source."""
    here: dict[str, str] = {}
    for name, version in package_versions().items():
        # Builds for CPUs and for GPUs, such as 2.11.0+cpu, are the same version.
        here[name] = version.partition("+")[0]
    here["python"] = here["python"].rpartition(".")[0]  # without the patch

    source = sha256()
    root = Path(__file__).parent
    # Path.rglob does not follow the links to the rooms.
    for file in sorted(glob("**/*.py", root_dir=root, recursive=True)):  # noqa: PTH207
        source.update((root / file).read_bytes())
    here["alpro-pipeline"] = source.hexdigest()[:12]
    return here


def check_versions(expected: Mapping[str, str]) -> None:
    """Compare the versions of a client with those here. A package that is missing here is no
    difference: its users say what they need.

    Raises:
        InputError: If one differs.
    """
    here = versions()
    for name, version in expected.items():
        if here.get(name, version) != version:
            raise InputError(
                f"{platform.node()}, a worker of the cluster, has {name} {here[name]}, and this "
                f"machine {version}; results would differ: install the same on both, and restart "
                "the worker"
            )
