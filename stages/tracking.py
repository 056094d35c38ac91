"""What MLflow is told: a run a pipeline, a nested run a stage. The one file that imports mlflow.

Stages write metrics.jsonl, tables and pictures into their folders and know nothing of MLflow; this follows those files
while a stage runs and logs the rest when it is done. So one process, the one that drives the pipeline, logs; training
processes on other machines need no MLflow, and a cached stage's curves come from the same file.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param, ViewType
from mlflow.tracking import MlflowClient

from shards.schema import InputError
from stages.training.metrics import read_metrics

for _name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables...", and the like
    logging.getLogger(_name).setLevel(logging.WARNING)

FOLLOW_SECONDS = 2.0
PICTURES_OF_STEPS = "pictures/*-step-*.png"
TABLES = (
    "results.json",
    "entities.parquet",
    "left_out.parquet",
    "prompts.parquet",
    "rejects.parquet",
    "qa.parquet",
    "retrieval_t2v.parquet",
)
TABLE_ROWS = 500
KIND = {"mlflow.experimentKind": "custom_model_development"}  # opens the page on runs, not on traces of chats


@dataclass(frozen=True)
class Tracker:
    """Logs to one MLflow store, in one experiment."""

    client: MlflowClient
    experiment: str
    uri: str

    @classmethod
    def open(cls, uri: str, artifacts: Path, experiment: str) -> "Tracker":
        """The store at `uri` (an SQLite file or a server), with the experiment made where it is missing."""
        local = uri.startswith("sqlite:///")
        # Two pipelines that both find no database would both make its tables.
        lock = FileLock(uri.removeprefix("sqlite:///") + ".lock") if local else nullcontext()
        try:
            with lock:
                client = MlflowClient(uri)
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    location = (artifacts / experiment).resolve().as_uri() if local else None
                    identity = client.create_experiment(experiment, artifact_location=location, tags=KIND)
                else:
                    identity = found.experiment_id
        except Exception as error:  # of MLflow, SQLAlchemy, alembic: a damaged file, a server that is not there
            raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
        return cls(client, identity, uri)

    def start(self, name: str, params: dict[str, Any], tags: dict[str, str], parent: str = "") -> str:
        """Starts a run, nested in `parent` where one is given; returns its id."""
        if parent:
            tags = tags | {"mlflow.parentRunId": parent}
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        # MLflow takes a hundred parameters at a time.
        flat = [Param(key, str(value)[:6000]) for key, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run.info.run_id, params=flat[start : start + 100])
        return run.info.run_id

    def end(self, run: str, status: str = "FINISHED") -> None:
        """Ends a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run, status)

    def metrics(self, run: str, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self._log(run, [Metric(key, value, now, step) for key, value in values.items()])

    def lines(self, run: str, lines: list[dict[str, Any]]) -> None:
        """Logs lines of a metrics.jsonl."""
        self._log(
            run,
            [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in lines
                for key, value in line.items()
                if key not in ("step", "time")
            ],
        )

    def _log(self, run: str, metrics: list[Metric]) -> None:
        metrics = [Metric(metric_name(m.key), m.value, m.timestamp, m.step) for m in metrics]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[start : start + 1000])

    @contextmanager
    def follow(self, run: str, file: Path) -> Iterator[None]:
        """Logs the lines of a metrics.jsonl as they are written, from a thread, and the last ones at the end; so too
        the pictures of single steps that appear beside it."""
        done = threading.Event()
        last = -1
        shown = set(file.parent.glob(PICTURES_OF_STEPS))

        def read() -> None:
            nonlocal last
            fresh = [line for line in read_metrics(file) if line["step"] > last]
            if fresh:
                # Several lines may share a step (training, validation): the newest step waits for its last line.
                self.lines(
                    run,
                    ready := fresh if done.is_set() else [line for line in fresh if line["step"] < fresh[-1]["step"]],
                )
                last = ready[-1]["step"] if ready else last
            for picture in sorted(set(file.parent.glob(PICTURES_OF_STEPS)) - shown):
                shown.add(picture)
                self.client.log_artifact(run, str(picture), "pictures")

        def loop() -> None:
            while not done.wait(FOLLOW_SECONDS):
                read()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            read()

    def artifact_folder(self, run: str, folder: Path) -> None:
        """Logs what a person looks at of an artifact: its manifest, pictures, and tables (the first rows of each)."""
        self.client.log_artifact(run, str(folder / "manifest.json"))
        for picture in sorted((folder / "pictures").glob("*.png")):
            self.client.log_artifact(run, str(picture), "pictures")
        for name in TABLES:
            if (folder / name).is_file():
                self.client.log_table(run, read_table(folder / name), f"tables/{Path(name).stem}.json")

    def file(self, run: str, path: Path) -> None:
        self.client.log_artifact(run, str(path))

    def text(self, run: str, text: str, name: str) -> None:
        self.client.log_text(run, text, name)

    def figure(self, run: str, figure: Any, name: str) -> None:
        self.client.log_figure(run, figure, name)

    def running(self, tags: dict[str, str]) -> dict[str, dict[str, str]]:
        """The runs that say they run and have these tags: their ids, with all their tags."""
        wanted = [f"tags.{key} = '{value}'" for key, value in tags.items()]
        query = " and ".join(["attributes.status = 'RUNNING'", *wanted])
        found = self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY)
        return {run.info.run_id: run.data.tags for run in found}


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . : / and spaces, 250 of them.

    >>> metric_name("test/qa/acc_what's")
    'test/qa/acc_what_s'
    """
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]


def read_table(path: Path) -> Any:
    """The first rows of a table as a data frame with plain columns."""
    import pandas as pd

    frame = pd.read_json(path) if path.suffix == ".json" else pd.read_parquet(path)
    frame = frame.head(TABLE_ROWS)
    for column in frame.columns:
        if frame[column].map(lambda v: hasattr(v, "__len__") and not isinstance(v, str)).any():
            frame[column] = frame[column].map(lambda v: ", ".join(map(str, v)))
    return frame


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted keys; lists of tables are numbered.

    >>> flatten({"a": {"b": 1}, "c": [{"d": 2}]})
    {'a.b': 1, 'c.0.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def version() -> str:
    return mlflow.__version__
