"""Start Python programs safely.

Python puts the current folder first on the import path of `python -m` and `python -c`. People run
`alpro` in folders of downloaded data, whose `queue.py` or `calendar.py` would then run in place of
a module of the standard library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def interpreter(*arguments: str) -> list[str]:
    """Return the command line of a Python program that imports nothing from the current folder."""
    return [sys.executable, "-P", *arguments]


def let_only_interrupt_repeat() -> None:
    """Let SIGHUP and SIGTERM do nothing from now on, after the first signal that stops this process.

    Only a second Ctrl-C means "now". Others come in pairs: a shell and the kernel both send SIGHUP
    when a terminal is closed.
    """
    for number in (signal.SIGHUP, signal.SIGTERM):
        # A function, not SIG_IGN: children would inherit that.
        signal.signal(number, lambda *_: None)


def set_parent_death_signal(parent: int, number: signal.Signals) -> None:
    """Let the kernel send a signal to this process when the thread that started it ends. Exit at
    once if the parent has ended already. Works on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    # A parent that ended before `prctl` sends no signal.
    if os.getppid() != parent:
        os._exit(1)
