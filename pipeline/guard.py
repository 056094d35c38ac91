"""Ends what `alpro up` started if it is killed: `python -m alpro.pipeline.guard MARK`, until its standard input ends.

Every process that `alpro up` starts, and every process below these, has ALPRO_UP=MARK in its environment. `alpro up`
holds the other end of the standard input, and needs no guard to stop everything itself.
"""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

from alpro.pipeline.launch import GRACE_SECONDS

MARK = "ALPRO_UP"
RUN_SECONDS = GRACE_SECONDS + 20  # for a run to write its checkpoint and report its end
EXIT_SECONDS = 15.0
POLL_SECONDS = 0.1


def marked(mark: str) -> dict[psutil.Process, dict[str, str]]:
    """The other processes with a mark in their environment, and their environments."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is of another user
            environment = process.environ()
            if environment.get(MARK) == mark and process.pid != os.getpid():
                found[process] = environment
    return found


def end_all(mark: str) -> None:
    """Ends all processes with a mark: runs have time for a checkpoint, and to report their end to the servers."""
    processes = marked(mark)
    runs = {process for process, environment in processes.items() if "PREFECT__FLOW_RUN_ID" in environment}
    for process in processes.keys() - runs:
        with suppress(psutil.Error):
            if {"worker", "start"} <= set(process.cmdline()):  # it would start more runs
                process.kill()
    pids = {process.pid for process in runs}
    for process in runs:
        with suppress(psutil.Error):
            if process.ppid() not in pids:  # a run ends its own processes
                process.terminate()
    wait_for(runs, RUN_SECONDS)
    while left := marked(mark):  # one may start another before it is killed
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for(left, EXIT_SECONDS)


def wait_for(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Waits until the processes have ended. They are not children of this one: those that ended may be zombies."""
    end = time.monotonic() + seconds
    while any(map(runs_still, processes)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def runs_still(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.stdin.read()
    end_all(sys.argv[1])
