"""A corpus that is decoded on a cluster, whose parts are started by their command lines, as in
docs/scale.md."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from alpro.pool import in_this_process
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Resources
from tests.conftest import ROOT, decode_data
from tests.stages.conftest import write_manifest
from tests.stages.corpora.gated_decoder import GatedDecoder

ROWS = [{"id": f"{n:02d}", "captions": [f"wall {n}"], "split": "train"} for n in range(60)]
SETTINGS = {"size": 16, "samples_per_shard": 4}
DASK = Path(sys.executable).with_name("dask")


@pytest.fixture
def dask(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """dask("worker", ...): starts a program of the cluster."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:

        def start(*words: object) -> subprocess.Popen:
            command = [str(word) for word in (DASK, *words)]
            program = stack.enter_context(subprocess.Popen(command, env=environment, cwd=tmp_path))
            stack.callback(program.kill)
            return program

        yield start


@pytest.fixture
def scheduler(dask, tmp_path) -> str:
    file = tmp_path / "scheduler.json"
    dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
    wait_until(file.exists)
    return json.loads(file.read_text())["address"]


def wait_until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        threading.Event().wait(0.05)


@pytest.mark.long
def test_a_worker_is_killed_and_another_one_added(dask, scheduler, tmp_path):
    """The bytes are those of one machine, and nobody's unit is lost."""
    manifest = write_manifest(tmp_path / "data", [dict(row) for row in ROWS])
    here = tmp_path / "one machine"
    with in_this_process():
        decode_data(Config(**SETTINGS), manifest, here, Resources(workers=1))

    # One is started by Dask's nanny, and two without.
    options = ["--nthreads", 2, "--no-nanny", "--local-directory", tmp_path]
    workers = [dask("worker", scheduler, *options) for _ in range(2)]
    dask("worker", scheduler, "--nthreads", 2, "--local-directory", tmp_path)

    tried = tmp_path / "data"

    def interfere() -> None:
        victim = workers[0]
        # It holds an item that waits for `go`.
        wait_until(lambda: any(path.name > "30" for path in tried.glob(f"*.{victim.pid}.tried")))
        os.kill(victim.pid, signal.SIGKILL)
        dask("worker", scheduler, *options)
        (tried / "go").touch()

    thread = threading.Thread(target=interfere)
    thread.start()
    there = tmp_path / "cluster"
    decode_data(GatedDecoder(**SETTINGS), manifest, there, Resources(scheduler=scheduler))
    thread.join()

    for file in ("index.parquet", "rejects.parquet", "statistics.json", *here.glob("*.tar")):
        name = Path(file).name
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    tries = Counter(path.name.partition(".")[0] for path in tried.glob("*.tried"))
    assert max(tries.values()) == 2
