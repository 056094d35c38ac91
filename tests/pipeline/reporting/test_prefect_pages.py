"""What Prefect's pages show: progress that moves, tables, links, names."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext

from alpro.pipeline.reporting import prefect_pages as pages
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.progress import LISTENER, Count, progress

pytestmark = pytest.mark.usefixtures("prefect")


def artifacts_of(run_id) -> dict[str, SimpleNamespace]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {artifact.key: artifact for artifact in found if artifact.key}


def test_progress_moves_while_a_stage_works(monkeypatch):
    """A listener counts the units of a task; the bar of the page follows, from a thread."""
    monkeypatch.setattr(pages, "PROGRESS_SECONDS", 0.01)
    shown, seen = [], threading.Event()
    create, update = pages.create_progress_artifact, pages.update_progress_artifact

    def watch(kind):
        def call(*arguments):
            shown.append(arguments[0] if kind is create else arguments[1])
            result = kind(*arguments)
            seen.set()
            return result

        return call

    monkeypatch.setattr(pages, "create_progress_artifact", watch(create))
    monkeypatch.setattr(pages, "update_progress_artifact", watch(update))

    @task
    def stage() -> None:
        counts: list[Count] = []
        token = LISTENER.set(counts.append)
        bar = pages.show_progress("decode_videos My_clips", lambda: counts[-1] if counts else None)
        with bar, progress("decoding", 8, "items") as advance:
            for units in (2, 6):
                advance(units)
                assert seen.wait(60)
                seen.clear()
        LISTENER.reset(token)

    @flow
    def pipeline() -> str:
        stage()
        return str(FlowRunContext.get().flow_run.id)

    found = artifacts_of(pipeline())["decode-videos-my-clips-progress"]
    assert shown == [25.0, 100.0]
    assert float(found.data) == 100.0
    assert found.description == "decode_videos My_clips: 8 of 8 items"
    assert found.task_run_id


def test_a_server_that_fails_does_not_stop_the_stage(monkeypatch, capsys):
    failed = threading.Event()

    def fail(*arguments):
        failed.set()
        raise OSError("no answer")

    monkeypatch.setattr(pages, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(pages, "create_progress_artifact", fail)
    with pages.show_progress("pretrain", lambda: Count(1, 2, "steps")):
        assert failed.wait(60)
    assert capsys.readouterr().out == "warning: pretrain: progress is not shown: no answer\n"


@pytest.mark.parametrize("count", [None, Count(3, None, "rows"), Count(0, 0, "rows")])
def test_nothing_is_shown_without_a_total(count, monkeypatch):
    asked, created = threading.Event(), []
    monkeypatch.setattr(pages, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(pages, "create_progress_artifact", lambda *arguments: created.append(arguments))
    with pages.show_progress("pretrain", lambda: (asked.set(), count)[1]):
        assert asked.wait(60)
    assert created == []


def test_names_and_links(tmp_path):
    @flow
    def pipeline(uri: str) -> str:
        tracker = Tracker(SimpleNamespace(), "3", uri)
        pages.name_run("sample · 3f2a9c", ["sample"])
        pages.link_to_mlflow(tracker, Run("r1"), "mlflow")
        pages.link_to_mlflow(tracker, Run("r1"), "report", tmp_path / "sample-3f2a9c.html")
        pages.show_metrics("train_prompter", Path("folder"), {"loss": 1 / 3})
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
    assert '"value": 0.3333' in str(shown["train-prompter"].data)
    shown = artifacts_of(pipeline("sqlite:///mlflow.db"))
    assert "mlflow" not in shown
    assert f"(file://{tmp_path}/sample-3f2a9c.html)" in shown["report"].data
