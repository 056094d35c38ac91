"""What an MLflow store has: the newest experiment, the artifacts of its runs, and which runs are not over."""

import io
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.tracking.tracker import MODEL_TRAINING, VIEW
from alpro.stages.execution.lifecycle import alive


@contextmanager
def usable(uri: str) -> Iterator[MlflowClient]:
    """A client of a store. Its errors, and those of its database or server, become an InputError."""
    try:
        yield MlflowClient(uri)
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error


def start_page(uri: str) -> str:
    """The path of the page of the newest experiment in MLflow's server, or of the list of experiments. Raises
    InputError."""
    with usable(uri) as client:
        newest = client.search_experiments(order_by=["last_update_time DESC"], max_results=1)
    if not newest:
        return f"/#/experiments?{MODEL_TRAINING}"
    return f"/#/experiments/{newest[0].experiment_id}/runs?{MODEL_TRAINING}&viewStateShareKey={VIEW}"


def forget_deleted_runs(database: Path) -> None:
    """Removes the deleted runs of an SQLite store and their files for good, as `mlflow gc` does, and the runs whose
    parents were deleted. Raises InputError."""
    import mlflow
    from mlflow.cli import gc

    uri = f"sqlite:///{database}"
    runs = all_runs(uri)
    exists = existing(runs)
    with usable(uri) as client:
        for run in runs:
            if run.info.lifecycle_stage == "active" and run.info.run_id not in exists:
                client.delete_run(run.info.run_id)
        try:
            with redirect_stdout(io.StringIO()):  # a line for each run
                gc.main(["--backend-store-uri", uri, "--tracking-uri", uri], standalone_mode=False)
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # gc sets it for this process
        with closing(sqlite3.connect(database, timeout=60)) as db:
            db.execute("vacuum")  # otherwise the file stays as large as it was


def logged_fingerprints(uri: str) -> tuple[set[str], set[str]]:
    """The fingerprints of the stages that were logged to an MLflow store: those of runs that exist, and of all runs,
    also deleted ones. A run whose parent was deleted counts as deleted. A pipeline's run names the stages that were
    cached. Raises InputError."""
    runs = all_runs(uri)
    exists = existing(runs)
    logged = [
        (run.info.run_id, fingerprint)
        for run in runs
        for key in ("fingerprint", "cached_fingerprints")
        for fingerprint in run.data.tags.get(key, "").split()
    ]
    return {fingerprint for run, fingerprint in logged if run in exists}, {fingerprint for _, fingerprint in logged}


def running(uri: str) -> list[str]:
    """The names of this project's runs that are running, with their machines.

    A run of this machine is running if its process is; one of another machine if MLflow shows it as running and nobody
    has deleted it. Raises InputError.
    """
    return [
        f"{run.info.run_name} on {run.data.tags.get('host', 'unknown')}"
        for run in all_runs(uri, "attributes.status = 'RUNNING'")
        if "pid" in run.data.tags and is_running(run.data.tags, run.info.lifecycle_stage == "deleted")
    ]


def is_running(tags: dict[str, str], deleted: bool) -> bool:
    """Whether a run with these tags, which MLflow shows as running, has a process, as far as this machine can know."""
    if tags.get("host") != socket.gethostname():
        return not deleted
    return tags["pid"].isdigit() and int(tags["pid"]) != os.getpid() and alive(int(tags["pid"]))


def all_runs(uri: str, query: str = "") -> list[Any]:
    """The runs of a store, also deleted ones, that match a query. Raises InputError."""
    runs: list[Any] = []
    with usable(uri) as client:
        experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
        token = None
        while experiments:
            page = client.search_runs(experiments, query, ViewType.ALL, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                break
    return runs


def existing(runs: list[Any]) -> set[str]:
    """The ids of the runs that are not deleted, and of which no parent is."""
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", "") for run in runs}
    active = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active"}

    def exists(run: str) -> bool:
        return run in active and (not parents[run] or exists(parents[run]))

    return {run for run in parents if exists(run)}
