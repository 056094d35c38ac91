"""The same units as task runs of Prefect on Dask: a real scheduler with two workers, one of which is killed."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from alpro.errors import InputError
from alpro.pipeline.flows import dask
from alpro.pipeline.flows.dask import on_dask
from alpro.pipeline.flows.flow import build_vocabulary
from alpro.stages.execution import workers
from alpro.stages.execution.interface import Resources
from tests.stages.conftest import contents
from tests.stages.execution.test_workers import note

distributed = pytest.importorskip("distributed")
TINY = str(Path(__file__).parents[1] / "tiny.toml")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with (
        prefect_test_harness(server_startup_timeout=600),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as made,
    ):
        yield made


def runs_of_units(*names: str) -> dict[str, str]:
    """The state of each unit's task run in Prefect, by the names of the functions."""
    with get_client(sync_client=True) as client:
        return {run.name: run.state_name for run in client.read_task_runs() if run.name.split()[0] in names}


@task(cache_policy=NO_CACHE)
def note_in_a_task(address: str, folder: Path, session: Any) -> list[tuple[int, int]]:
    """The first unit kills its worker: that worker has no other whose end it might not have reported to Prefect."""
    resources = Resources(dask=address, device="cpu")
    return list(workers.run_units(range(7), partial(note, folder=folder, crashing=(0,)), resources))


@flow
def note_all(address: str, folder: Path) -> list[tuple[int, int]]:
    """Like a stage, a task with a parameter that cannot be pickled."""
    return note_in_a_task(address, folder, threading.RLock())


@pytest.mark.long
def test_units_are_task_runs_and_one_that_kills_its_worker_is_done_again(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "open_cluster", on_dask)

    found = note_all(cluster.scheduler_address, tmp_path)
    assert sorted(found) == [(number, 10 * number) for number in range(7)]
    until = time.monotonic() + 120  # workers report to Prefect from a thread
    while list(runs_of_units("note").values()).count("Completed") < 7 and time.monotonic() < until:
        time.sleep(0.5)
    assert runs_of_units("note") == {f"note {number}": "Completed" for number in range(1, 8)}


@pytest.mark.long
def test_a_worker_killed_half_way_changes_no_byte(cluster, tmp_path):
    changes = ["corpora.clips.samples_per_shard=2", "corpora.stills.samples_per_shard=2"]
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("artifacts/decode_videos*/*/*.tar")):
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        worker = next(iter(cluster.workers.values()))
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run = partial(build_vocabulary, TINY, workspace=str(tmp_path))
    folders = run(changes=[*changes, f"resources.dask={cluster.scheduler_address}"])
    killer.join()
    assert killed
    stages = ["decode_videos clips", "decode_videos stills", "build_vocabulary"]
    there = {stage: shutil.move(folders[stage], tmp_path / stage) for stage in stages}
    here = run(changes=changes)
    for stage in stages:
        made, expected = contents(there[stage]), contents(Path(here[stage]))
        # The manifest tells when it was made.
        assert made | {"artifact.json": ""} == expected | {"artifact.json": ""}
    assert {name.split()[0] for name in runs_of_units("process_unit", "tag_unit")} == {"process_unit", "tag_unit"}


def test_a_scheduler_that_is_not_there_is_a_mistake(free_port, monkeypatch):
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 0.1)
    with pytest.raises(InputError, match="no Dask scheduler answers there"), on_dask(f"tcp://127.0.0.1:{free_port()}"):
        pass


def test_a_stage_without_a_pipeline_sends_nothing(decode_sample, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "open_cluster", None)
    with pytest.raises(InputError, match="only a pipeline can use a cluster"):
        decode_sample(tmp_path, "clips", Resources(dask="tcp://127.0.0.1:1", device="cpu"))
