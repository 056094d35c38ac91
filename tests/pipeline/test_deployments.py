"""Steps run by deployments, here and on a machine without a common folder; prefect.yaml."""

import json
import re
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
from alpro.pipeline.config.pipeline_config import PipelineConfig, load_config
from alpro.pipeline.flows import flow, tasks
from alpro.pipeline.flows.session import Place, Request, start_session
from alpro.pipeline.plan import dag as planning
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store.artifacts import Store
from alpro.stages import STAGES
from alpro.stages.execution.interface import StageFailed, Stopped
from alpro.stages.execution.stop import STOP, Stop
from tests.stages.conftest import write_manifest

pytestmark = pytest.mark.usefixtures("prefect")
ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def test_every_flow_has_a_deployment_in_its_pool():
    """What a person starts begins in `cpu`, where it waits for nothing: a mistake is found at once. Only steps with a
    model wait for a slot of `gpu`; a limit of a deployment would let later runs overtake earlier ones."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = [*(name.replace("_", "-") for name in ("alpro", *STAGES)), "cpu", "gpu"]
    assert sorted(deployment["name"] for deployment in deployments) == sorted(names)
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].partition(":")
        pool = deployment["name"] if name == "step" else "cpu"
        assert module == "alpro.pipeline.flows.flow"
        assert getattr(flow, name).name == ("step" if name == "step" else deployment["name"])
        assert deployment["work_pool"] == {"name": pool}
        assert deployment.get("parameters") == (None if name == "step" else {"stages_by_deployment": True})
        assert "concurrency_limit" not in deployment


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
            assert (flow_run_name, tags) == (f"{parameters['name']} · {parameters['fingerprint'][:8]}", ["tiny"])
            sent = json.loads(json.dumps(parameters)) | changes
            return SimpleNamespace(name=flow_run_name, state=flow.step(**sent, return_state=True))

        monkeypatch.setattr(tasks, "run_deployment", run_deployment)
        monkeypatch.setattr(tasks, "wait_for_run", lambda run: run.state)
        return runs

    return install


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"config": "nope.toml"}, "nope.toml: no such configuration file"),
        ({"changes": ["pretrain.lrr=1"]}, "unknown key; did you mean 'lr'"),
        ({"data": "https://u:SECRET@host/m.jsonl"}, "this URL contains a user name"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"tracking_uri": "elsewhere"}, "elsewhere"),
    ],
)
def test_a_mistake_ends_the_run_before_it_waits_for_anything(parameters, message, tmp_path, deployments):
    runs = deployments()
    with pytest.raises(InputError, match=re.escape(message)) as error:
        flow.pretrain(**{"config": TINY, "workspace": str(tmp_path), "stages_by_deployment": True, **parameters})
    assert "SECRET" not in str(error.value)
    assert runs == []
    assert not (tmp_path / "mlflow.db").exists()


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


@pytest.mark.usefixtures("copied")
def test_only_missing_steps_run_by_deployment(first, workspace, deployments, monkeypatch):
    runs, lines = deployments(), []
    monkeypatch.delenv("ALPRO_COMMAND_LINE", raising=False)
    monkeypatch.setattr(tasks, "announce", lines.append)
    monkeypatch.setattr(flow, "announce", lines.append)
    changes = ["evaluate.seed=11", "resources.device=cpu"]
    folders = flow.alpro(TINY, changes=changes, workspace=str(workspace), stages_by_deployment=True)
    ((name, parameters),) = runs
    assert name == "step/gpu"
    assert (parameters["name"], parameters["workspace"], parameters["tracking_uri"]) == ("evaluate", str(workspace), "")
    assert Path(folders["evaluate"]).name == parameters["fingerprint"][:16]
    assert parameters["settings"] == load_config(TINY, changes=changes).model_dump(mode="json")
    assert parameters["arguments"] == {"config": TINY, "data": "", "changes": changes, "folder": "."}
    assert list(folders) == list(first)
    parent = newest_pipeline(workspace)
    assert parameters["parent_run"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert "test/retrieval/t2v/R1" in parent.data.metrics
    run = stage_runs(workspace, "evaluate")[0]  # logged by the step, and not again by the pipeline
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    record = read_record(Path(folders["evaluate"]))["run"]
    assert (record["mlflow_run"], record["arguments"]) == (run.info.run_id, parameters["arguments"])
    # The log of the pipeline says what happened to each step, and where the report is.
    assert "stage 1 of 12, render_sample: cached" in lines
    title = f"evaluate · {parameters['fingerprint'][:8]}"
    assert f"stage 12 of 12, evaluate: waits for a worker of the pool gpu or runs there, as {title}" in lines
    assert any(line.startswith("evaluate: done in ") for line in lines)
    assert lines[-1] == f"report: {workspace}/reports/tiny-{parameters['fingerprint'][:6]}.html"


def test_a_query_of_a_url_arrives_at_the_deployments(tmp_path):
    """Without it, they would read another manifest. Credentials are refused before."""
    url, passed = "https://host/m.jsonl?version=2", {"workspace": str(tmp_path), "tracking_uri": ""}
    request = Request("", TINY, url, ["evaluate.seed=1"], tmp_path, "", passed)
    config = load_config(TINY)
    plan = config, [SimpleNamespace(fingerprint="0" * 64)], Store(tmp_path / "artifacts")
    session = start_session(request, plan, Place("title"), dict)
    session.tracker.close()
    assert session.arguments["data"] == url
    assert session.passed == {
        **passed,
        "settings": config.model_dump(mode="json"),
        "arguments": {"config": TINY, "data": url, "changes": ["evaluate.seed=1"], "folder": "."},
    }


@pytest.mark.parametrize("config", [TINY, "sample"])
def test_a_configuration_arrives_complete(config):
    """As JSON, so that the machine of a step needs none of its files."""
    loaded = load_config(config)
    assert PipelineConfig.model_validate(json.loads(json.dumps(loaded.model_dump(mode="json")))) == loaded


def test_a_deployment_that_fails_fails_the_pipeline(first, workspace, monkeypatch):
    monkeypatch.setattr(tasks, "run_deployment", lambda *_, **__: SimpleNamespace(name="blue-fox"))
    monkeypatch.setattr(tasks, "wait_for_run", lambda run: Failed(message="no GPU"))
    with pytest.raises(StageFailed, match="deployment step/gpu: run blue-fox did not complete: no GPU"):
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
    changes = ["build_vocabulary.entities=2", "corpora.data.size=16"]

    def steps() -> dict[str, Step]:
        config = load_config(TINY, manifest, changes)
        return {step.name: step for step in planning.plan(config, Digests(tmp_path / "digests.sqlite"))}

    return steps


def parameters_of(tmp_path: Path, step: Step, **more: Any) -> dict[str, Any]:
    """What a pipeline on another machine passes for a step of `walls`, as JSON values."""
    manifest = str(tmp_path / "data" / "items.jsonl")
    changes = ["build_vocabulary.entities=2", "corpora.data.size=16"]
    settings = load_config(TINY, manifest, [*changes, "resources.workers=1"]).model_dump(mode="json")
    return {"name": step.name, "fingerprint": step.fingerprint, "settings": settings, "arguments": {}, **more}


def test_a_step_without_inputs_names_the_missing_ones(walls, tmp_path):
    passed = parameters_of(tmp_path, walls()["build_vocabulary"])
    with pytest.raises(InputError, match=r"decode_videos data: the pipeline has this artifact, but .* does not exist"):
        flow.step(**passed, workspace=str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("files", "decode_videos data: this machine and the one that runs the pipeline have different files"),
        ("missing", r"decode_videos data: .*items.jsonl"),
        ("version", "a step of tomorrow: this machine .* or different versions of this project"),
    ],
)
def test_a_machine_on_which_the_step_is_another_one_is_refused(change, message, walls, tmp_path):
    passed = parameters_of(tmp_path, walls()["decode_videos data"])
    if change == "files":
        (tmp_path / "data" / "red wall 3.png").write_bytes(b"another picture")
    elif change == "missing":
        (tmp_path / "data").rename(tmp_path / "elsewhere")
    else:
        passed["name"] = "a step of tomorrow"
    with pytest.raises(InputError, match=message):
        flow.step(**passed, workspace=str(tmp_path / "a"))
