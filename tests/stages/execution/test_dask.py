"""Units on a Dask cluster: a real scheduler with two workers, one of which is killed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.stages.execution import workers
from alpro.stages.execution.interface import Resources
from tests.stages.conftest import contents

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as made:
        yield made


@pytest.mark.long
def test_a_worker_killed_half_way_changes_no_byte(cluster, decode_sample, tmp_path):
    out, killed = tmp_path / "there", []

    def kill() -> None:
        until = time.monotonic() + 60
        while not list(out.glob("*.tar")) and time.monotonic() < until:
            time.sleep(0.01)
        killed.append(next(iter(cluster.workers.values())).pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    out.mkdir()
    decode_sample(out, "clips", Resources(dask=cluster.scheduler_address, device="cpu"), samples_per_shard=2)
    killer.join()
    (tmp_path / "here").mkdir()
    decode_sample(tmp_path / "here", "clips", samples_per_shard=2)
    made, expected = contents(out), contents(tmp_path / "here")
    # The killed worker may leave a hidden temporary file: orphans of a pipeline may still write, so none is deleted.
    assert {name: made[name] for name in made if not name.startswith(("parts", "."))} == {
        name: expected[name] for name in expected if not name.startswith("parts")
    }


def test_a_scheduler_that_does_not_answer_is_a_mistake(free_port, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.1)
    resources = Resources(dask=f"tcp://127.0.0.1:{free_port()}", device="cpu")
    with pytest.raises(InputError, match="no Dask scheduler"):
        list(workers.run_units([0], print, resources))
