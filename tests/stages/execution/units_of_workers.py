"""What the tests of workers let processes do. The processes import this module: it imports little,
so that they start in a moment."""

import os
import signal
import threading
from pathlib import Path


def note(unit: int, folder: Path, crashing: tuple[int, ...] = (), times: int = 1) -> int:
    """Leaves a file that says that a unit was done; a crashing one ends its process so many times
    first."""
    deaths = sorted(folder.glob(f"{unit}-death-*"))
    if unit in crashing and len(deaths) < times:
        (folder / f"{unit}-death-{len(deaths)}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{unit}-done").touch()
    return 10 * unit


def misbehave(how: str) -> str:
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        threading.Event().wait()
    if how == "raise":
        raise ValueError("no")
    os.write(1, b"noise of native code\n")
    return how
