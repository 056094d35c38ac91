"""A corpus that is decoded on a cluster, whose parts are started by their command lines, as in
docs/scale.md."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from alpro import pool
from alpro.errors import InputError
from alpro.interpreter import set_parent_death_signal
from alpro.pool import each, in_this_process
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Resources
from tests.conftest import ROOT, decode_data
from tests.pool_tasks import kill_then_hang
from tests.stages.conftest import write_manifest
from tests.stages.corpora.gated_decoder import GatedDecoder

ROWS = [
    {"id": f"{n:02d}", "captions": [f"wall {n}"], "split": "train"} for n in range(60)
]
SETTINGS = {"size": 16, "samples_per_shard": 4}
DASK = Path(sys.executable).with_name("dask")


@pytest.fixture
def dask(tmp_path):
    """dask("worker", ...): starts a program of the cluster, which ends with the test.

    The kernel ends it when pytest is killed. Call it from the main thread: the kernel counts the
    end of the thread that has started a program.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    end_with_pytest = partial(set_parent_death_signal, os.getpid(), signal.SIGKILL)
    with ExitStack() as stack:

        def start(*words):
            command = [str(word) for word in (DASK, *words)]
            program = subprocess.Popen(
                command, env=environment, cwd=tmp_path, preexec_fn=end_with_pytest
            )
            stack.callback(program.wait)
            stack.callback(program.kill)
            return program

        yield start


@pytest.fixture
def scheduler(dask, tmp_path):
    """The address of a scheduler, and its process."""
    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", 0, "--scheduler-file", file]
    program = dask("scheduler", *options)
    # Dask creates the file before it writes it.
    wait_until(lambda: file.exists() and file.stat().st_size)
    return json.loads(file.read_text())["address"], program.pid


def wait_until(is_true):
    while not is_true():
        threading.Event().wait(0.05)


@pytest.mark.long
def test_a_worker_is_killed_and_another_one_added(dask, scheduler, tmp_path):
    """The bytes are those of one machine, and nobody's unit is lost."""
    manifest = write_manifest(tmp_path / "data", [dict(row) for row in ROWS])
    here = tmp_path / "one machine"
    with in_this_process():
        decode_data(Config(**SETTINGS), manifest, here, Resources(workers=1))

    address, _ = scheduler
    # One is started by Dask's nanny, and two without. A worker whose scheduler is gone ends.
    options = ["--nthreads", 2, "--local-directory", tmp_path, "--death-timeout", 30]
    without_nanny = [*options, "--no-nanny"]
    victim = dask("worker", address, *without_nanny)
    dask("worker", address, *without_nanny)
    dask("worker", address, *options)

    tried = tmp_path / "data"
    there = tmp_path / "cluster"
    resources = Resources(scheduler=address)
    with ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(
            decode_data, GatedDecoder(**SETTINGS), manifest, there, resources
        )
        # Until the victim holds an item that waits for `go`.
        pattern = f"*.{victim.pid}.tried"
        wait_until(
            lambda: decoding.done() or any(p.name > "30" for p in tried.glob(pattern))
        )
        victim.kill()
        dask("worker", address, *without_nanny)
        (tried / "go").touch()
        decoding.result()

    for file in (
        "index.parquet",
        "rejects.parquet",
        "statistics.json",
        *here.glob("*.tar"),
    ):
        name = Path(file).name
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    # Only the items of the victim's units are decoded twice.
    tries = Counter(path.name.partition(".")[0] for path in tried.glob("*.tried"))
    assert max(tries.values()) == 2


def test_a_lost_scheduler_ends_the_iteration(dask, scheduler, tmp_path, monkeypatch):
    # Also until a lost connection is given up.
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 2)
    address, process = scheduler
    dask("worker", address, "--no-nanny", "--nthreads", 1)
    # The task kills the scheduler.
    work = partial(kill_then_hang, pid_file=tmp_path / "pid")

    with pytest.raises(InputError, match="the scheduler was lost"):
        next(each([process], work, workers=1, scheduler=address))
