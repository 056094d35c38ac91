"""Stages run by their deployments, here and on a machine without a common folder; prefect.yaml."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from prefect.states import Completed, Failed, Running, Scheduled, State

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.pipeline import flow, planning, tasks
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Step
from alpro.pipeline.config import load_config
from alpro.pipeline.handover import Handover
from alpro.stages import STAGES, WITH_MODEL
from alpro.stages.execution.interface import Resources, StageFailed, Stopped
from alpro.stages.execution.stop import STOP, Stop
from tests.stages.conftest import write_manifest

pytestmark = pytest.mark.usefixtures("prefect")
ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def test_every_flow_has_a_deployment_in_its_pool():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert sorted(d["name"] for d in deployments) == sorted(["alpro", *(stage.replace("_", "-") for stage in STAGES)])
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].partition(":")
        assert module == "alpro.pipeline.flow"
        assert getattr(flow, name).name == deployment["name"]  # as make_by_deployment names it: flow/deployment
        assert deployment["work_pool"]["name"] == ("gpu" if name in WITH_MODEL else "cpu")


def test_the_pipelines_deployment_runs_its_stages_in_their_pools():
    """The pipeline itself runs in `cpu`: in `gpu`, limited to one run at a time, its stages would never start."""
    (whole, *stages) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert whole["parameters"] == {"stages_by_deployment": True}
    assert whole["work_pool"] == {"name": "cpu"}
    assert not any("parameters" in stage for stage in stages)  # the places of files are in the workers' environment


@pytest.fixture
def deployments(monkeypatch) -> Callable[..., list[tuple[str, dict[str, Any]]]]:
    """deployments(**changes): deployments run at once in this process, with these parameters changed, as by workers of
    another machine. Returns the list of the runs, each with its parameters."""

    def install(**changes: Any) -> list[tuple[str, dict[str, Any]]]:
        runs: list[tuple[str, dict[str, Any]]] = []

        def run_deployment(
            name: str, parameters: dict[str, Any], timeout: float | None, flow_run_name: str, tags: list[str]
        ) -> SimpleNamespace:
            assert timeout == 0  # it returns at once, and the state is polled
            runs.append((name, parameters))
            last = parameters["handover"]["steps"][-1]
            assert (flow_run_name, tags) == (f"{last['name']} · {last['fingerprint'][:8]}", ["tiny"])
            stage = name.partition("/")[2].replace("-", "_")
            sent = json.loads(json.dumps(parameters)) | changes
            return SimpleNamespace(name="a-run", state=getattr(flow, stage)(**sent, return_state=True))

        monkeypatch.setattr(tasks, "run_deployment", run_deployment)
        monkeypatch.setattr(tasks, "wait_for_run", lambda run: run.state)
        return runs

    return install


def stage_runs(workspace: Path, stage: str) -> list[Any]:
    """The MLflow runs of a stage that ran, newest first."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], f"tags.stage = '{stage}'")
    return [run for run in runs if "cached" not in run.data.tags]


def newest_pipeline(workspace: Path) -> Any:
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)


def test_only_missing_stages_run_by_deployment_with_the_pipelines_parameters(first, workspace, deployments):
    runs = deployments()
    changes = ["evaluate.seed=11", "resources.device=cpu"]
    folders = flow.alpro(TINY, changes=changes, workspace=str(workspace), stages_by_deployment=True)
    ((name, parameters),) = runs
    assert name == "evaluate/evaluate"
    handover = parameters.pop("handover")
    assert parameters == {
        "config": TINY,
        "data": "",
        "changes": changes,
        "workspace": str(workspace),
        "tracking_uri": "",
    }
    assert handover["resources"]["device"] == "cpu"
    assert handover["steps"][-1]["config"]["seed"] == 11
    assert list(folders) == list(first)
    parent = newest_pipeline(workspace)
    assert parent.info.status == "FINISHED"
    assert "test/retrieval/t2v/R1" in parent.data.metrics
    run = stage_runs(workspace, "evaluate")[0]  # logged by the stage, and not again by the pipeline
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert read_record(Path(folders["evaluate"]))["run"]["mlflow_run"] == run.info.run_id


def test_a_stage_on_a_machine_with_a_workspace_and_a_store_of_its_own(first, workspace, deployments, tmp_path):
    """It gets its inputs from the shared artifacts, and each MLflow store has a run of the stage."""
    elsewhere = tmp_path / "elsewhere"
    deployments(workspace=str(elsewhere))
    changes = [f"resources.artifacts='{tmp_path}/shared'", "evaluate.seed=12"]
    folders = flow.alpro(TINY, changes=changes, workspace=str(workspace), stages_by_deployment=True)
    assert Path(folders["evaluate"]).is_relative_to(workspace)
    there = {path.parent.name for path in elsewhere.glob("artifacts/*/*/artifact.json")}
    steps = planning.plan(load_config(TINY, changes=changes), Digests(tmp_path / "digests.sqlite"))
    inputs = {step.name for step in steps[-1].inputs.values()}
    assert there == {Path(folders[name]).name for name in inputs | {"evaluate"}}
    (child,) = stage_runs(elsewhere, "evaluate")
    assert "mlflow.parentRunId" not in child.data.tags
    parent = newest_pipeline(workspace)
    here = stage_runs(workspace, "evaluate")[0]
    assert here.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert here.data.metrics == child.data.metrics
    assert parent.data.metrics["test/retrieval/t2v/R1"] == here.data.metrics["test/retrieval/t2v/R1"]


def test_a_deployment_that_fails_fails_the_pipeline(first, workspace, monkeypatch):
    monkeypatch.setattr(tasks, "run_deployment", lambda *_, **__: SimpleNamespace(name="blue-fox"))
    monkeypatch.setattr(tasks, "wait_for_run", lambda run: Failed(message="no GPU"))
    with pytest.raises(StageFailed, match="deployment evaluate: run blue-fox did not complete: no GPU"):
        flow.alpro(TINY, changes=["evaluate.seed=13"], workspace=str(workspace), stages_by_deployment=True)
    assert newest_pipeline(workspace).info.status == "FAILED"


def test_a_missing_artifact_of_a_deployment_fails_the_pipeline(first, workspace, monkeypatch):
    monkeypatch.setattr(tasks, "run_deployment", lambda *_, **__: SimpleNamespace(name="blue-fox"))
    monkeypatch.setattr(tasks, "wait_for_run", lambda run: Completed())
    with pytest.raises(StageFailed, match="does not exist; the workers must share the workspace"):
        flow.alpro(TINY, changes=["evaluate.seed=14"], workspace=str(workspace), stages_by_deployment=True)


@pytest.mark.parametrize(("state", "cancelled"), [(Running(), "Cancelling"), (Scheduled(), "Cancelled")])
def test_a_pipeline_that_stops_cancels_the_runs_of_its_deployments(state, cancelled, monkeypatch):
    """A run that no worker has picked up yet is cancelled at once."""
    states: list[State] = [state]
    stop = Stop()
    stop.request()

    class Client:
        def read_flow_run(self, run: str) -> SimpleNamespace:
            return SimpleNamespace(state=states[-1])

        def set_flow_run_state(self, run: str, new: State) -> None:
            states.append(new)

    monkeypatch.setattr(tasks, "get_client", lambda sync_client: nullcontext(Client()))
    token = STOP.set(stop)
    try:
        with pytest.raises(Stopped):
            tasks.wait_for_run(SimpleNamespace(id="blue-fox"))
    finally:
        STOP.reset(token)
    assert states[-1].name == cancelled


@pytest.fixture
def walls(tmp_path) -> Callable[[], dict[str, Step]]:
    """walls(): the steps of the tiny pipeline on the user's pictures, by name."""
    rows = [
        {"id": f"{color} wall {n}", "captions": [f"a {color} wall and a dog {n}"], "split": "train"}
        for color in ("red", "green")
        for n in range(12)
    ]
    manifest = str(write_manifest(tmp_path / "data", rows))
    changes = [f"resources.artifacts='{tmp_path}/shared'", "build_vocabulary.entities=2", "corpora.data.size=16"]

    def steps() -> dict[str, Step]:
        config = load_config(TINY, manifest, changes)
        return {step.name: step for step in planning.plan(config, Digests(tmp_path / "digests.sqlite"))}

    return steps


def handed(step: Step, tmp_path: Path) -> dict[str, Any]:
    """The handover of a pipeline on another machine, as JSON values."""
    resources = Resources(artifacts=f"{tmp_path}/shared", workers=1)
    return json.loads(Handover.of(step, "tiny", "run-elsewhere", resources, {}).model_dump_json())


def test_a_stage_needs_the_artifacts_of_its_corpora_and_not_their_files(walls, tmp_path):
    steps = walls()
    decoded = flow.decode_videos(handover=handed(steps["decode_videos data"], tmp_path), workspace=str(tmp_path / "a"))
    assert list(decoded) == ["decode_videos data"]
    (tmp_path / "data").rename(tmp_path / "not on this machine")
    folders = flow.build_vocabulary(handover=handed(steps["build_vocabulary"], tmp_path), workspace=str(tmp_path / "b"))
    assert list(folders) == ["build_vocabulary"]
    assert Path(folders["build_vocabulary"]).name == steps["build_vocabulary"].fingerprint[:16]


def test_a_stage_without_inputs_names_the_missing_ones(walls, tmp_path):
    handover = handed(walls()["build_vocabulary"], tmp_path)
    with pytest.raises(InputError, match=r"decode_videos data: the pipeline has this artifact, but .* does not exist"):
        flow.build_vocabulary(handover=handover, workspace=str(tmp_path / "b"))


def test_files_that_differ_on_the_stages_machine_are_refused(walls, tmp_path):
    handover = handed(walls()["decode_videos data"], tmp_path)
    (tmp_path / "data" / "red wall 3.png").write_bytes(b"another picture")
    with pytest.raises(InputError, match=r"decode_videos data: the files of .*items.jsonl differ from those of"):
        flow.decode_videos(handover=handover, workspace=str(tmp_path / "a"))


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step.update(fingerprint="0" * 64),
        lambda step: step["config"].update(an_option_of_tomorrow=1),
        lambda step: step.update(stage="a_stage_of_tomorrow"),
    ],
)
def test_another_version_of_the_project_is_refused(change, walls, tmp_path):
    handover = handed(walls()["decode_videos data"], tmp_path)
    change(handover["steps"][-1])
    with pytest.raises(InputError, match=r"decode_videos data: .* different versions of this project"):
        flow.decode_videos(handover=handover, workspace=str(tmp_path / "a"))


def test_a_handover_is_complete(tmp_path):
    """Every step of a pipeline arrives with its fingerprint, and its inputs once each."""
    for step in planning.plan(load_config(TINY), Digests(tmp_path / "digests.sqlite")):
        handover = Handover.model_validate(handed(step, tmp_path))
        assert handover.step().fingerprint == step.fingerprint
        names = [entry.name for entry in handover.steps]
        assert len(names) == len(set(names))
        assert names[-1] == step.name
