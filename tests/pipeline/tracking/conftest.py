"""An MLflow store, whose tables are created once, and artifacts to log."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.files import digest, write_json


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    from alpro.pipeline.tracking.tracker import create_store

    folder = tmp_path_factory.mktemp("store")
    create_store(folder / "mlflow.db", folder / "mlflow")
    return folder / "mlflow.db"


@pytest.fixture
def tracker(empty_store, tmp_path) -> Any:
    from alpro.pipeline.tracking.tracker import Tracker

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Tracker.open("", tmp_path, "sample")


@pytest.fixture
def artifact(tmp_path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Makes an artifact of a stage, the same for the same `mark`. lines: of its metrics.jsonl."""

    def make(stage: str, mark: str = "", inputs: Any = None, lines: Any = (), **more: Any) -> tuple[Path, dict]:
        fingerprint = digest(stage + mark)
        folder = tmp_path / "artifacts" / stage / fingerprint[:16]
        folder.mkdir(parents=True)
        record = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": fingerprint}
        sources = {name: {"stage": r["stage"], "fingerprint": r["fingerprint"]} for name, r in (inputs or {}).items()}
        record |= {"config": {}, "counts": {}, "metrics": {}, "inputs": sources, "run": {"seconds": 1.0}} | more
        write_json(folder / "artifact.json", record)
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"time": 1.5, **line}) + "\n" for line in lines))
        return folder, record

    return make


def runs_of(tracker: Any) -> dict[str, Any]:
    """The runs of the experiment by their names."""
    return {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment])}


def history(tracker: Any, run: str, key: str) -> list[tuple[float, int, int]]:
    """The values of a metric of a run, with step and time."""
    return [(m.value, m.step, m.timestamp) for m in tracker.client.get_metric_history(run, key)]
