"""Logging to MLflow, also during outages, with a recording client."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.utils.validation import validate_param_and_metric_name

from alpro.errors import InputError
from alpro.pipeline.tracking import tracker as tracking
from alpro.pipeline.tracking.tracker import Run, Tracker, flatten, metric_name, read_table


class Memory:
    """A client that records what is logged. While `error` is set, every call raises it."""

    def __init__(self):
        self.metrics, self.params, self.sizes, self.files = [], {}, [], []
        self.times: list[int] = []
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
        info = SimpleNamespace(run_id=f"run-{len(self.runs) + 1}", run_name=run_name, status="RUNNING")
        run = SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(tags)), started=start_time)
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
        status, *others = query.split(" and ")
        _, sign, value = status.split(" ")
        wanted = dict(part.removeprefix("tags.").split(" = ") for part in others)
        of_status = [run for run in self.runs.values() if (run.info.status == value.strip("'")) == (sign == "=")]
        return [run for run in of_status if all(run.data.tags.get(k) == v.strip("'") for k, v in wanted.items())]

    def set_terminated(self, run, status, end_time=None):
        self.answer()
        self.runs[run].info.status, self.runs[run].ended = status, end_time

    def log_batch(self, run, metrics=(), params=(), tags=()):
        self.answer()
        if tags:
            self.runs[run].data.tags |= {tag.key: tag.value for tag in tags}
            return
        if any(m.key == "refused" for m in metrics):
            raise MlflowException("refused: not a name", INVALID_PARAMETER_VALUE)
        self.sizes.append(len(metrics) + len(params))
        self.metrics += [(m.key, m.value, m.step) for m in metrics]
        self.times += [m.timestamp for m in metrics]
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
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0)


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


def test_the_time_of_a_point_is_that_of_its_line_in_milliseconds(tracker, client):
    tracker.lines(Run("run-1"), [{"step": 1, "time": 1_700_000_000.125, "loss": 3.0}])
    assert client.times == [1_700_000_000_125]
    before = time.time()
    tracker.metrics(Run("run-1"), {"loss": 1.0})
    assert before * 1000 - 1 <= client.times[1] <= time.time() * 1000


def test_a_resumed_stage_logs_only_its_new_steps(tracker, client, tmp_path):
    """The run that was stopped has the others. A run that MLflow does not have is logged from its first step."""
    file = tmp_path / "metrics.jsonl"
    for resumed, expected in ((False, [1, 2, 3]), (True, [4])):
        write(file, 1 if not resumed else 3, loss=1.0)
        with tracker.follow(Run("run-1"), file, resumed):
            for step in (2, 3) if not resumed else (4,):
                write(file, step, loss=2.0)
        assert [step for _, _, step in client.metrics] == expected
        client.metrics.clear()
    first = tracker.start("pretrain", {}, {"fingerprint": "a"})
    assert [tracker.started_before(fingerprint) for fingerprint in "ab"] == [True, False]
    tracker.end(first)
    assert not tracker.started_before("a")


def test_an_outage_while_metrics_are_followed_loses_none(tracker, client, tmp_path, quick, capsys):
    file = tmp_path / "metrics.jsonl"
    client.error = OUTAGE
    run = Run("run-1")
    with tracker.follow(run, file):
        write(file, 1, loss=3.0)
        write(file, 2, loss=2.0)
        for _ in range(3):  # the thread goes on trying
            assert client.failed.acquire(timeout=60)
        write(file, 3, loss=1.0)
        client.error = None
        assert client.logged.acquire(timeout=60)
    assert client.metrics == [("loss", 3.0, 1), ("loss", 2.0, 2), ("loss", 1.0, 3)]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: MLflow store memory does not answer (API request to http://host failed")


def test_a_stage_with_missing_entries_is_not_found_so_that_the_next_run_logs_it(tracker, client, quick, capsys):
    """`find` says None while MLflow does not answer: then nothing is known."""
    whole, partial = (tracker.start("stage", {}, {"fingerprint": name}) for name in "ab")
    tracker.end(whole)
    client.error = OUTAGE
    tracker.metrics(partial, {"loss": 1.0})
    late = tracker.start("stage", {"stage": {"lr": 0.1}}, {"fingerprint": "c"})
    assert (late.id, tracker.find("a", "")) == ("", None)
    client.error = None
    tracker.metrics(late, {"loss": 1.0})
    for run in (partial, late):
        tracker.end(run)
    assert client.metrics == []
    assert [tracker.find(name, "") for name in "abc"] == [whole.id, "", ""]
    assert [tracker.find(name, run.id) for name, run in (("a", whole), ("b", partial))] == [whole.id, ""]
    tracker.close()
    assert "entries are not logged; run the same command again later" in capsys.readouterr().err


def test_during_an_outage_mlflow_is_not_asked_again_and_again(tracker, client):
    """Each attempt may take as long as a connection timeout, and a finished stage has many entries."""
    client.error = OSError("no route to host")
    for number in range(5):
        tracker.metrics(Run("run-1"), {"loss": float(number)})
    assert client.failed.acquire(blocking=False)
    assert not client.failed.acquire(blocking=False)


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
    assert [client.runs[run.id].info.status for run in runs] == ["FINISHED", "KILLED", "KILLED", "RUNNING"]


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
