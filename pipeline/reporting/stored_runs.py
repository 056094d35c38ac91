"""What an MLflow store has: the newest experiment, and the artifacts of its runs."""

from typing import Any

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.reporting.tracking import MODEL_TRAINING


def start_page(uri: str) -> str:
    """The path of the page of the newest experiment in MLflow's server, or of the list of experiments. Raises
    InputError."""
    try:
        newest = MlflowClient(uri).search_experiments(order_by=["last_update_time DESC"], max_results=1)
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
    place = f"experiments/{newest[0].experiment_id}/runs" if newest else "experiments"
    return f"/#/{place}?{MODEL_TRAINING}"


def logged_fingerprints(uri: str) -> tuple[set[str], set[str]]:
    """The fingerprints of the stages that were logged to an MLflow store: those of runs that exist, and of all runs,
    also deleted ones. A run whose parent was deleted counts as deleted. A pipeline's run names the stages that were
    cached. Raises InputError."""
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
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", "") for run in runs}
    active = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active"}

    def exists(run: str) -> bool:
        return run in active and (not parents[run] or exists(parents[run]))

    logged = [
        (run.info.run_id, fingerprint)
        for run in runs
        for key in ("fingerprint", "cached_fingerprints")
        for fingerprint in run.data.tags.get(key, "").split()
    ]
    return {fingerprint for run, fingerprint in logged if exists(run)}, {fingerprint for _, fingerprint in logged}
