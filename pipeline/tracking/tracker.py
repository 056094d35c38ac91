"""Logging to MLflow: a run for each pipeline, a nested run for each stage, a logged model for each model.

Stages write metrics.jsonl, tables and pictures into their folders and know nothing of MLflow; this follows those files
while a stage runs and logs the rest when it is done. So one process, the one that drives the pipeline, logs; training
processes on other machines need no MLflow, and a cached stage's curves come from the same file.

Only opening the store raises an error. After that, logging is best effort: what MLflow does not take is left out with
a warning, and the run is marked as incomplete. The next run of the pipeline logs such a stage again, from the files of
its artifact.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # some seconds

from filelock import FileLock
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from PIL import Image

from alpro.artifact import flatten
from alpro.errors import InputError
from alpro.files import atomic_write
from alpro.log import log
from alpro.pipeline.reports.results import HEADLINES
from alpro.stages.training.metrics import read_metrics

for _name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables...", and the like
    logging.getLogger(_name).setLevel(logging.WARNING)
for _name in ("urllib3.connectionpool", "mlflow.store.db.utils"):  # each retry, and tracebacks of failed calls
    logging.getLogger(_name).setLevel(logging.CRITICAL)

T = TypeVar("T")
FOLLOW_SECONDS = 2.0
RETRY_SECONDS = 30.0  # without calls after one that MLflow did not answer: each may take a connection timeout
PICTURES_OF_STEPS = "pictures/*-step-*.png"
TABLES = ("results", "entities", "left_out", "prompts", "rejects", "qa", "retrieval_t2v")
TABLE_ROWS = 500
SEPARATOR = " · "  # of the parts of a run's name
NUMBER = re.compile(rf"{SEPARATOR}run \d+(?={SEPARATOR}|$)")
KIND = {"mlflow.experimentKind": "custom_model_development"}
VIEW = "alpro"  # of the columns of MLflow's table of runs, by its key in addresses
COLUMNS = [*(f"metrics.`{name}`" for name in HEADLINES), "attributes.`Dataset`", "attributes.`Models`"]
INCOMPLETE = "incomplete"  # the tag of a run that misses entries
MODEL_TRAINING = "workflowType=machine_learning"  # opens MLflow's pages on runs, not on traces of chats


@dataclass
class Run:
    """A run in MLflow. The id is empty if MLflow did not answer. missed: some of its entries are not logged."""

    id: str = ""
    missed: bool = False


@dataclass(frozen=True)
class Logged:
    """A model and a corpus that metrics belong to: the id of the model, the name and the digest of the corpus."""

    model: str = ""
    corpus: str = ""
    digest: str = ""


@dataclass
class Tracker:
    """Logs to one MLflow store, in one experiment."""

    client: MlflowClient
    experiment: str
    uri: str
    name: str = ""  # of the experiment
    missed: int = 0  # entries that are not logged
    asks_again: float = 0.0  # the time of `time.monotonic` before which no call is made
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
                key = f"mlflow.sharedViewState.{VIEW}"
                if existing is None or key not in existing.tags:
                    client.set_experiment_tag(identity, key, json.dumps({"selectedColumns": COLUMNS}))
        except Exception as error:  # of MLflow, SQLAlchemy, alembic: a corrupt file, a server that is not there
            raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error
        return cls(client, identity, uri, experiment)

    def start(self, name: str, params: dict[str, Any], tags: dict[str, str], parent: Run | None = None) -> Run:
        """Starts a run, nested in `parent` if there is one. A name that a run of the experiment has gets a number."""
        run, now = Run(), milliseconds()

        def create() -> None:
            nested = {"mlflow.parentRunId": parent.id} if parent else {}
            shown = self.numbered(name)
            created = self.client.create_run(self.experiment, start_time=now, run_name=shown, tags=tags | nested)
            run.id = created.info.run_id

        self._send(run, create)
        # MLflow accepts at most a hundred parameters in a call.
        flat = [Param(key, str(value)[:6000]) for key, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._send(run, partial(self.client.log_batch, run.id, params=flat[start : start + 100]))
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

    def find(self, fingerprint: str, run_id: str) -> str | None:
        """The run that built an artifact and has all of its entries: `run_id` if the store has it, else a run of the
        experiment with the fingerprint. Empty if there is none; None if MLflow does not answer."""

        def search() -> str:
            try:
                runs = [self.client.get_run(run_id)] if run_id else []
            except MlflowException as error:
                if is_outage(error):
                    raise
                runs = []
            query = f"attributes.status = 'FINISHED' and tags.fingerprint = '{fingerprint}'"
            runs += self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY)
            complete = (run for run in runs if run.info.status == "FINISHED" and INCOMPLETE not in run.data.tags)
            return next((run.info.run_id for run in complete), "")

        return self._ask(None, search)

    def started_before(self, fingerprint: str) -> bool:
        """Whether the experiment has a run that was stopped while it built an artifact, and so its first steps."""

        def search() -> bool:
            query = f"attributes.status != 'FINISHED' and tags.fingerprint = '{fingerprint}'"
            runs = self.client.search_runs([self.experiment], query, ViewType.ACTIVE_ONLY)
            return any(INCOMPLETE not in run.data.tags for run in runs)

        return bool(self._ask(None, search))

    def tags(self, run: Run, tags: dict[str, str]) -> None:
        logged = [RunTag(key, value) for key, value in tags.items()]
        self._send(run, lambda: self.client.log_batch(run.id, tags=logged))

    def table(self, run: Run, rows: list[dict[str, Any]], name: str) -> None:
        """Logs rows as a table, which MLflow shows among the artifacts."""
        columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}
        self._send(run, lambda: self.client.log_table(run.id, columns, name))

    def end(self, run: Run, status: str = "FINISHED") -> None:
        """Ends a run: FINISHED, FAILED or KILLED."""
        now = milliseconds()
        if run.missed:
            self.tags(run, {INCOMPLETE: "MLflow did not answer; the next run of the pipeline logs this stage again"})
        self._send(run, lambda: self.client.set_terminated(run.id, status, now))

    def metrics(self, run: Run, values: dict[str, float], step: int = 0, of: Logged | None = None) -> bool:
        """Logs values; `of`: the model and the corpus that they belong to. Returns whether MLflow took them."""
        now, of = milliseconds(), of or Logged()
        about = of.model or None, of.corpus or None, of.digest or None
        return self._send_metrics(run, [Metric(key, value, now, step, *about) for key, value in values.items()])

    def lines(self, run: Run, lines: list[dict[str, Any]]) -> bool:
        """Logs lines of a metrics.jsonl. Returns whether MLflow took them."""
        return self._send_metrics(
            run,
            [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in lines
                for key, value in line.items()
                if key not in ("step", "time")
            ],
        )

    def _send_metrics(self, run: Run, metrics: list[Metric]) -> bool:
        for metric in metrics:
            metric._key = metric_name(metric.key)
        parts = [metrics[start : start + 1000] for start in range(0, len(metrics), 1000)]
        return all(self._send(run, partial(self.client.log_batch, run.id, metrics=part)) for part in parts)

    @contextmanager
    def follow(self, run: Run, file: Path, resumed: bool = False) -> Iterator[None]:
        """Logs the lines of a metrics.jsonl as they are written, from a thread, and the last ones at the end; so too
        the pictures of single steps that appear beside it. resumed: lines that are there already are left out: the
        run that wrote them has them."""
        done = threading.Event()
        last = max((line["step"] for line in read_metrics(file)), default=-1) if resumed else -1
        shown = set(file.parent.glob(PICTURES_OF_STEPS))

        def read() -> None:
            nonlocal last
            fresh = [line for line in read_metrics(file) if line["step"] > last]
            if fresh:
                # Several lines may share a step (training, validation): the newest step waits for its last line.
                ready = fresh if done.is_set() else [line for line in fresh if line["step"] < fresh[-1]["step"]]
                if ready and self.lines(run, ready):  # after an outage, all lines since
                    last = ready[-1]["step"]
            for picture in sorted(set(file.parent.glob(PICTURES_OF_STEPS)) - shown):
                shown.add(picture)
                self.picture(run, picture)

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

    def artifact_folder(self, run: Run, folder: Path) -> None:
        """Logs what a person looks at of an artifact: its record, pictures, and tables (the first rows of each)."""
        self.file(run, folder / "artifact.json")
        pictures = set((folder / "pictures").glob("*.png")) - set(folder.glob(PICTURES_OF_STEPS))
        for picture in sorted(pictures):
            self.file(run, picture, "pictures")
        for name in TABLES:
            path = folder / (f"{name}.json" if name == "results" else f"{name}.parquet")
            if path.is_file():
                table, place = read_table(path), f"tables/{name}.json"
                self._send(run, partial(self.client.log_table, run.id, table, place))

    def pictures_of_steps(self, run: Run, folder: Path) -> None:
        """Logs the pictures of single steps of an artifact, which `follow` logs while a stage runs."""
        for picture in sorted(folder.glob(PICTURES_OF_STEPS)):
            self.picture(run, picture)

    def picture(self, run: Run, path: Path) -> None:
        """Logs NAME-step-000200.png as the image NAME of step 200, which MLflow's page shows over the steps."""
        name, _, step = path.stem.partition("-step-")

        def log_image() -> None:
            with Image.open(path) as picture:
                self.client.log_image(run.id, picture.convert("RGB"), key=name, step=int(step))

        self._send(run, log_image)

    def file(self, run: Run, path: Path, folder: str | None = None) -> None:
        self._send(run, lambda: self.client.log_artifact(run.id, str(path), folder))

    def model(self, run: Run, name: str, folder: Path, fingerprint: str, params: dict[str, Any], step: int) -> str:
        """Logs a model that stays in its folder as the output of its run at a step: MLflow lists it, and has no copy
        of it. Returns its id; empty if MLflow did not answer."""

        def create() -> str:
            tags = {"mlflow.model.isExternal": "true", "path": str(folder), "fingerprint": fingerprint}
            flat = {key: str(value)[:500] for key, value in flatten(params).items()}
            # MLflow's names of models have none of these characters.
            shown = re.sub(r"[/:.%\"']", "_", name)
            logged = self.client.create_logged_model(self.experiment, shown, run.id, tags, flat, "ALPRO")
            self.client.finalize_logged_model(logged.model_id, "READY")
            self.client.log_outputs(run.id, [LoggedModelOutput(logged.model_id, step)])
            return logged.model_id

        return self._ask(run, create) or ""

    def logged_model(self, fingerprint: str) -> str:
        """The id of the newest logged model of an artifact; empty if the store has none."""

        def search() -> str:
            query = f"tags.fingerprint = '{fingerprint}'"
            experiments = [one.experiment_id for one in self.client.search_experiments()]
            models = self.client.search_logged_models(experiments, query, max_results=1)
            return next((model.model_id for model in models), "")

        return self._ask(None, search) or ""

    def evaluated(self, run: Run, models: Iterable[str]) -> None:
        """Lists logged models as the inputs of the run that evaluates them."""
        inputs = [LoggedModelInput(model) for model in dict.fromkeys(models)]
        if inputs:
            self._send(run, lambda: self.client.log_inputs(run.id, models=inputs))

    def dataset(self, run: Run, name: str, artifact: Path, fingerprint: str, counts: dict[str, int], use: str) -> None:
        """Logs a corpus that a run reads or builds. use: training, evaluation, or another purpose."""
        about = json.dumps({"path": str(artifact)})
        corpus = Dataset(name, fingerprint[:16], "artifact", about, profile=json.dumps(counts))
        tags = [InputTag("mlflow.data.context", use)]
        self._send(run, lambda: self.client.log_inputs(run.id, [DatasetInput(corpus, tags)]))

    def text(self, run: Run, text: str, name: str) -> None:
        self._send(run, lambda: self.client.log_text(run.id, text, name))

    def figure(self, run: Run, figure: Any, name: str) -> None:
        self._send(run, lambda: self.client.log_figure(run.id, figure, name))

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

        self._send(None, kill)

    def _send(self, run: Run | None, call: Callable[[], object]) -> bool:
        """Makes a call to MLflow about a run. Returns whether MLflow took it: not if it does not answer, if the run was
        not created because of that, and if it refuses the call."""
        with self.lock:
            if time.monotonic() < self.asks_again or (run and run.missed and not run.id):
                return self._miss(run)
            try:
                call()
            except Exception as error:  # of MLflow, requests, or the client of a store of artifacts
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                if not is_outage(error):
                    log.warning(f"warning: MLflow store {self.uri}: an entry is not logged: {reason}")
                    return False
                if not self.missed:
                    log.warning(f"warning: MLflow store {self.uri} does not answer ({reason}); entries are left out")
                self.asks_again = time.monotonic() + RETRY_SECONDS
                return self._miss(run)
            return True

    def _ask(self, run: Run | None, call: Callable[[], T]) -> T | None:
        """What a call to MLflow returns; None if `_send` returns False for it."""
        answers: list[T] = []
        self._send(run, lambda: answers.append(call()))
        return answers[0] if answers else None

    def _miss(self, run: Run | None) -> bool:
        self.missed += 1
        if run:
            run.missed = True
        return False

    def close(self) -> None:
        """Prints a warning if entries are missing."""
        if self.missed:
            log.warning(
                f"warning: MLflow store {self.uri} did not answer; {self.missed} entries are not logged; run the same "
                "command again later to log the metrics of what is finished"
            )


def create_store(path: Path, artifacts: Path) -> None:
    """Creates an SQLite store if there is none, under another name, which is renamed: a store whose tables are not all
    there, because its process was killed or the disk is full, can never be opened again."""
    if path.exists():
        return
    with atomic_write(path) as temporary:
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.resolve().as_uri()).engine.dispose()


@contextmanager
def system_metrics(tracker: Tracker, run: Run) -> Iterator[None]:
    """Logs the use of this machine (processor, memory, disk, network, GPUs) while the body runs."""
    monitor = SystemMetricsMonitor(run.id, tracking_uri=tracker.uri) if run.id else None
    if monitor:
        monitor.start()
    try:
        yield
    finally:
        if monitor:
            monitor.finish()


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
