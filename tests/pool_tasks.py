"""What the tests of the pool let processes do. Each process imports this module, which imports
little, so that they start in a moment."""

import os
import signal
import sys
import threading
from pathlib import Path

from alpro.errors import InputError
from alpro.log import log
from alpro.pool import exit_after


class OddError(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, first: int, second: int):
        super().__init__(f"{first} and {second}")


def note(number: int, folder: Path, crashing: tuple[int, ...] = ()) -> int:
    """Leave a file for each time that a task runs. The crashing ones end their process."""
    (folder / f"{number}-{os.getpid()}").touch()
    if number in crashing:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 10 * number


def get_pid(_: object) -> int:
    return os.getpid()


def kill_then_hang(process: int, pid_file: Path) -> None:
    pid_file.write_text(str(os.getpid()))
    os.kill(process, signal.SIGKILL)
    threading.Event().wait()


def behave(how: str) -> str:
    if how == "hang in an item":
        with exit_after(0.5):
            threading.Event().wait()
    if how == "raise":
        raise ValueError("no")
    if how == "raise for the user":
        raise InputError("no such column")
    if how == "raise an odd error":
        raise OddError(1, 2)
    if how == "print":
        print("to standard output")
        os.write(2, b"noise of native code\n")
        log.warning("a warning")
    if how == "print and crash":
        print("last words", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    return how
