"""The flow as the run of a deployment, with stages in other pools; and called from Python."""

import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import httpx
import prefect
import pytest
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Running

from alpro.errors import InputError
from alpro.pipeline.flows import flow, tasks
from alpro.stages.execution.interface import StageFailed
from tests.pipeline.conftest import (
    TINY,
    in_process,
    newest_run,
    runs,
    states_of,
)

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """These runs are not of the command line, which other tests call."""
    monkeypatch.delenv("ALPRO_COMMAND_LINE", raising=False)


# The deployments of the server by their names, with their stages and pools.
DEPLOYMENTS = {
    "finetune_qa": ("finetune_qa", "gpu"),
    "evaluate": ("evaluate", "gpu"),
    "build_vocabulary": ("build_vocabulary", "cpu"),
    "nightly": ("pretrain", "gpu"),
}


def client_of(*states):
    """Prefect's client, for a deployment of the pool `cpu`; a run has the next of the states."""
    client = MagicMock()
    client.__enter__.return_value = client
    client.read_deployment.return_value.work_pool_name = "cpu"
    client.read_deployments.return_value = [
        SimpleNamespace(name=name, work_pool_name=pool, parameters={"stage": stage})
        for name, (stage, pool) in DEPLOYMENTS.items()
    ]
    client.read_flow_run.side_effect = [
        state if isinstance(state, Exception) else SimpleNamespace(state=state)
        for state in states
    ]
    return client


@pytest.fixture
def deployed(first, workspace, monkeypatch):
    """deployed(client, changes): runs `alpro` as the run of a deployment; the deployments that it
    starts, each with its parameters. `build` does their work, in the same workspace, as a worker of
    their pool would."""

    def start(client, changes, build=True):
        started = []

        def run_deployment(name, parameters, timeout, flow_run_name, job_variables):
            started.append((name, parameters))
            if build:
                for variable, value in job_variables["env"].items():
                    monkeypatch.setenv(variable, value)
                client.read_deployment.return_value.work_pool_name = "gpu"
                with in_process():
                    flow.alpro(**parameters)
                monkeypatch.delenv(tasks.PARENT_RUN)
                client.read_deployment.return_value.work_pool_name = "cpu"
            return SimpleNamespace(id="r", name="blue-fox")

        for module in (flow, tasks):
            monkeypatch.setattr(module, "get_client", lambda sync_client: client)
        monkeypatch.setattr(flow, "deployment", SimpleNamespace(id="d"))
        monkeypatch.setattr(flow, "set_parent_death_signal", lambda *_: None)
        monkeypatch.setattr(tasks, "run_deployment", run_deployment)
        monkeypatch.setattr(tasks, "POLL_SECONDS", 0)
        monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))
        monkeypatch.chdir(workspace)
        flow.alpro(TINY, changes=changes)
        return started

    return start


@pytest.mark.usefixtures("copied")
def test_a_stage_with_a_deployment_in_another_pool_is_that_deployments_run(
    deployed, workspace
):
    """In MLflow, all stages are in the one run of the pipeline."""
    changes = ["finetune_qa.lr=2e-3"]
    before = len(runs(workspace)[0])
    lost = httpx.ConnectError("refused")
    client = client_of(Running(), lost, AwaitingRetry(), Completed(), Completed())

    started = deployed(client, changes)

    parameters = {"config": TINY, "changes": changes}
    assert started == [
        ("alpro/finetune_qa", parameters | {"stage": "finetune_qa"}),
        ("alpro/evaluate", parameters | {"stage": "evaluate qa"}),
    ]
    states = states_of(workspace, changes)
    assert (states["finetune_retrieval"], states["evaluate qa"]) == ("cached", "built")
    pipelines, nested = runs(workspace)
    assert len(pipelines) == before + 1
    stages = {run.data.tags["stage"] for run in nested[pipelines[0].info.run_id]}
    assert stages == {"finetune_qa", "evaluate"}
    note = pipelines[0].data.tags["mlflow.note.content"]
    assert re.search(r"`finetune_qa.lr = 0.002 \(previous run: [\d.]+\)`", note)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Failed(message="no captions"), "no captions"),
        (Crashed(), "finetune_qa"),
        (Completed(), "does not exist"),
    ],
)
def test_a_deployment_that_fails_or_builds_elsewhere_fails_the_step(
    state, message, deployed
):
    with pytest.raises(StageFailed, match=message):
        deployed(client_of(state), ["finetune_qa.lr=3e-3"], build=False)


@pytest.mark.usefixtures("interruptible")
def test_a_pipeline_that_stops_cancels_the_runs_of_deployments(deployed):
    client = client_of()
    main = threading.main_thread().ident

    def stop(one):
        if client.read_flow_run.call_count == 2:
            signal.pthread_kill(main, signal.SIGINT)
            assert tasks.CURRENT_RUN.get().stopping.wait(120)
        return SimpleNamespace(state=Running())

    client.read_flow_run.side_effect = stop
    with pytest.raises(KeyboardInterrupt):
        deployed(client, ["finetune_qa.lr=4e-3"], build=False)
    assert [call.args[1].name for call in client.set_flow_run_state.call_args_list] == [
        "Cancelling"
    ]


def test_the_flow_runs_without_a_deployment(first, workspace, monkeypatch):
    """Also as a part of another flow. The workspace is where the variable says."""
    monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))

    @prefect.flow
    def outer():
        return flow.alpro(TINY, stage="train_tokenizer")

    for folders in (flow.alpro(config=TINY, stage="train_tokenizer"), outer()):
        assert Path(folders["train_tokenizer"]).samefile(first["train_tokenizer"])


def test_a_mistake_is_the_message_of_the_state_in_one_line(
    workspace, monkeypatch, caplog
):
    monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))
    changes = ["finetune_retrieval.lrr=1"]
    with pytest.raises(InputError, match="did you mean 'lr'"):
        flow.alpro(TINY, changes=changes)
    run, _ = newest_run()
    assert run.name == TINY
    assert run.state.type.value == "FAILED"
    assert "did you mean 'lr'" in run.state.message
    assert "\n" not in run.state.message
    assert "Traceback" not in caplog.text


def test_a_run_of_prefect_shows_its_results(first, workspace, monkeypatch):
    monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))
    flow.alpro(TINY)
    _, only = newest_run()
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(flow_run_filter=only)
    assert (artifact.key, artifact.type) == ("results", "markdown")
    assert "| --- |" in artifact.data
    assert "**Finished**" in artifact.data
