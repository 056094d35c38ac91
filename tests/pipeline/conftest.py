"""What tests of flows share: Prefect's server for tests, and one small pipeline that ran from end to end."""

import json
import os
import shutil

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # before Prefect is imported
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

TINY = str(Path(__file__).parents[1] / "tiny.toml")


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    from prefect.flow_engine import BaseFlowRunEngine
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=600):
        # At the end of each flow Prefect waits a second for the thread that reports that the flow is alive.
        patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
        yield


@pytest.fixture(scope="session")
def mlflow_store(build_once) -> Callable[[Path], None]:
    """mlflow_store(workspace): gives a workspace an empty MLflow store. It takes seconds to create one."""

    def create(out: Path) -> None:
        from alpro.pipeline.tracking.tracker import create_store

        create_store(out / "mlflow.db", out / "mlflow")

    return lambda workspace: shutil.copy(build_once("mlflow", create) / "mlflow.db", workspace)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, mlflow_store) -> Path:
    mlflow_store(folder := tmp_path_factory.mktemp("workspace"))
    return folder


@pytest.fixture
def pretrained(trained, tiny_model, tokenizer, tmp_path) -> Path:
    """The folder of a random pre-trained model beside its prompter, as `alpro model import` writes it."""
    from alpro.files import digest
    from alpro.models.alpro import Alpro
    from alpro.models.folder import ModelFolder

    folder, config = tmp_path / "pretrained", tiny_model(tokenizer.get_vocab_size())
    ModelFolder("pretrain", Alpro(config, 8), tokenizer, entities=list("abcdefgh")).save_pretrained(folder)
    for stage, inside in (("train_prompter", "model"), ("cache_prompts", "")):
        source = trained / "artifacts" / stage / digest(stage)[:16] / inside
        shutil.copytree(source, folder / "prompter", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model, tokenizer, vocabulary, resources) -> Path:
    """A workspace with a random model of each kind, and the prompts of the prompter."""
    import torch

    from alpro.files import digest
    from alpro.models.alpro import Alpro, Prompter
    from alpro.models.folder import ModelFolder
    from alpro.stages import cache_prompts

    config, root = tiny_model(tokenizer.get_vocab_size()), tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    models = {
        "train_prompter": ModelFolder("prompter", Prompter(config), tokenizer),
        "finetune_retrieval": ModelFolder("retrieval", Alpro(config), tokenizer),
        "finetune_qa": ModelFolder("qa", Alpro(config, answers=2), tokenizer, answers=["ball", "box"]),
        "cache_prompts": None,
    }
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    for stage, model in models.items():
        folder = root / "artifacts" / stage / digest(stage)[:16]
        if model:
            model.save_pretrained(folder / "model")
            made[stage] = write_artifact(root, stage)
            continue
        sources = {"prompter": made["train_prompter"][0], "vocabulary": vocabulary}
        folder.mkdir(parents=True)
        cache_prompts.run(cache_prompts.Config(), sources, folder, resources)
        write_artifact(root, stage, inputs={"prompter": made["train_prompter"][1]})
    return root


def write_artifact(
    root: Path, stage: str, mark: str = "", inputs: Mapping[str, Any] | None = None, **more: Any
) -> tuple[Path, dict[str, Any]]:
    """Writes an artifact into a workspace; its fingerprint is the digest of `mark`, or of the stage. inputs: records by
    name."""
    from alpro.artifact import RECORD_VERSION
    from alpro.files import digest, write_json

    sources = {name: {"stage": r["stage"], "fingerprint": r["fingerprint"]} for name, r in (inputs or {}).items()}
    record = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": digest(mark or stage)}
    record |= {"stage_version": 1, "inputs": sources, "config": {}, "counts": {}, "metrics": {}, "files": {}}
    record |= {"versions": {}, "run": {"at": "2026-01-01T00:00:00", "seconds": 1.0, "commit": "abc"}} | more
    folder = root / "artifacts" / stage / record["fingerprint"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "artifact.json", record)
    return folder, record


@contextmanager
def in_process() -> Iterator[None]:
    """Stages run in this process, not in a group of processes: that takes a tenth of the time."""
    from alpro.pipeline.execution import launch, run_stage
    from alpro.stages.training import loop
    from tests.conftest import InlineExecutor

    def run(arguments: list[str], *_: object) -> int:
        return run_stage.main(Path(arguments[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run_group", run)
        patch.setattr(loop, "catch_stop_signals", lambda: nullcontext([]))  # a task runs in a thread
        patch.setattr("alpro.stages.execution.workers.work_pool", lambda resources: nullcontext(InlineExecutor()))
        yield


@pytest.fixture(scope="session")
def first(workspace, prefect) -> dict[str, str]:
    """The artifacts of a first run of the tiny pipeline, by stage."""
    return alpro(TINY, workspace=workspace)


def alpro(
    config: str,
    data: str = "",
    changes: Iterable[str] = (),
    stage: str = "",
    *,
    workspace: Path,
    uri: str = "",
) -> dict[str, str]:
    """Runs a pipeline, or one stage of it, as a flow whose stages run in this process."""
    from alpro.pipeline.flows.flow import start
    from alpro.pipeline.plan.dag import planned

    arguments = {"config": config, "data": data, "changes": list(changes), "stage": stage}
    with in_process():
        return start(planned(stage, config, data, list(changes), workspace), arguments, workspace, uri)


@pytest.fixture
def copied(first, monkeypatch) -> None:
    """Stages copy what the first run built, if it is there, instead of computing: for tests that ask which ones run."""
    from alpro.artifact import RECORD, read_record
    from alpro.pipeline.flows import tasks
    from alpro.stages.execution.interface import Outcome

    built = {name: Path(folder) for name, folder in first.items()}

    compute = tasks.run_stage

    def work(step: Any, out: Path, *more: Any) -> Outcome:
        if (record := read_record(built[step.name])) is None:
            return compute(step, out, *more)
        shutil.copytree(built[step.name], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD))
        (out / "of").write_text(step.fingerprint)  # otherwise what follows would not run: its inputs would be equal
        return Outcome(record["counts"], record["metrics"])

    monkeypatch.setattr(tasks, "run_stage", work)


def runs(workspace: Path) -> tuple[list, dict[str, list]]:
    """The pipelines' MLflow runs, newest first, and the nested runs of each."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    listed = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    nested: dict[str, list] = {}
    for run in listed:
        nested.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    return nested.pop(""), nested


def summary_of(workspace: Path, changes: Iterable[str] = (), stage: str = "") -> dict[str, Any]:
    """The summary beside the report of the last run with these arguments."""
    found = [json.loads(path.read_text()) for path in (workspace / "reports").glob("*.json")]
    (one,) = (run for run in found if (run["arguments"]["changes"], run["stage"]) == ([*changes], stage))
    return one


def states_of(workspace: Path, changes: Iterable[str] = (), stage: str = "") -> dict[str, str]:
    """What became of the steps of a run, by name."""
    return {step["name"]: step["state"] for step in summary_of(workspace, changes, stage)["steps"]}


def statuses_of(workspace: Path) -> dict[str, str]:
    """The statuses of the newest pipeline's run in MLflow, under an empty name, and of its stages."""
    (parent, *_), nested = runs(workspace)
    stages = {run.info.run_name.split(" · ")[0]: run.info.status for run in nested.get(parent.info.run_id, [])}
    return {"": parent.info.status} | stages


def of_shards(folder: str | Path, tmp_path: Path) -> str:
    """The tiny pipeline with existing shards in the place of its clips."""
    text = Path(TINY).read_text()
    clips = text[text.index("[corpora.clips]") : text.index("[corpora.stills]")]
    path = tmp_path / "of_shards.toml"
    path.write_text(text.replace(clips, f'[corpora.clips]\nshards = "{folder}"\n'))
    return str(path)
