"""What Prefect's pages show: links and names."""

from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext

from alpro.pipeline.flows import pages as pages
from alpro.pipeline.tracking.tracker import Tracker

pytestmark = pytest.mark.usefixtures("prefect")


def artifacts_of(run_id) -> dict[str, SimpleNamespace]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {artifact.key: artifact for artifact in found if artifact.key}


def test_names_and_links(tmp_path):
    @flow
    def pipeline(uri: str) -> str:
        tracker = Tracker(SimpleNamespace(), "3", uri)
        pages.name_run("sample · 3f2a9c", ["sample"])
        pages.link_to_mlflow(tracker, "r1", "mlflow")
        pages.link_to_mlflow(tracker, "r1", "report", tmp_path / "sample-3f2a9c.html")
        tags = pages.about_run({"stage": "x"})
        run = FlowRunContext.get().flow_run
        assert tags["mlflow.note.content"].endswith(f"/runs/flow-run/{run.id})")
        assert "/api" not in tags["mlflow.note.content"]
        return str(run.id)

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(server := pipeline("http://host:5000"))
    assert (run.name, run.tags) == ("sample · 3f2a9c", ["sample"])
    shown = artifacts_of(server)
    page = "http://host:5000/#/experiments/3/runs/r1"
    assert shown["mlflow"].data == f"[MLflow run]({page}?workflowType=machine_learning)"
    assert f"({page}/artifacts/sample-3f2a9c.html?" in shown["report"].data
    shown = artifacts_of(pipeline("sqlite:///mlflow.db"))
    assert "mlflow" not in shown
    assert f"(file://{tmp_path}/sample-3f2a9c.html)" in shown["report"].data
