"""Logging to MLflow: what a run has while its stage runs and from its artifact, and what an outage
costs."""

import json
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from prefect.exceptions import TerminationSignal

from alpro.artifact import Record
from alpro.files import digest, write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.tracking import tracker as module
from alpro.pipeline.tracking.tracker import Tracker
from tests.pipeline.conftest import write_artifact

# What is known of a stage before it runs.
STAGE = Record(
    stage="finetune_retrieval",
    name="finetune_retrieval",
    fingerprint=digest("finetune_retrieval"),
    config={
        "lr": 1e-3,
        "batch_size": 256,
        "phases": [{"corpora": ["clips"], "steps": 1}],
    },
)


@pytest.fixture
def tracker(mlflow_store, tmp_path):
    mlflow_store(tmp_path)
    return Tracker.open("", tmp_path, "sample")


def write(file, step, **values):
    with open(file, "a") as lines:
        lines.write(json.dumps({"step": step, "time": 1.5 + step, **values}) + "\n")


def history(tracker, run, key):
    """Return the values of a metric of a run, with step and time."""
    return [
        (m.value, m.step, m.timestamp)
        for m in tracker.client.get_metric_history(run, key)
    ]


def files_of(tracker, run):
    folder = Path(tracker.client.download_artifacts(run, ""))
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }


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
def client(tracker, monkeypatch):
    tracker.client = Client(tracker.client)
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.01)
    return tracker.client


# The run of a stage: one that trains, and is looked at below.


@pytest.fixture(scope="module")
def stage(mlflow_store, tmp_path_factory):
    """Log a stage inside a pipeline, with what MLflow had while the stage ran."""
    root = tmp_path_factory.mktemp("stage")
    mlflow_store(root)
    tracker = Tracker.open("", root, "sample")
    tracker.client = Client(tracker.client)
    folder = root / "artifacts" / STAGE.stage / STAGE.fingerprint[:16]
    (folder / "pictures").mkdir(parents=True)
    file = folder / "metrics.jsonl"
    # The run of an earlier session, which was stopped: this run has the whole curve.
    write(file, 1, loss=4.0)

    with (
        patch.object(module, "FOLLOW_SECONDS", 0.01),
        tracker.run("pipeline", {}, {}) as parent,
        tracker.stage_run(STAGE, folder, parent, {"seed": "3"}) as run,
    ):
        write(file, 2, loss=2.0)
        assert tracker.client.logged.acquire(timeout=60)
        during = history(tracker, run, "loss"), tracker.client.get_run(run).info.status
        write(file, 2, **{"validation/t2v/R1": 50.0})
        write(file, 3, loss=1.0, **{"validation/t2v/R1": 40.0})

        (folder / "pictures" / "samples.png").touch()
        pd.DataFrame({"rank": [1.5]}).to_parquet(folder / "similarity_t2v.parquet")
        scores = {"validation/t2v/R1": 50.0, "selected_step": 2}
        record = replace(STAGE, counts={"steps": 3}, metrics=scores)
        write_json(folder / "artifact.json", record.to_json())
    logged = tracker.client.get_run(run)
    return SimpleNamespace(
        tracker=tracker, parent=parent, run=run, during=during, logged=logged
    )


def test_metrics_are_logged_while_the_stage_runs(stage):
    (first, *_), status = stage.during
    assert (first, status) == ((4.0, 1, 2500), "RUNNING")


def test_the_curve_is_complete_at_the_end(stage):
    values = [value[:2] for value in history(stage.tracker, stage.run, "loss")]
    assert values == [(4.0, 1), (2.0, 2), (1.0, 3)]


def test_values_are_parameters_and_scores_metrics(stage):
    data = stage.logged.data
    phase = {"finetune_retrieval.lr": "0.001", "finetune_retrieval.phases.0.steps": "1"}
    assert phase.items() <= data.params.items()
    # The selected weights are not the last ones.
    assert data.metrics == {"loss": 1, "validation/t2v/R1": 50, "selected_step": 2}


def test_the_run_of_a_stage_is_nested_and_named_by_its_fingerprint(stage):
    tags = {
        "fingerprint": STAGE.fingerprint,
        "seed": "3",
        "mlflow.parentRunId": stage.parent,
    }
    assert tags.items() <= stage.logged.data.tags.items()
    assert stage.logged.info.run_name == f"finetune_retrieval · {STAGE.fingerprint[:8]}"
    assert stage.logged.info.status == "FINISHED"


def test_the_record_the_pictures_and_the_tables_are_files_of_the_run(stage):
    files = {"artifact.json", "pictures/samples.png", "tables/similarity_t2v.json"}
    assert files_of(stage.tracker, stage.run) == files


# How runs end.


def test_a_stage_that_is_stopped_or_fails_has_its_last_metrics(tracker, tmp_path):
    stops = (KeyboardInterrupt(), CancelledError("pretrain"), TerminationSignal(15))

    for error, status in (
        *((stop, "KILLED") for stop in stops),
        (ValueError("a bug"), "FAILED"),
    ):
        folder = tmp_path / type(error).__name__
        folder.mkdir()
        write(folder / "metrics.jsonl", 7, loss=9.0)
        with pytest.raises(type(error)), tracker.stage_run(STAGE, folder) as run:
            raise error

        logged = tracker.client.get_run(run)
        assert (logged.info.status, logged.data.metrics) == (status, {"loss": 9.0})


def test_steps_that_a_resumed_training_writes_again_are_logged_once(
    client, tracker, tmp_path
):
    file = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        write(file, step, loss=step)

    with tracker.stage_run(STAGE, tmp_path) as run:
        assert client.logged.acquire(timeout=60)
        file.write_text("\0\0\0\n")  # a line that a power failure damaged
        for step in (1, 2, 3, 4):
            write(file, step, loss=step)

    assert [step for _, step, _ in history(tracker, run, "loss")] == [1, 2, 3, 4]


# Outages.


def test_an_outage_in_a_stage_is_one_warning_and_loses_nothing(
    client, tracker, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    with tracker.stage_run(STAGE, tmp_path) as run:
        client.error = OSError("no route to host")
        for step in (1, 2, 3):
            write(tmp_path / "metrics.jsonl", step, loss=step)
        for _ in range(3):  # the thread goes on trying
            assert client.failed.acquire(timeout=60)
        monkeypatch.setattr(module, "PAUSE_SECONDS", 600)  # the stage ends in a pause
        assert client.failed.acquire(timeout=60)
        client.error = None
        record = replace(STAGE, metrics={"share": 0.5})
        write_json(tmp_path / "artifact.json", record.to_json())

    assert [value for value, *_ in history(tracker, run, "loss")] == [1, 2, 3]
    assert tracker.client.get_run(run).data.metrics["share"] == 0.5
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no route to host" in warning
    assert "alpro artifacts log" in warning


def test_an_artifact_with_an_unreadable_table_is_a_warning(
    client, tracker, tmp_path, capsys
):
    folder, record = write_artifact(tmp_path, "evaluate")
    (folder / "similarity_t2v.parquet").write_bytes(b"not a table")

    run = tracker.log_artifact(folder, record)

    assert tracker.client.get_run(run).info.status == "FINISHED"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_ends_after_an_outage_is_not_shown_as_running(client, tracker):
    with tracker.run("pipeline", {"a": 1}, {}) as run:
        client.error = OSError("no route to host")
        tracker.log_metrics(run, {"score/R1": 1.0})
        client.error = None

    assert tracker.client.get_run(run).info.status == "FINISHED"


def test_what_mlflow_refuses_is_not_sent_again(client, tracker, tmp_path, capsys):
    with tracker.stage_run(STAGE, tmp_path) as run:
        client.error = MlflowException("not active", INVALID_PARAMETER_VALUE)
        write(tmp_path / "metrics.jsonl", 1, loss=1)
        assert client.failed.acquire(timeout=60)
        client.error = None
        write(tmp_path / "metrics.jsonl", 2, loss=2)

    assert [value for value, *_ in history(tracker, run, "loss")] == [2]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_during_an_outage_mlflow_is_not_asked_again_and_again(
    client, tracker, tmp_path, capsys
):
    """Each call may take a connection timeout. A run that was not created has nothing."""
    client.error = OSError("no route to host")
    with tracker.run("pipeline", {"a": 1}, {}) as run:
        assert run == ""
        tracker.log_artifact(*write_artifact(tmp_path, "pretrain"))
    assert client.calls == ["create_run"]

    client.error = None
    tracker.paused_until = 0
    assert tracker.log_artifact(*write_artifact(tmp_path, "evaluate"))
    assert len(capsys.readouterr().err.splitlines()) == 1


# What is logged of artifacts.


def test_the_command_logs_artifacts_again(tracker, tmp_path):
    arguments = {"config": "sample", "changes": []}
    run = {"at": "2026-01-01", "commit": "0123abc+", "arguments": arguments}
    _, first = write_artifact(tmp_path, "build_vocabulary", run=run)
    _, second = write_artifact(tmp_path, "evaluate", run=run)

    assert cli.execute(["artifacts", "log", "--workspace", str(tmp_path)]) == 0

    runs = tracker.client.search_runs([tracker.experiment])
    fingerprints = {run.data.tags["fingerprint"] for run in runs}
    assert fingerprints == {first.fingerprint, second.fingerprint}
    # The commit that built them, rather than the one that logs them.
    assert {run.data.tags["mlflow.source.git.commit"] for run in runs} == {"0123abc+"}


@pytest.fixture(scope="module")
def models(mlflow_store, tmp_path_factory):
    """Log two models and an evaluation of each, the better one last."""
    root = tmp_path_factory.mktemp("models")
    mlflow_store(root)
    tracker = Tracker.open("", root, "sample")
    for lr, score in ((1e-3, 25.0), (2e-4, 75.0)):
        trained = {"config": {"lr": lr}, "metrics": {"validation/t2v/R1": 40.0}}
        folder, record = write_artifact(root, "finetune_retrieval", f"m{lr}", **trained)
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        tracker.log_artifact(folder, record)

        scores = {"test/fine-tuned/similarity/t2v/R1": score}
        evaluation = write_artifact(
            root, "evaluate", f"e{lr}", {"model": record}, metrics=scores
        )
        run = tracker.log_artifact(*evaluation)
    return SimpleNamespace(tracker=tracker, root=root, last=record, run=run)


def test_models_are_sorted_by_the_scores_that_evaluations_give_them(models):
    """Each score is logged with the model that reached it."""
    tracker = models.tracker
    order = [{"field_name": "metrics.`score/R1`", "ascending": False}]
    found = tracker.client.search_logged_models([tracker.experiment], order_by=order)

    shown = [{m.key: m.value for m in model.metrics} for model in found]
    assert shown == [
        {"validation/t2v/R1": 40.0, "score/R1": score} for score in (75.0, 25.0)
    ]


def test_an_evaluation_names_its_models_and_begins_with_the_headline_scores(models):
    run = models.tracker.client.get_run(models.run)
    used = [one.model_id for one in run.inputs.model_inputs]
    assert used == [models.tracker.logged_model(models.last.fingerprint)]
    assert run.data.metrics == {"score/R1": 75, "test/fine-tuned/similarity/t2v/R1": 75}


def test_weights_are_not_copied(models):
    assert not list((models.root / "mlflow").rglob("*.safetensors"))


def test_a_corpus_is_a_data_set_with_its_counts(tracker, tmp_path):
    counts = {"samples": 1600, "images": 0, "captions": 7000}
    name = "decode_videos clips"
    corpus = write_artifact(tmp_path, "decode_videos", name=name, counts=counts)
    _, record = corpus
    reader = write_artifact(tmp_path, "pretrain", inputs={"clips": record})

    for artifact in (corpus, reader):
        run = tracker.client.get_run(tracker.log_artifact(*artifact))

        (dataset,) = (one.dataset for one in run.inputs.dataset_inputs)
        assert (dataset.name, dataset.digest) == ("clips", record.fingerprint[:8])
        assert json.loads(dataset.profile) == counts


def test_mlflows_monitor_runs_with_a_training_and_with_nothing_else(
    tracker, tmp_path, monkeypatch
):
    monitor = Mock()
    monkeypatch.setattr(module, "SystemMetricsMonitor", monitor)
    with tracker.stage_run(*reversed(write_artifact(tmp_path, "build_vocabulary"))):
        pass
    folder, record = write_artifact(tmp_path, "pretrain")
    tracker.log_artifact(folder, record)  # a training of an earlier day
    monitor.assert_not_called()

    with tracker.stage_run(replace(record, run={}), folder) as run:
        monitor.assert_called_once_with(
            run, module.SYSTEM_SECONDS, tracking_uri=tracker.uri
        )
        monitor.return_value.finish.assert_not_called()
    monitor.return_value.finish.assert_called_once_with()


# The run of a pipeline.


def test_a_pipelines_run_has_the_headlines_first_and_all_that_its_stages_reached(
    tracker, tmp_path
):
    """MLflow's pages start with the metric that is logged first, and a comparison plots it."""
    scores = {"test/fine-tuned/qa/acc": 1.0, "test/fine-tuned/similarity/t2v/R1": 2.0}
    trained = write_artifact(
        tmp_path, "pretrain", metrics={"validation/vtc/t2v/R1": 3.0}
    )
    evaluated = write_artifact(tmp_path, "evaluate", metrics=scores)
    page = tmp_path / "sample.html"
    page.touch()
    sent = []
    tracker.log_metrics = lambda _, values: sent.extend(values.items())

    with tracker.run("sample 3f2a9c", {}, {}) as run:
        figures = {"scores.png": Figure()}
        tracker.log_pipeline(run, [trained, evaluated], page, figures, "**finished**")

    headlines = {"score/R1": 2.0, "score/QA": 1.0}
    training = {"training/pretrain/validation/vtc/t2v/R1": 3.0}
    assert sent == [*(headlines | training | scores).items()]
    assert (
        tracker.client.get_run(run).data.tags["mlflow.note.content"] == "**finished**"
    )
    assert files_of(tracker, run) == {"sample.html", "scores.png"}
