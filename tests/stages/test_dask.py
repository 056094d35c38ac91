"""The same units on a Dask cluster: a real scheduler with two workers, one of which is killed half-way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.schema import InputError
from stages import build_vocabulary
from stages.artifacts import Resources
from tests.stages.test_decode_videos import contents

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as made:
        yield made


@pytest.mark.long
def test_a_worker_killed_half_way_changes_no_byte(cluster, clips, decode_sample, tmp_path):
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not list((tmp_path / "parts").glob("*.tar")) and not list(tmp_path.glob("*.tar*")):
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        worker = next(iter(cluster.workers.values()))
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    resources = Resources(dask=cluster.scheduler_address, device="cpu")
    out = decode_sample(tmp_path, "clips", resources, samples_per_shard=4)
    killer.join()
    assert killed
    here = decode_sample(tmp_path.parent / f"{tmp_path.name}-here", "clips", samples_per_shard=4)
    # What the killed worker had begun is deleted when the artifact is made.
    made = {name: digest for name, digest in contents(out).items() if not name.endswith(".part")}
    assert made == contents(here)


@pytest.mark.long
def test_nouns_are_counted_the_same(cluster, corpora, vocabulary, tmp_path):
    resources = Resources(dask=cluster.scheduler_address, device="cpu")
    build_vocabulary.run(build_vocabulary.Config(entities=8, word_pieces=300), corpora, tmp_path, resources)
    assert contents(tmp_path) == contents(vocabulary)


def test_a_scheduler_that_is_not_there_is_a_mistake(decode_sample, tmp_path: Path, free_port):
    with pytest.raises(InputError, match="no Dask scheduler answers there"):
        decode_sample(tmp_path, "clips", Resources(dask=f"tcp://127.0.0.1:{free_port()}", device="cpu"))
