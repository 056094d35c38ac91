"""Runs of MLflow that are not over."""

import os
import socket
from typing import Any

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.execution.lifecycle import alive

QUERY = "attributes.status = 'RUNNING'"


def running(uri: str) -> list[str]:
    """The names of this project's runs that are running, with their machines.

    A run of this machine is running if its process is; one of another machine if MLflow shows it as running and nobody
    has deleted it. Raises InputError.
    """
    runs: list[Any] = []
    try:
        client = MlflowClient(uri)
        experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
        token = None
        while experiments:
            page: Any = client.search_runs(experiments, QUERY, ViewType.ALL, page_token=token)
            runs += page
            if not (token := page.token):
                break
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
    return [
        f"{run.info.run_name} on {run.data.tags.get('host', 'unknown')}"
        for run in runs
        if "pid" in run.data.tags and is_running(run.data.tags, run.info.lifecycle_stage == "deleted")
    ]


def is_running(tags: dict[str, str], deleted: bool) -> bool:
    """Whether a run with these tags, which MLflow shows as running, has a process, as far as this machine can know."""
    if tags.get("host") != socket.gethostname():
        return not deleted
    return tags["pid"].isdigit() and int(tags["pid"]) != os.getpid() and alive(int(tags["pid"]))
