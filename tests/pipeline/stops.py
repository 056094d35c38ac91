"""A run that is killed at a random instant, and the processes that it leaves."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from alpro.interpreter import set_parent_death_signal
from tests.conftest import ROOT

LOADER = Path(__file__).with_name("with_dataloader_worker")
# How a run is ended: a role, and the signals that it receives.
ROLES = ("pipeline", "supervisor", "torchrun", "rank", "DataLoader worker")
SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGKILL": [signal.SIGKILL],
}


def prepare_child(parent: int) -> None:
    """Let a program end with the tests, also if they are killed, and by Ctrl-C."""
    set_parent_death_signal(parent, signal.SIGTERM)
    # A shell's background jobs ignore Ctrl-C, and their children with them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a command as a terminal does, in a process group of its own.

    Its trainings have a DataLoader worker, as on a machine with a GPU.
    """
    # Tests have settings of Prefect, such as the level of its log.
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_")
    }
    environment = own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(LOADER)}
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            preexec_fn=partial(prepare_child, os.getpid()),
            start_new_session=True,
        )


def get_role(process: psutil.Process) -> str:
    """Return what a descendant of a pipeline does."""
    with suppress(psutil.Error):
        line = " ".join(process.cmdline())
        parent = " ".join(process.parent().cmdline())
        if "execution.lifecycle" in line:
            return "supervisor" if "run_stage" in line else "server"
        if "torch.distributed.run" in line:
            return "torchrun"
        if "execution.run_stage" in line:
            # A DataLoader worker is a fork of its rank.
            return "DataLoader worker" if line == parent else "rank"
    return "other"


def find(pipeline: subprocess.Popen, role: str) -> list[psutil.Process]:
    """Return the processes of a role that run at present."""
    try:
        root = psutil.Process(pipeline.pid)
        if role == "pipeline":
            return [root]
        return [one for one in root.children(recursive=True) if get_role(one) == role]
    except psutil.NoSuchProcess:
        return []


def descendants(pipeline: subprocess.Popen) -> set[psutil.Process]:
    """Return the processes that a pipeline has started and that still run."""
    with suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pipeline.pid).children(recursive=True))
    return set()


def end_at_random(
    pipeline: subprocess.Popen,
    role: str,
    signals: list[int],
    draw: random.Random,
    seconds: float,
) -> bool:
    """Send signals to a process of a role at a random instant, and wait until all have ended.

    Returns:
        Whether there was such a process.
    """
    until = time.monotonic() + 120
    while (
        not find(pipeline, role)
        and time.monotonic() < until
        and pipeline.poll() is None
    ):
        time.sleep(0.05)
    time.sleep(draw.uniform(0, seconds))
    started = descendants(pipeline)
    victims = find(pipeline, role)
    if victims:
        victim = draw.choice(victims)
        for number in signals:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(number)
            time.sleep(draw.choice([0, 0.0001, 0.1]))
    while pipeline.poll() is None:
        started |= descendants(pipeline)
        time.sleep(0.1)
    _, left = psutil.wait_procs(started, 60)
    assert not left, [one.cmdline() for one in left]
    return bool(victims)
