"""Child processes that end with their parent, by the kernel.

`python -P -m alpro.stages.execution.lifecycle PARENT COMMAND...` becomes COMMAND, which receives
SIGTERM when the thread that started it ends, however that happens: a training writes a checkpoint
then. This works on Linux only.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

from alpro.environment import protect_descendants
from alpro.interpreter import interpreter

PR_SET_PDEATHSIG = 1
# The variable with the process that started this one, of the descendants of a program.
PARENT = "ALPRO_PARENT"


def with_parent(command: list[str]) -> list[str]:
    """The command line of a program that ends with this process."""
    return interpreter("-m", "alpro.stages.execution.lifecycle", str(os.getpid()), *command)


def parent_process() -> int:
    """The process that started this one, also if it has ended since, as far as that is known."""
    return int(os.environ.get(PARENT, os.getppid()))


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """From now on this process receives a signal when its parent ends. Exits if that has happened
    already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    # A parent that ended before `prctl` sends no signal.
    if os.getppid() != parent:
        os._exit(1)


def ignore_signals(*numbers: int) -> None:
    """From now on, these signals do nothing in this process. Unlike SIG_IGN, this does not pass on
    to the programs that it starts."""
    for number in numbers:
        signal.signal(number, lambda *_: None)


def signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the group is empty
        os.killpg(leader, number)


if __name__ == "__main__":
    protect_descendants()
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.environ[PARENT] = str(os.getpid())  # COMMAND has the same number
    os.execvp(sys.argv[2], sys.argv[2:])
