"""Logging to MLflow: what a run has, while its stage runs and from its artifact; what an outage
costs; the registry."""

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from alpro import Model
from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.flows import servers
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.tracking import tracker as module
from alpro.pipeline.tracking.contents import (
    TABLE_ROWS,
    changed_params,
    pipeline_params,
    read_table,
    run_title,
)
from alpro.pipeline.tracking.registry import registered_folder
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages.execution.interface import Interrupted
from alpro.stages.finetune_retrieval import Config
from tests.conftest import one_line
from tests.pipeline.conftest import TINY, write_artifact
from tests.pipeline.test_cli import call
from tests.plans import configure

PHASES = ({"corpora": ("clips",), "steps": 1},)


@pytest.fixture
def tracker(mlflow_store, tmp_path) -> Tracker:
    mlflow_store(tmp_path)
    return Tracker.open("", tmp_path, "sample")


def runs_of(tracker: Tracker) -> list[Any]:
    """The runs of the experiment."""
    return tracker.client.search_runs([tracker.experiment])


def history(tracker: Tracker, run: str, key: str) -> list[tuple[float, int, int]]:
    """The values of a metric of a run, with step and time."""
    return [(m.value, m.step, m.timestamp) for m in tracker.client.get_metric_history(run, key)]


def write(file: Path, step: int, **values: float) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"step": step, "time": 1.5 + step, **values}) + "\n")


class Client:
    """A client of a store that counts calls, and raises `error` while it is set."""

    def __init__(self, client):
        self.client = client
        self.error = None
        self.calls = []
        self.failed = threading.Semaphore(0)
        self.logged = threading.Semaphore(0)

    def __getattr__(self, name):
        def call(*args, **values):
            self.calls.append(name)
            if self.error:
                self.failed.release()
                raise self.error
            result = getattr(self.client, name)(*args, **values)
            if name == "log_batch" and values.get("metrics"):
                self.logged.release()
            return result

        return call


@pytest.fixture
def client(tracker, monkeypatch) -> Client:
    tracker.client = Client(tracker.client)
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.01)
    return tracker.client


def step_of(**config):
    return Step("finetune_retrieval", "finetune_retrieval", Config(phases=PHASES, **config))


def test_a_stage_is_followed_while_it_runs_and_its_artifact_is_logged_at_its_end(
    client, tracker, tmp_path
):
    step = step_of(lr=1e-3)
    folder = tmp_path / "artifacts" / "finetune_retrieval" / "f"
    (folder / "pictures").mkdir(parents=True)
    file = folder / "metrics.jsonl"
    tags = {"seed": "3"}
    write(file, 1, loss=4.0)  # of a session before, which was stopped: this run has the whole curve
    with (
        tracker.run("pipeline", {}, {}) as parent,
        tracker.stage_run(step.description, folder, parent, tags) as run,
    ):
        write(file, 2, loss=2.0)
        assert client.logged.acquire(timeout=60)  # step 1: of step 2 more lines may come
        assert history(tracker, run, "loss") == [(4.0, 1, 2500)]
        write(file, 2, **{"validation/t2v/R1": 50.0})
        write(file, 3, loss=1.0)
        Image.new("RGB", (4, 4)).save(folder / "pictures" / "samples.png")
        numbers = {
            "metrics": {"validation/t2v/R1": 50.0},
            "counts": {"steps": 3},
            "run": {"seconds": 7.0},
        }
        write_json(folder / "artifact.json", replace(step.description, **numbers).to_json())
        assert tracker.client.get_run(run).info.status == "RUNNING"
    logged = tracker.client.get_run(run)
    assert [value[:2] for value in history(tracker, run, "loss")] == [(4.0, 1), (2.0, 2), (1.0, 3)]
    metrics = [logged.data.metrics[key] for key in ("validation/t2v/R1", "counts/steps", "seconds")]
    assert metrics == [50, 3, 7]
    assert logged.data.params["finetune_retrieval.lr"] == "0.001"
    assert (
        logged.data.params["finetune_retrieval.batch_size"] == "256"
    )  # a default that people vary
    assert "finetune_retrieval.random_crop" not in logged.data.params  # another default
    tags = logged.data.tags
    assert (tags["stage"], tags["fingerprint"], tags["seed"]) == (step.stage, step.fingerprint, "3")
    assert (tags["mlflow.parentRunId"], logged.info.status) == (parent, "FINISHED")
    assert logged.info.run_name == f"finetune_retrieval · {step.fingerprint[:8]}"
    assert tracker.client.get_run(parent).info.status == "FINISHED"
    files = [
        file.path
        for place in ("", "pictures")
        for file in tracker.client.list_artifacts(run, place)
    ]
    assert {"artifact.json", "pictures/samples.png"} <= set(files)


def test_a_stage_that_is_stopped_or_fails_has_its_last_metrics(tracker, tmp_path):
    termination = type("TerminationSignal", (BaseException,), {})  # Prefect's, by its name

    def stage(folder: Path, error: BaseException) -> None:
        write(folder / "metrics.jsonl", 7, loss=9.0)
        raise error

    stops = (KeyboardInterrupt(), Interrupted("pretrain"), SystemExit(75), termination())
    for error, status in (*((stop, "KILLED") for stop in stops), (ValueError("a bug"), "FAILED")):
        folder = tmp_path / type(error).__name__
        folder.mkdir()
        with (
            pytest.raises(type(error)),
            tracker.stage_run(step_of().description, folder, "", {}) as run,
        ):
            stage(folder, error)
        logged = tracker.client.get_run(run)
        assert (logged.info.status, logged.data.metrics) == (status, {"loss": 9.0})


def test_a_run_that_is_stopped_while_its_parameters_are_logged_ends(tracker, tmp_path, monkeypatch):
    def log_batch(run: str, **values: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker.client, "log_batch", log_batch)
    with pytest.raises(KeyboardInterrupt), tracker.stage_run(step_of().description, tmp_path):
        pass
    (run,) = tracker.client.search_runs([tracker.experiment])
    assert run.info.status == "KILLED"


def test_the_command_logs_artifacts_again_and_says_if_it_could_not(
    tracker, tmp_path, monkeypatch, capsys
):
    run = {
        "seconds": 1.0,
        "at": "2026-01-01T00:00:00",
        "commit": "0123abc+",
        "arguments": {"config": "configs/sample.toml", "changes": []},
    }
    marks = [
        write_artifact(tmp_path, stage, run=run)[1].fingerprint
        for stage in ("build_vocabulary", "zero_shot")
    ]
    command = ["artifacts", "log", *(mark[:8] for mark in marks), "--workspace", str(tmp_path)]
    for number in (1, 2):
        assert cli.execute(command) == 0
        logged = [
            run.data.tags["fingerprint"]
            for run in runs_of(tracker)
            if run.info.status == "FINISHED"
        ]
        assert sorted(logged) == sorted(marks * number)
    # The commit that built them, rather than the one that logs them.
    assert {run.data.tags["commit"] for run in runs_of(tracker)} == {"0123abc+"}
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert cli.execute([*command, "--tracking-uri", "http://127.0.0.1:9"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_outage_is_one_warning_and_no_line_of_metrics_is_lost(
    client, tracker, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    with tracker.stage_run(step_of().description, tmp_path, "", {}) as run:
        client.error = OSError("no route to host")
        for step in (1, 2, 3):
            write(tmp_path / "metrics.jsonl", step, loss=step)
        for _ in range(3):  # the thread goes on trying
            assert client.failed.acquire(timeout=60)
        client.error = None
    assert [value for value, *_ in history(tracker, run, "loss")] == [1, 2, 3]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no route to host" in warning
    assert "alpro artifacts log" in warning


def test_during_an_outage_mlflow_is_not_asked_again_and_again(client, tracker, tmp_path, capsys):
    """Each call may take a connection timeout. A run that was not created has nothing."""
    client.error = OSError("no route to host")
    with tracker.run("pipeline", {"a": 1}, {}) as run:
        assert run == ""
        tracker.log_artifact(*write_artifact(tmp_path, "pretrain", config={"unknown": 1}))
    assert client.calls == ["create_run"]
    client.error = None
    tracker.paused_until = 0
    assert tracker.log_artifact(*write_artifact(tmp_path, "zero_shot"))
    assert len(capsys.readouterr().err.splitlines()) == 1


CHANGES = {  # by the parameter of the pipeline's run that shows it
    "finetune_retrieval.lr": "finetune_retrieval.lr=1e-5",
    "finetune_qa.phases.0.epochs": "finetune_qa.phases.0.epochs=3",
    "pretrain.seed": "pretrain.seed=5",
    "build_vocabulary.entities": "build_vocabulary.entities=7",
    "pretrain": "pretrain.mlm_probability=0.4",
    "evaluate": "evaluate.top_k=3",
    "model": "model.text.depth=3",
    "templates": 'templates.video=["A film of a {}."]',
    "train_prompter": "train_prompter.model.video.depth=2",
    "corpora.clips": "corpora.clips.size=40",
}


def test_runs_of_a_configuration_have_the_same_parameters_whatever_they_change():
    """MLflow's comparison shows a missing parameter as a blank."""
    base = pipeline_params(configure(TINY))
    assert len(base) < 50
    assert "" not in base.values()
    for name, change in CHANGES.items():
        # A phase has steps or epochs.
        more = ["finetune_qa.phases.0.steps=0"] if "epochs" in change else []
        if name == "train_prompter":  # the towers differ then
            more = ["pretrain.start=scratch"]
        params = pipeline_params(configure(TINY, *more, change))
        assert list(params) == list(base)
        assert params[name] != base[name]
        assert changed_params([change, "resources.workers=2"], params) == [name]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        (["finetune_retrieval.lr=1e-5"], "retrieval.lr=1e-5"),
        (["finetune_retrieval.lr = 1e-5"], "retrieval.lr=1e-5"),
        (["train_prompter.lr=1e-5", "pretrain.lr=1e-4"], "prompter.lr=1e-5 pretrain.lr=1e-4"),
        (["finetune_qa.phases.0.steps=20"], "qa.steps=20"),
        (["model.video.depth=2", "model.text.depth=3"], "video.depth=2 text.depth=3"),
        (["corpora.clips.frames=4"], "clips.frames=4"),
        (["finetune_qa=false", "pretrained='/home/me/model'"], "qa=false pretrained=model"),
    ],
)
def test_the_name_of_a_run_says_which_stages_value_is_changed(changes, title):
    arguments = {"changes": changes, "stage": "", "data": ""}
    assert run_title("tiny", "3dd13e", arguments) == f"{title} · tiny 3dd13e"


def test_many_parameters_and_names_that_mlflow_does_not_take_and_an_entry_that_it_refuses(
    tracker, capsys
):
    values = {f"value_{n}": n for n in range(150)} | {
        "phases": [{"steps": 3}, {"steps": 4}],
        "text": "x" * 7000,
    }
    metrics = {"test/qa/acc_what's": 1.0, "acc_où": 2.0, 300 * "x": 3.0} | {
        f"{n}": n for n in range(1200)
    }
    with tracker.run("a", {"stage": values}, {}) as run:
        tracker.log_metrics("0" * 32, {"loss": 2.0})  # no such run
        tracker.log_metrics(run, metrics)
    logged = tracker.client.get_run(run).data
    assert (len(logged.params), logged.params["stage.phases.1.steps"]) == (153, "4")
    assert (len(logged.metrics), len(logged.params["stage.text"])) == (1203, 6000)
    assert (
        logged.metrics["test/qa/acc_what_s"],
        logged.metrics["acc_où"],
        logged.metrics[250 * "x"],
    ) == (1, 2, 3)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_are_sorted_by_the_headline_scores_that_evaluations_give_them(tracker, tmp_path):
    """Two models with two evaluations: each score is that of its model, on the corpus that it is
    of."""
    _, clips = write_artifact(tmp_path, "decode_videos", name="decode_videos clips")
    logged = []
    for lr, score in ((1e-3, 25.0), (2e-4, 75.0)):
        config = {"phases": PHASES, "lr": lr}
        metrics = {"validation/mean_recall": 50.0, "validation/t2v/R1": 40.0}
        model = write_artifact(
            tmp_path,
            "finetune_retrieval",
            f"m{lr}",
            {"clips": clips},
            config=config,
            metrics=metrics,
        )
        (model[0] / "model").mkdir()
        (model[0] / "model" / "model.safetensors").write_bytes(b"weights")
        tracker.log_artifact(*model)
        scores = {
            "test/retrieval_vtc/t2v/R5": 80.0,
            "test/retrieval_vtc/t2v/R1": score,
            "test/qa/acc": 9.0,
        }
        of = {
            "inputs": {"retrieval": model[1], "clips": clips},
            "config": {"retrieval": "clips"},
            "metrics": scores,
        }
        logged.append(tracker.log_artifact(*write_artifact(tmp_path, "evaluate", f"e{lr}", **of)))
    order = [{"field_name": "metrics.R1", "ascending": False}]
    models = tracker.client.search_logged_models([tracker.experiment], order_by=order)
    shown = [{m.key: (m.value, m.dataset_name) for m in model.metrics} for model in models]
    assert shown == [
        {"validation/t2v/R1": (40.0, None), "R1": (score, "clips")} for score in (75.0, 25.0)
    ]
    assert models[0].params["finetune_retrieval.lr"] == "0.0002"
    assert models[0].name[:8] != models[1].name[:8]  # where MLflow cuts them
    run = tracker.client.get_run(logged[1])
    assert [used.model_id for used in run.inputs.model_inputs] == [models[0].model_id]
    assert {key: run.data.metrics[key] for key in ("R1", "QA", *scores)} == {
        "R1": 75,
        "QA": 9,
    } | scores
    assert tracker.logged_model(model[1].fingerprint) == models[0].model_id
    assert not list(tmp_path.glob("mlflow/**/*.safetensors"))


def test_mlflows_monitor_runs_with_a_training_and_with_nothing_else(tracker, tmp_path, monkeypatch):
    monitor = Mock()
    monkeypatch.setattr(module, "SystemMetricsMonitor", monitor)
    folder, record = write_artifact(tmp_path, "decode_videos")
    with tracker.stage_run(record, folder):
        pass
    folder, record = write_artifact(tmp_path, "pretrain")
    tracker.log_artifact(folder, record)  # a training of an earlier day
    monitor.assert_not_called()

    with tracker.stage_run(record, folder) as run:
        monitor.assert_called_once_with(run, module.SYSTEM_SECONDS, tracking_uri=tracker.uri)
        monitor.return_value.start.assert_called_once_with()
        monitor.return_value.finish.assert_not_called()
    monitor.return_value.finish.assert_called_once_with()


def test_up_names_the_page_of_the_newest_experiment_in_a_new_store_that_of_the_sample(
    mlflow_store, tmp_path
):
    mlflow_store(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    page = servers.runs_page(store, tmp_path)
    assert page.startswith("/#/experiments/1/runs?")
    assert servers.runs_page(store, tmp_path) == page


def test_a_pipelines_run_has_the_headlines_first_and_all_that_its_stages_reached(tracker, tmp_path):
    scores = {
        "test/retrieval_vtc/t2v/R10": 9.0,
        "test/qa/acc": 3.0,
        "test/retrieval_vtc/t2v/R1": 2.0,
    }
    trained = write_artifact(tmp_path, "pretrain", metrics={"validation/vtc/t2v/R1": 1.0})
    evaluated = write_artifact(tmp_path, "evaluate", metrics=scores)
    (report := tmp_path / "sample.html").touch()
    sent = []
    tracker.log_metrics = lambda run, values: sent.append((run, list(values.items())))
    with tracker.run("sample 3f2a9c", {}, {}) as run:
        tracker.log_pipeline(run, [trained, evaluated], [report], "**finished**")
    assert tracker.client.get_run(run).data.tags["mlflow.note.content"] == "**finished**"
    training = ("training/pretrain/validation/vtc/t2v/R1", 1.0)
    assert sent == [(run, [("R1", 2.0), ("QA", 3.0), ("R10", 9.0), *scores.items(), training])]
    folder = Path(tracker.client.download_artifacts(run, ""))
    assert [path.name for path in folder.iterdir()] == ["sample.html"]


def test_mlflows_page_opens_with_the_columns_and_charts_of_the_headline_scores(tracker):
    experiment = tracker.client.get_experiment(tracker.experiment)
    view = json.loads(experiment.tags["mlflow.sharedViewState.alpro"])
    columns = ["attributes.`Dataset`", "metrics.`R1`", "metrics.`QA`"]
    assert view["selectedColumns"][:3] == columns
    assert [section["name"] for section in view["compareRunSections"]] == ["Model metrics"]
    page = module.start_page(tracker.uri)
    assert re.fullmatch(
        rf"/#/experiments/{tracker.experiment}/runs\?.*compareRunsMode=CHART&viewStateShareKey=alpro",
        page,
    )


def test_a_link_to_a_run_leads_to_mlflows_pages_of_training(client):
    """MLflow shows a run without the query among its pages of chats."""
    remote = Tracker(client, "7", "http://mlflow:5000/")
    run = "http://mlflow:5000/#/experiments/7/runs/ab"
    assert remote.address("ab") == f"{run}?workflowType=machine_learning"
    file = remote.address("ab", "my page.html")
    assert file == f"{run}/artifacts/my%20page.html?workflowType=machine_learning"
    assert remote.address("") == ""

    local = Tracker(client, "7", "sqlite:///mlflow.db")
    assert local.address("ab") == ""
    assert local.address("ab", server="http://mlflow:5000") == remote.address("ab")


def test_a_table_is_its_first_rows_with_plain_columns(tmp_path):
    frame = pd.DataFrame(
        {"text": [f"t{n}" for n in range(600)], "best": [["a", "b"]] * 600, "rank": 1.5}
    )
    frame.to_parquet(tmp_path / "retrieval_t2v.parquet")
    table = read_table(tmp_path / "retrieval_t2v.parquet")
    assert len(table) == TABLE_ROWS
    assert table.iloc[0].to_dict() == {"text": "t0", "best": "a, b", "rank": 1.5}


def test_a_store_whose_creation_is_interrupted_is_created_by_the_next_run_and_a_corrupt_one_is_named(
    tmp_path, monkeypatch
):
    """Some of its tables are there then, and MLflow fails for ever to create the others."""
    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Tracker.open("", tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 500)
    with one_line("mlflow.db"):
        Tracker.open("", tmp_path, "x")


# The registry: models are registered by the command line, and loaded as people would.


LONG = [pytest.param(stage, marks=pytest.mark.long) for stage in ("train_prompter", "finetune_qa")]


@pytest.mark.parametrize("stage", ["finetune_retrieval", *LONG])
def test_a_registered_model_predicts_what_the_model_does(
    stage, tracker, trained, sample, monkeypatch, capsys, tmp_path
):
    """It is loaded by its alias, without pickle, when the artifact is gone. MLflow has one as a
    logged model."""
    workspace = tmp_path
    shutil.copytree(trained / "artifacts", workspace / "artifacts")
    qa, folder = (
        workspace / "artifacts" / name / digest(name)[:16] for name in ("finetune_qa", stage)
    )
    tracker.log_artifact(qa, read_record(qa))
    videos = [str(path) for path in sorted((sample / "videos").glob("test-*.mp4"))[:2]]
    texts = ["a red ball moves left", "where does it go?"]
    model = Model.load(folder, device="cpu")
    if stage == "finetune_qa":
        pairs = [
            model.ask(video, text, top_k=1)[0] for video, text in zip(videos, texts, strict=True)
        ]
        expected = {"answer": [word for word, _ in pairs], "probability": [p for _, p in pairs]}
    else:
        expected = {"similarity": (model.encode(videos) * model.encode(texts)).sum(1).tolist()}
    if stage == "finetune_retrieval":
        expected["match"] = model.match(texts, videos).diagonal().tolist()

    arguments = ("--name", "shapes", "--alias", "champion", "--workspace", workspace)
    for _ in range(2):  # the same model is the same version
        status, out, err = call(
            monkeypatch, capsys, "model", "register", digest(stage)[:6], *arguments
        )
        assert (status, err) == (0, "")
        assert (
            out
            == "shapes, version 1; load it with mlflow.pyfunc.load_model('models:/shapes@champion')\n"
        )
    folder.rename(tmp_path / "gone")

    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/shapes@champion")
    assert loaded.metadata.metadata == {"fingerprint": digest(stage)}
    assert loaded.metadata.get_input_schema().input_names() == ["video", "text"]
    assert loaded.metadata.get_output_schema().input_names() == list(expected)
    predicted = loaded.predict(pd.DataFrame({"video": videos, "text": texts})).to_dict("list")
    for name, values in expected.items():
        assert predicted[name] == (values if name == "answer" else pytest.approx(values, abs=1e-5))
    version = MlflowClient(uri).get_model_version_by_alias("shapes", "champion")
    assert (str(version.version), version.tags["fingerprint"]) == ("1", digest(stage))
    assert not list(workspace.rglob("*.pkl"))
    assert Model.load(
        registered_folder(uri, "models:/shapes@champion"), device="cpu"
    ).pair_columns == tuple(expected)
    with pytest.raises(InputError, match="models:/shapes/9: not in the MLflow store"):
        registered_folder(uri, "models:/shapes/9")
    models = MlflowClient(uri).search_logged_models([str(n) for n in range(3)])
    (run,) = (
        model.source_run_id for model in models if model.tags.get("fingerprint") == digest(stage)
    )
    assert (
        MlflowClient(uri).get_run(run).data.tags["stage"] == stage
    )  # the only one of its training
