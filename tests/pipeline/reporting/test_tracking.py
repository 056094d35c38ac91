"""Logging to MLflow, also during outages, with a recording client and with a real server."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import validate_param_and_metric_name

from alpro.errors import InputError
from alpro.pipeline.reporting import system_metrics, tracking
from alpro.pipeline.reporting.tracking import Run, Tracker, flatten, metric_name, read_table


class Memory:
    """A client that records what is logged. While `error` is set, every call raises it."""

    def __init__(self):
        self.metrics, self.params, self.sizes, self.files = [], {}, [], []
        self.runs: dict[str, SimpleNamespace] = {}
        self.error: Exception | None = None
        self.failed = threading.Semaphore(0)  # released at each call that fails
        self.logged = threading.Semaphore(0)  # released at each batch

    def answer(self) -> None:
        if self.error is not None:
            self.failed.release()
            raise self.error

    def create_run(self, experiment, start_time, run_name, tags):
        self.answer()
        info = SimpleNamespace(run_id=f"run-{len(self.runs) + 1}", run_name=run_name)
        run = SimpleNamespace(info=info, data=SimpleNamespace(tags=tags), status="RUNNING", started=start_time)
        self.runs[info.run_id] = run
        return run

    def get_run(self, run_id):
        self.answer()
        if run_id not in self.runs:
            raise MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def search_runs(self, experiments, query, view):
        self.answer()
        if query.startswith("attributes.run_name LIKE"):
            last = query.partition("%")[2].strip("%'")
            return [run for run in self.runs.values() if last in run.info.run_name]
        wanted = dict(part.removeprefix("tags.").split(" = ") for part in query.split(" and ")[1:])
        running = [run for run in self.runs.values() if run.status == "RUNNING"]
        return [run for run in running if all(run.data.tags.get(k) == v.strip("'") for k, v in wanted.items())]

    def set_terminated(self, run, status, end_time=None):
        self.answer()
        self.runs[run].status, self.runs[run].ended = status, end_time

    def log_batch(self, run, metrics=(), params=()):
        self.answer()
        if any(m.key == "refused" for m in metrics):
            raise MlflowException("refused: not a name", INVALID_PARAMETER_VALUE)
        self.sizes.append(len(metrics) + len(params))
        self.metrics += [(m.key, m.value, m.step) for m in metrics]
        self.params |= {p.key: p.value for p in params}
        self.logged.release()

    def log_artifact(self, run, path, folder=None):
        self.answer()
        self.files.append((run, Path(path).name, folder))


OUTAGE = MlflowException("API request to http://host failed: connection refused")


@pytest.fixture
def client() -> Memory:
    return Memory()


@pytest.fixture
def tracker(client) -> Tracker:
    return Tracker(client, "1", "memory")


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(tracking, "FOLLOW_SECONDS", 0.01)


def write(file, step: int, **values: float) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"step": step, "time": 1.5, **values}) + "\n")


def test_metrics_are_logged_while_they_are_written_each_line_once(tracker, client, tmp_path, quick):
    file = tmp_path / "metrics.jsonl"
    write(file, 1, loss=3.0)
    with tracker.follow(Run("run-1"), file):
        write(file, 2, loss=2.0)
        assert client.logged.acquire(timeout=60)  # step 1: of step 2 more lines may come
        assert client.metrics == [("loss", 3.0, 1)]
        write(file, 2, accuracy=50.0)  # the validation of that step
        write(file, 3, loss=1.0)
        assert client.logged.acquire(timeout=60)
    assert client.metrics == [("loss", 3.0, 1), ("loss", 2.0, 2), ("accuracy", 50.0, 2), ("loss", 1.0, 3)]


def test_the_last_metrics_of_a_failing_stage_are_logged(tracker, client, tmp_path):
    def fail():
        with tracker.follow(Run("run-1"), tmp_path / "metrics.jsonl"):
            write(tmp_path / "metrics.jsonl", 7, loss=9.0)
            raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError, match="the stage failed"):
        fail()
    assert client.metrics == [("loss", 9.0, 7)]


def test_an_outage_while_metrics_are_followed_loses_none(tracker, client, tmp_path, quick, capsys):
    file = tmp_path / "metrics.jsonl"
    client.error = OUTAGE
    with tracker.follow(Run("run-1"), file):
        write(file, 1, loss=3.0)
        write(file, 2, loss=2.0)
        for _ in range(3):  # the thread goes on trying
            assert client.failed.acquire(timeout=60)
        write(file, 3, loss=1.0)
        client.error = None
        assert client.logged.acquire(timeout=60)
    tracker.close()
    assert client.metrics == [("loss", 3.0, 1), ("loss", 2.0, 2), ("loss", 1.0, 3)]
    warning, back = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: MLflow store memory does not answer (API request to http://host failed")
    assert "answers again" in back


def test_a_stage_that_starts_and_ends_in_an_outage_is_logged_later(tracker, client, tmp_path):
    (tmp_path / "artifact.json").write_text("{}")
    parent = tracker.start("pipeline", {}, {})
    client.error = OUTAGE
    run = tracker.start("stage", {"stage": {"lr": 0.1}}, {"stage": "stage"}, parent)
    tracker.metrics(run, {"loss": 1.0}, 3)
    tracker.artifact_folder(run, tmp_path)
    tracker.end(run)
    assert (run.id, client.metrics, client.files) == ("", [], [])
    started = tracking.milliseconds()
    client.error = None
    tracker.close()
    assert client.runs[run.id].data.tags == {"stage": "stage", "mlflow.parentRunId": parent.id}
    assert client.runs[run.id].status == "FINISHED"
    assert client.runs[run.id].started <= client.runs[run.id].ended <= started
    assert (client.params, client.metrics) == ({"stage.lr": "0.1"}, [("loss", 1.0, 3)])
    assert client.files == [(run.id, "artifact.json", None)]


def test_during_an_outage_only_flush_asks_again(tracker, client):
    """Each attempt may take as long as a connection timeout, and a finished stage has many entries."""
    client.error = OSError("no route to host")
    for number in range(5):
        tracker.metrics(Run("run-1"), {"loss": float(number)})
    assert client.failed.acquire(blocking=False)
    assert not client.failed.acquire(blocking=False)
    assert not tracker.flush()
    assert client.failed.acquire(blocking=False)


def test_an_outage_at_the_end_is_a_warning(tracker, client, capsys):
    client.error = OUTAGE
    tracker.metrics(Run("run-1"), {"loss": 1.0})
    tracker.end(Run("run-1"))
    tracker.close()
    _, last = capsys.readouterr().err.splitlines()
    assert last.startswith("warning: MLflow store memory does not answer; 2 entries are not logged.")
    assert "run the same command again later" in last


def test_an_entry_that_mlflow_refuses_is_a_warning_and_does_not_block_others(tracker, client, tmp_path, capsys):
    tracker.metrics(Run("run-1"), {"refused": 1.0})
    tracker.metrics(Run("run-1"), {"loss": 1.0})
    assert client.metrics == [("loss", 1.0, 0)]
    printed = capsys.readouterr().err
    assert printed == "warning: MLflow store memory: an entry is not logged: refused: not a name\n"


def test_a_store_knows_its_own_runs(tracker, client):
    run = tracker.start("stage", {}, {})
    assert tracker.has_run(run.id)
    assert not tracker.has_run("run-of-another-store")
    assert not tracker.has_run("")
    client.error = OUTAGE
    with pytest.raises(InputError, match="not usable: API request"):
        tracker.has_run(run.id)


def test_only_stale_runs_with_the_tags_are_killed(tracker, client):
    runs = [tracker.start("stage", {}, {"host": host, "pid": pid}) for host in "ab" for pid in "12"]
    tracker.end(runs[0])
    tracker.kill_stale({"host": "a"}, lambda tags: True)
    tracker.kill_stale({"host": "b"}, lambda tags: tags["pid"] == "1")
    assert [client.runs[run.id].status for run in runs] == ["FINISHED", "KILLED", "KILLED", "RUNNING"]


def test_a_name_that_a_run_has_gets_a_number(tracker, client):
    names = ("sample · 3f2a9c", "sample · 3f2a9c", "alone", "sample · lr=1 · 3f2a9c", "sample · 3f2a9c", "alone")
    shown = [client.runs[tracker.start(name, {}, {}).id].info.run_name for name in names]
    assert shown == [
        "sample · 3f2a9c",
        "sample · run 2 · 3f2a9c",
        "alone",
        "sample · lr=1 · 3f2a9c",
        "sample · run 3 · 3f2a9c",
        "alone · run 2",
    ]


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("sqlite:///mlflow.db", ""),
        ("http://host:5000/", "http://host:5000/#/experiments/7/runs/r1?workflowType=machine_learning"),
    ],
)
def test_a_run_has_a_page_on_a_server(uri, address, client):
    assert Tracker(client, "7", uri).address(Run("r1")) == address
    assert Tracker(client, "7", uri).address(Run()) == ""


def test_quotes_in_a_name_do_not_break_the_query(tmp_path):
    tracker = Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "x")
    names = ["x · name='a' · b=\"c\\d\"", "it's", "it_s"]
    for name in [*names, *names]:
        tracker.start(name, {}, {})
    shown = {run.info.run_name for run in tracker.client.search_runs([tracker.experiment])}
    assert shown == {*names, "x · name='a' · run 2 · b=\"c\\d\"", "it's · run 2", "it_s · run 2"}


def test_the_machine_is_sampled_while_a_stage_trains(tracker, client, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(system_metrics, "SYSTEM_SECONDS", 0)
    with tracker.follow(Run("run-1"), tmp_path / "metrics.jsonl", system_metrics.SystemMetrics()):
        assert client.logged.acquire(timeout=60)
    names = {name for name, _, _ in client.metrics}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= names
    assert all(name.startswith("system/") for name in names)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("test/qa/acc_what's", "test/qa/acc_what_s"),
        ("acc_(how many?)", "acc__how many__"),
        ("validation/qa/acc_où", "validation/qa/acc_où"),
        ("a.b-c: d_1/e", "a.b-c: d_1/e"),
        (300 * "x", 250 * "x"),
    ],
)
def test_metric_names_are_valid_in_mlflow(tracker, client, name, taken):
    assert validate_param_and_metric_name(metric_name(name))
    tracker.metrics(Run("run-1"), {name: 1.0})
    assert client.metrics == [(taken, 1.0, 0)]


def test_a_configuration_is_logged_a_hundred_values_at_a_time(tracker, client):
    values = {"stage": {f"value_{n}": n for n in range(150)} | {"phases": ({"steps": 3}, {"steps": 4})}}
    run = tracker.start("name", values, {"stage": "stage"}, parent=Run("run-0"))
    assert client.runs[run.id].data.tags == {"stage": "stage", "mlflow.parentRunId": "run-0"}
    assert client.params["stage.phases.1.steps"] == "4"
    assert len(client.params) == 152
    assert max(client.sizes) <= 100


def test_nested_values_are_flattened():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": [], "f": [{"g": 2}, {"g": 3}]}) == {
        "a.b.c": 1,
        "d": [1, 2],
        "e": [],
        "f.0.g": 2,
        "f.1.g": 3,
    }


def test_a_table_is_its_first_rows_with_plain_columns(tmp_path):
    frame = pd.DataFrame({"text": [f"t{n}" for n in range(600)], "best": [["a", "b"]] * 600, "rank": 1.5})
    frame.to_parquet(tmp_path / "retrieval_t2v.parquet")
    table = read_table(tmp_path / "retrieval_t2v.parquet")
    assert len(table) == tracking.TABLE_ROWS
    assert table.iloc[0].to_dict() == {"text": "t0", "best": "a, b", "rank": 1.5}


def test_a_store_whose_creation_is_interrupted_is_created_again_by_the_next_run(tmp_path, monkeypatch):
    """Some of its tables are there then, and MLflow fails for ever to create the others."""

    def upgrade(engine):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", upgrade)
    with pytest.raises(KeyboardInterrupt):
        Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]


def test_a_corrupt_store_is_a_one_line_error(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match="not usable") as caught:
        Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "x")
    assert "\n" not in str(caught.value)


@pytest.fixture
def mlflow_server(tmp_path, free_port) -> Iterator[Callable[[], str]]:
    """mlflow_server(): a context with a real server of one store at one address, whose URL it yields."""
    port, environment = free_port(), os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--artifacts-destination", f"{tmp_path}/files", "--host", "127.0.0.1", "--port", str(port)]

    @contextmanager
    def serve():
        with open(tmp_path / "server.log", "a") as log:
            process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            while not answers(url):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return serve


def answers(url: str) -> bool:
    try:
        return urlopen(f"{url}/health", timeout=10).status == 200
    except OSError:
        return False


@pytest.mark.long
def test_everything_is_logged_after_the_server_restarts(mlflow_server, tmp_path, quick, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    file = tmp_path / "stage" / "metrics.jsonl"
    file.parent.mkdir()
    (file.parent / "artifact.json").write_text("{}")
    with mlflow_server() as url:
        tracker = Tracker.open(url, tmp_path, "outage")
        parent = tracker.start("pipeline", {}, {})
    write(file, 1, loss=3.0)
    run = tracker.start("stage", {"stage": {"lr": 0.1}}, {}, parent)
    with tracker.follow(run, file):
        write(file, 2, loss=2.0)
    tracker.artifact_folder(run, file.parent)
    tracker.end(run)
    assert (run.id, tracker.interrupted) == ("", True)
    with mlflow_server() as url:
        tracker.close()
        client = MlflowClient(url)
        logged = client.get_run(run.id)
        assert logged.data.tags["mlflow.parentRunId"] == parent.id
        assert (logged.info.status, logged.data.params) == ("FINISHED", {"stage.lr": "0.1"})
        assert [(m.step, m.value) for m in client.get_metric_history(run.id, "loss")] == [(1, 3.0), (2, 2.0)]
        assert [artifact.path for artifact in client.list_artifacts(run.id)] == ["artifact.json"]
