"""Processes that end with the process that started them.

`python -P -m alpro.stages.execution.lifecycle CLIENT GRACE STOP_FILE COMMAND...` runs COMMAND until
it ends, the process CLIENT ends, or SIGTERM arrives. It decides how a stage stops: whoever stops one
sends it SIGTERM, or just dies. `Processes.wait` kills what is left.
"""

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from alpro.environment import protect_descendants
from alpro.interpreter import interpreter, set_parent_death_signal

# Name of the file in a stage's folder at which its training writes a checkpoint and ends.
STOP_FILE = "stop"
# Environment variable with the process ID of a supervised command: its descendants may start after
# it has ended.
PARENT = "ALPRO_PARENT"
POLL_SECONDS = 0.1


def supervised(
    command: list[str], grace: float = 0.0, stop_file: Path | None = None
) -> list[str]:
    """Return the command line that runs a command for this process; see `supervise`."""
    arguments = [str(os.getpid()), str(grace), str(stop_file or "")]
    return interpreter("-m", "alpro.stages.execution.lifecycle", *arguments, *command)


def supervise(client: int, grace: float, stop_file: str, command: list[str]) -> int:
    """Run a command until it ends, this process receives SIGTERM, or `client`, which started this
    process, ends.

    A command with a stop file is stopped by creating that file, and others by SIGTERM, or by
    SIGKILL if their client has ended. What has not ended `grace` seconds later is killed. If this
    process is killed, the kernel kills the command.

    Returns:
        The `shell_status` of the command.
    """
    requests: list[int] = []
    # The kernel and batch systems may send several, so a signal only leaves a mark.
    signal.signal(signal.SIGTERM, lambda number, _: requests.append(number))
    # It asks a stage for its traceback, which handles it. It would end this process, and torchrun, which
    # inherits that it is ignored.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if os.getppid() != client:
        return 1

    child = subprocess.Popen(command, preexec_fn=partial(_join_supervisor, os.getpid()))
    deadline = math.inf
    while child.poll() is None:
        # The kernel gives the children of a process that ends to another one.
        orphaned = os.getppid() != client
        if (requests or orphaned) and deadline == math.inf:
            deadline = time.monotonic() + grace
            if stop_file:
                Path(stop_file).touch()
            elif orphaned:
                deadline = 0.0
            else:
                child.terminate()

        if time.monotonic() >= deadline:
            child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)

    if os.getppid() != client:
        os.killpg(0, signal.SIGKILL)  # nobody else is left to end the group
    return shell_status(child.returncode)


def shell_status(returncode: int) -> int:
    """Return an exit status of `subprocess` as a shell reports it: 128 + N for signal N."""
    return returncode if returncode >= 0 else 128 - returncode


def _join_supervisor(supervisor: int) -> None:
    """Prepare a forked child to run a supervised command."""
    set_parent_death_signal(supervisor, signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())


def get_parent() -> int:
    """Return the process that started this one, even if it has ended, where that is known."""
    return int(os.environ.get(PARENT, os.getppid()))


if __name__ == "__main__":
    protect_descendants()
    sys.exit(supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
