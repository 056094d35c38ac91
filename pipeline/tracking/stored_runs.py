"""What an MLflow store has: the newest experiment, and the artifacts of its runs."""

import io
import sqlite3
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.tracking.tracker import MODEL_TRAINING, VIEW


def start_page(uri: str) -> str:
    """The path of the page of the newest experiment in MLflow's server, or of the list of experiments. Raises
    InputError."""
    try:
        newest = MlflowClient(uri).search_experiments(order_by=["last_update_time DESC"], max_results=1)
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
    if not newest:
        return f"/#/experiments?{MODEL_TRAINING}"
    return f"/#/experiments/{newest[0].experiment_id}/runs?{MODEL_TRAINING}&viewStateShareKey={VIEW}"


def forget_deleted_runs(database: Path) -> None:
    """Removes the deleted runs of an SQLite store and their files for good, as `mlflow gc` does, and the runs whose
    parents were deleted. Raises InputError."""
    import mlflow
    from mlflow.cli import gc

    uri = f"sqlite:///{database}"
    try:
        client, runs = MlflowClient(uri), all_runs(uri)
        exists = existing(runs)
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
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error


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


def all_runs(uri: str) -> list[Any]:
    """The runs of a store, also deleted ones. Raises InputError."""
    try:
        client = MlflowClient(uri)
        experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
        runs: list[Any] = []
        token = None
        while experiments:
            page = client.search_runs(experiments, "", ViewType.ALL, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                break
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
    return runs


def existing(runs: list[Any]) -> set[str]:
    """The ids of the runs that are not deleted, and of which no parent is."""
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", "") for run in runs}
    active = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active"}

    def exists(run: str) -> bool:
        return run in active and (not parents[run] or exists(parents[run]))

    return {run for run in parents if exists(run)}
