"""What Prefect's pages show of a run: its name, and links to MLflow and the report."""

import os
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from alpro.pipeline.servers.temporary import TEMPORARY
from alpro.pipeline.tracking.tracker import Tracker


def name_run(name: str, tags: list[str]) -> None:
    """Gives the current flow run the name that contains its fingerprint, which is known once its files are read."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        run = context.flow_run
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, name=name, tags=sorted({*run.tags, *tags}))
        run.name = name


def prefect_address() -> str:
    """The address of the current run on Prefect's page; empty if there is no server that stays."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    server = PREFECT_UI_URL.value() or (PREFECT_API_URL.value() or "").removesuffix("/api")
    if not server or server == os.environ.get(TEMPORARY):
        return ""
    if task:
        return f"{server}/runs/task-run/{task.task_run.id}"
    return f"{server}/runs/flow-run/{flow.flow_run.id}" if flow and flow.flow_run else ""


def link_to_mlflow(tracker: Tracker, run: str, key: str, report: Path | None = None) -> None:
    """A link on Prefect's page to a run in MLflow, or to the report that the run has. Without an MLflow server, the
    link to the report is that of its file, and there is no link to the run."""
    address = tracker.address(run, report.name if report else "")
    if report:
        link = address or report.as_uri()
        create_link_artifact(link, link_text=report.name, key=key, description=f"Report: {report}")
    elif address:
        create_link_artifact(address, link_text="MLflow run", key=key, description=f"MLflow run {run}")


def artifact_key(name: str) -> str:
    """
    >>> artifact_key("decode_videos My_clips")
    'decode-videos-my-clips'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def about_run(tags: dict[str, str]) -> dict[str, str]:
    """Completes the tags of an MLflow run: Prefect's runs, and a link to Prefect's page, which MLflow shows as the
    description."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow and flow.flow_run:
        tags = tags | {"prefect_flow_run": str(flow.flow_run.id)}
    if task:
        tags = tags | {"prefect_run": str(task.task_run.id)}
    address = prefect_address()
    return {"mlflow.note.content": f"[Prefect run]({address})"} | tags if address else tags
