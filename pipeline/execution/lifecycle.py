"""One rule for every process: it ends, with a checkpoint, when what started it ends.

`alpro up` starts servers and workers, a worker starts runs, and a run starts the processes of its stages. Servers and
workers read their standard input, which ends with what holds its other end; runs and stages watch the process above
them. For a program that knows nothing of this: `python -m alpro.pipeline.execution.lifecycle COMMAND ...`.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

PARENT_SECONDS = 1.0  # between looks at a parent
GRACE_SECONDS = 45.0  # for the processes of a stage to write a checkpoint; torchrun gives its ranks 30
RUN_SECONDS = GRACE_SECONDS + 20  # for a run: its stages, its report, and what it says to the servers
WORKER_SECONDS = RUN_SECONDS + 30  # for a worker: its runs, and what it says to Prefect
EXIT_SECONDS = 15.0  # for a server


def end_after(ending: Callable[[], object], seconds: float, status: int = 1) -> None:
    """Ends this process once `ending` returns, which runs in a thread: by SIGTERM, so that it can write a checkpoint,
    and after `seconds` with `status`, since a process that waits may not handle signals."""

    def watch() -> None:
        ending()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(status)

    threading.Thread(target=watch, daemon=True).start()


def input_ended() -> None:
    """Returns at the end of standard input."""
    while os.read(0, 4096):
        pass


def parent_ended(parent: int) -> None:
    """Returns when this process is no longer a child of `parent`."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)


def drop_output() -> None:
    """Writes standard output and error to nowhere: nobody reads them any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run(command: Sequence[str]) -> int:
    """Runs a program until it, this process or its standard input ends; returns its status. Whatever the program has
    started in its session ends with it."""
    # Blocked until there is a program to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_this_process
    )
    signal.signal(signal.SIGTERM, lambda *_: signal_group(program.pid, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_after(input_ended, EXIT_SECONDS)
    try:
        return program.wait()
    finally:
        signal_group(program.pid, signal.SIGKILL)


def end_with_this_process() -> None:
    """For the program that is about to be started: on Linux it receives SIGTERM if this process is killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the group is empty
        os.killpg(leader, number)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
