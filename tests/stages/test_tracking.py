"""What MLflow is told of a stage's metrics, with a client that only remembers."""

import json
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.utils.validation import validate_param_and_metric_name

from shards.schema import InputError
from stages import tracking
from stages.tracking import Tracker, flatten, metric_name, read_table


class Memory:
    """A client that remembers what it was told."""

    def __init__(self):
        self.metrics, self.params, self.sizes = [], {}, []

    def create_run(self, experiment, run_name, tags):
        self.tags = tags
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_batch(self, run, metrics=(), params=()):
        self.sizes.append(len(metrics) + len(params))
        self.metrics += [(m.key, m.value, m.step) for m in metrics]
        self.params |= {p.key: p.value for p in params}


@pytest.fixture
def client() -> Memory:
    return Memory()


@pytest.fixture
def tracker(client) -> Tracker:
    return Tracker(client, "1", "memory")


def write(file, step: int, **values: float) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"step": step, "time": 1.5, **values}) + "\n")


def test_metrics_are_followed_each_line_once(tracker, client, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "FOLLOW_SECONDS", 0.01)
    file = tmp_path / "metrics.jsonl"
    write(file, 1, loss=3.0)
    with tracker.follow("run-1", file):
        write(file, 2, loss=2.0)
        time.sleep(0.1)
        write(file, 2, accuracy=50.0)  # the validation of a step that was logged before
        time.sleep(0.1)
        write(file, 3, loss=1.0)
    assert client.metrics == [("loss", 3.0, 1), ("loss", 2.0, 2), ("accuracy", 50.0, 2), ("loss", 1.0, 3)]


def test_metrics_are_followed_while_they_are_written(tracker, client, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "FOLLOW_SECONDS", 0.01)
    file = tmp_path / "metrics.jsonl"
    with tracker.follow("run-1", file):
        write(file, 1, loss=3.0)
        write(file, 2, loss=2.0)
        ends = time.monotonic() + 5
        while not client.metrics and time.monotonic() < ends:
            time.sleep(0.01)
        assert client.metrics == [("loss", 3.0, 1)]


def test_the_last_metrics_of_a_failing_stage_are_logged(tracker, client, tmp_path):
    def fail():
        with tracker.follow("run-1", tmp_path / "metrics.jsonl"):
            write(tmp_path / "metrics.jsonl", 7, loss=9.0)
            raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError, match="the stage failed"):
        fail()
    assert client.metrics == [("loss", 9.0, 7)]


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
def test_a_metrics_name_is_one_that_mlflow_takes(tracker, client, name, taken):
    assert validate_param_and_metric_name(metric_name(name))
    tracker.metrics("run-1", {name: 1.0})
    assert client.metrics == [(taken, 1.0, 0)]


def test_a_run_tells_its_configuration_a_hundred_values_at_a_time(tracker, client):
    values = {"stage": {f"value_{n}": n for n in range(150)} | {"phases": ({"steps": 3}, {"steps": 4})}}
    assert tracker.start("name", values, {"stage": "stage"}, parent="run-0") == "run-1"
    assert client.tags == {"stage": "stage", "mlflow.parentRunId": "run-0"}
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


def test_a_damaged_store_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match="not usable") as told:
        Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, "x")
    assert "\n" not in str(told.value)
