"""Logging to MLflow: a run for each pipeline, a nested run for each stage. Only this file and
registry.py import mlflow.

Stages write metrics.jsonl, tables and pictures into their folders and know nothing of MLflow; this follows those files
while a stage runs and logs the rest when it is done. So one process, the one that drives the pipeline, logs; training
processes on other machines need no MLflow, and a cached stage's curves come from the same file.

Only opening the store raises an error. After that, calls that fail because MLflow does not answer are kept and made
later, in their order: an outage of the tracking server costs no finished work.
"""

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # some seconds; what fails longer is kept here

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.files import atomic_write
from alpro.log import log
from alpro.pipeline.artifacts.store import flatten
from alpro.pipeline.reporting.system_metrics import SystemMetrics
from alpro.stages.training.metrics import read_metrics

for _name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables...", and the like
    logging.getLogger(_name).setLevel(logging.WARNING)
for _name in ("urllib3.connectionpool", "mlflow.store.db.utils"):  # each retry, and tracebacks of failed calls
    logging.getLogger(_name).setLevel(logging.CRITICAL)

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
SEPARATOR = " · "  # of the parts of a run's name
NUMBER = re.compile(rf"{SEPARATOR}run \d+(?={SEPARATOR}|$)")
KIND = {"mlflow.experimentKind": "custom_model_development"}
MODEL_TRAINING = "workflowType=machine_learning"  # opens MLflow's pages on runs, not on traces of chats


@dataclass
class Run:
    """A run in MLflow. The id is empty until MLflow has created the run."""

    id: str = ""


@dataclass
class Tracker:
    """Logs to one MLflow store, in one experiment."""

    client: MlflowClient
    experiment: str
    uri: str
    pending: deque[Callable[[], object]] = field(default_factory=deque)  # calls that MLflow has not answered
    interrupted: bool = False  # a warning about pending calls was printed
    lock: Any = field(default_factory=threading.RLock)

    @classmethod
    def open(cls, uri: str, artifacts: Path, experiment: str) -> "Tracker":
        """The store at `uri` (an SQLite file or a server). Creates the experiment if it does not exist."""
        local = uri.startswith("sqlite:///")
        # Two pipelines that start at once would both create the tables of a new database.
        lock = FileLock(uri.removeprefix("sqlite:///") + ".lock") if local else nullcontext()
        try:
            with lock:
                if local:
                    create_store(Path(uri.removeprefix("sqlite:///")), artifacts)
                client = MlflowClient(uri)
                existing = client.get_experiment_by_name(experiment)
                if existing is None:
                    location = (artifacts / experiment).resolve().as_uri() if local else None
                    identity = client.create_experiment(experiment, artifact_location=location, tags=KIND)
                else:
                    identity = existing.experiment_id
        except Exception as error:  # of MLflow, SQLAlchemy, alembic: a corrupt file, a server that is not there
            raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
        return cls(client, identity, uri)

    def start(self, name: str, params: dict[str, Any], tags: dict[str, str], parent: Run | None = None) -> Run:
        """Starts a run, nested in `parent` if there is one. A name that a run of the experiment has gets a number."""
        run, now = Run(), milliseconds()

        def create() -> None:
            nested = {"mlflow.parentRunId": parent.id} if parent else {}
            shown = self.numbered(without_credentials(name))
            created = self.client.create_run(self.experiment, start_time=now, run_name=shown, tags=tags | nested)
            run.id = created.info.run_id

        self._send(create)
        # MLflow accepts at most a hundred parameters in a call.
        flat = [Param(key, without_credentials(str(value))[:6000]) for key, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._send(partial(self._log_batch, run, params=flat[start : start + 100]))
        return run

    def numbered(self, name: str) -> str:
        """The name of a run, with its number if the experiment has others of this name. A fingerprint stays the last
        part: "sample · 3f2a9c" becomes "sample · run 2 · 3f2a9c"."""
        *first, last = name.split(SEPARATOR)
        pattern = re.sub(r"['\"\\]", "_", last)  # a filter cannot escape quotes; _ is any character
        query = f"attributes.run_name LIKE '%{pattern}%'"
        runs = self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY)
        count = 1 + sum(re.sub(NUMBER, "", run.info.run_name or "") == name for run in runs)
        number = [f"run {count}"] if count > 1 else []
        return SEPARATOR.join([*first, *number, last] if first else [last, *number])

    def address(self, run: Run, artifact: str = "") -> str:
        """The address of a run's page, or of one of its files; empty if the store is a file, or does not answer."""
        if not self.uri.startswith("http") or not run.id:
            return ""
        path = f"experiments/{self.experiment}/runs/{run.id}" + (f"/artifacts/{artifact}" if artifact else "")
        return f"{self.uri.rstrip('/')}/#/{path}?{MODEL_TRAINING}"

    def find(self, fingerprint: str, run_id: str) -> str:
        """The run that built an artifact: `run_id` if the store has it, else a finished run of the experiment with the
        fingerprint; empty if there is none."""
        try:
            return self.client.get_run(run_id).info.run_id if run_id else ""
        except MlflowException as error:
            if is_outage(error):
                raise
        query = f"attributes.status = 'FINISHED' and tags.fingerprint = '{fingerprint}'"
        found = self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY)
        return found[0].info.run_id if found else ""

    def later(self, call: Callable[[], object]) -> None:
        """Makes a call that asks MLflow and logs by the answer, now or when MLflow answers again."""
        self._send(call)

    def tags(self, run: Run, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._send(partial(self._set_tag, run, key, without_credentials(value)))

    def _set_tag(self, run: Run, key: str, value: str) -> None:
        self.client.set_tag(run.id, key, value)

    def table(self, run: Run, rows: list[dict[str, Any]], name: str) -> None:
        """Logs rows as a table, which MLflow shows among the artifacts."""
        columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}
        self._send(partial(self._log_table, run, columns, name))

    def end(self, run: Run, status: str = "FINISHED") -> None:
        """Ends a run: FINISHED, FAILED or KILLED."""
        now = milliseconds()
        self._send(lambda: self.client.set_terminated(run.id, status, now))

    def metrics(self, run: Run, values: dict[str, float], step: int = 0) -> None:
        now = milliseconds()
        self._send_metrics(run, [Metric(key, value, now, step) for key, value in values.items()])

    def lines(self, run: Run, lines: list[dict[str, Any]]) -> None:
        """Logs lines of a metrics.jsonl."""
        self._send_metrics(
            run,
            [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in lines
                for key, value in line.items()
                if key not in ("step", "time")
            ],
        )

    def _send_metrics(self, run: Run, metrics: list[Metric]) -> None:
        metrics = [Metric(metric_name(m.key), m.value, m.timestamp, m.step) for m in metrics]
        for start in range(0, len(metrics), 1000):
            self._send(partial(self._log_batch, run, metrics=metrics[start : start + 1000]))

    def _log_batch(self, run: Run, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        self.client.log_batch(run.id, metrics=metrics, params=params)

    @contextmanager
    def follow(self, run: Run, file: Path, system: SystemMetrics | None = None) -> Iterator[None]:
        """Logs the lines of a metrics.jsonl as they are written, from a thread, and the last ones at the end; so too
        the pictures of single steps that appear beside it, and the samples of `system`."""
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
                self.file(run, picture, "pictures")

        def loop() -> None:
            while not done.wait(FOLLOW_SECONDS):
                self.flush()
                read()
                seconds, metrics = system.sample() if system else (0, {})
                self.metrics(run, metrics, seconds)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            read()

    def artifact_folder(self, run: Run, folder: Path) -> None:
        """Logs what a person looks at of an artifact: its record, pictures, and tables (the first rows of each)."""
        self.file(run, folder / "artifact.json")
        for picture in sorted((folder / "pictures").glob("*.png")):
            self.file(run, picture, "pictures")
        for name in TABLES:
            if (folder / name).is_file():
                self._send(partial(self._log_table, run, read_table(folder / name), f"tables/{Path(name).stem}.json"))

    def _log_table(self, run: Run, table: Any, name: str) -> None:
        self.client.log_table(run.id, table, name)

    def file(self, run: Run, path: Path, folder: str | None = None) -> None:
        self._send(lambda: self.client.log_artifact(run.id, str(path), folder))

    def model(self, run: Run, name: str, folder: Path, fingerprint: str) -> None:
        """Logs a model that stays in its folder: MLflow lists it with its run, and has no copy of it."""

        def create() -> None:
            tags = {"mlflow.model.isExternal": "true", "path": str(folder), "fingerprint": fingerprint}
            logged = self.client.create_logged_model(self.experiment, name, run.id, tags, model_type="ALPRO")
            self.client.finalize_logged_model(logged.model_id, "READY")

        self._send(create)

    def dataset(self, run: Run, name: str, artifact: Path, fingerprint: str, counts: dict[str, int], use: str) -> None:
        """Logs a corpus that a run reads or builds. use: training, evaluation, or another purpose."""
        about = without_credentials(json.dumps({"path": str(artifact)}))
        corpus = Dataset(name, fingerprint[:16], "artifact", about, profile=json.dumps(counts))
        tags = [InputTag("mlflow.data.context", use)]
        self._send(lambda: self.client.log_inputs(run.id, [DatasetInput(corpus, tags)]))

    def text(self, run: Run, text: str, name: str) -> None:
        self._send(lambda: self.client.log_text(run.id, without_credentials(text), name))

    def figure(self, run: Run, figure: Any, name: str) -> None:
        self._send(lambda: self.client.log_figure(run.id, figure, name))

    def has_run(self, run_id: str) -> bool:
        """Whether the store has a run, and so is the store of the process that started it."""
        try:
            return bool(run_id) and self.client.get_run(run_id) is not None
        except Exception as error:
            if not is_outage(error):
                return False
            raise InputError(f"MLflow store {self.uri}: not usable: {str(error).splitlines()[0]}") from error

    def kill_stale(self, tags: dict[str, str], is_stale: Callable[[dict[str, str]], bool]) -> None:
        """Marks as killed the runs that are listed as running, have these tags, and are stale by all their tags."""

        def kill() -> None:
            wanted = [f"tags.{key} = '{value}'" for key, value in tags.items()]
            query = " and ".join(["attributes.status = 'RUNNING'", *wanted])
            for run in self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY):
                if is_stale(run.data.tags):
                    self.client.set_terminated(run.info.run_id, "KILLED")

        self._send(kill)

    def _send(self, call: Callable[[], object]) -> None:
        """Makes a call to MLflow. During an outage it is kept, and `flush` makes it later."""
        with self.lock:
            self.pending.append(call)
            if len(self.pending) == 1:
                self.flush()

    def flush(self) -> bool:
        """Makes the pending calls. Returns False if MLflow does not answer. A call that fails otherwise is dropped."""
        with self.lock:
            while self.pending:
                try:
                    self.pending[0]()
                except Exception as error:  # of MLflow, requests, or the client of a store of artifacts
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    if is_outage(error):
                        self._warn_once(reason)
                        return False
                    log.warning(f"warning: MLflow store {self.uri}: an entry is not logged: {reason}")
                self.pending.popleft()
            if self.interrupted:
                log.info(f"MLflow store {self.uri} answers again; the missed entries are logged")
            self.interrupted = False
            return True

    def _warn_once(self, reason: str) -> None:
        if not self.interrupted:
            log.warning(
                f"warning: MLflow store {self.uri} does not answer ({reason}); entries are kept and logged later"
            )
        self.interrupted = True

    def close(self) -> None:
        """Makes the pending calls; prints a warning if MLflow still does not answer."""
        if not self.flush():
            log.warning(
                f"warning: MLflow store {self.uri} does not answer; {len(self.pending)} entries are not logged; "
                "run the same command again later to log the metrics of what is finished"
            )


def create_store(path: Path, artifacts: Path) -> None:
    """Creates an SQLite store if there is none, under another name, which is renamed: a store whose tables are not all
    there, because its process was killed or the disk is full, can never be opened again."""
    if path.exists():
        return
    with atomic_write(path) as temporary:
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.resolve().as_uri()).engine.dispose()


def is_outage(error: Exception) -> bool:
    """Whether a failed call may succeed later: not if MLflow answered that the call is wrong (the run was deleted,
    say), and not if the file to log is missing."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() not in (400, 404)
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def milliseconds() -> int:
    return int(time.time() * 1000)


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
