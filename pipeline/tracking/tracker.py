"""Logging to MLflow: a run for each pipeline, a nested run for each stage, a logged model for each
model.

Stages write metrics.jsonl, tables and pictures into their folders and know nothing of MLflow. The
process that drives the pipeline follows those files while a stage runs, and logs the rest from the
artifact when it is done; processes of a training need no MLflow.

Only opening the store raises an error. After that, what MLflow does not take is left out, with one
warning: `alpro artifacts log` logs an artifact again. MLflow's fluent API has one active run per
process and stages run side by side, so each call names its run.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock
from mlflow.entities import (
    Experiment,
    LifecycleStage,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from alpro.artifact import Record, flatten, read_record
from alpro.errors import InputError, one_line
from alpro.files import atomic_write
from alpro.locks import acquire
from alpro.log import log
from alpro.pipeline.tracking.contents import (
    commit_tags,
    common_tags,
    datasets_of,
    distinct,
    headlines,
    metric_name,
    params_of,
    read_table,
    rounded,
    stage_title,
    status_after,
)
from alpro.pipeline.tracking.relocation import advice_on, relocate
from alpro.stages import EVALUATIONS, STAGES
from alpro.stages.evaluation.score_names import HEADLINES, MODEL_OF_HEADLINE, VALIDATION_SCORES
from alpro.stages.training.metrics import read_metrics

FOLLOW_SECONDS = 2.0
SYSTEM_SECONDS = 10  # between values of CPU, memory and GPU
# Without calls after one that MLflow did not answer: each may take a connection timeout.
PAUSE_SECONDS = 30.0
TABLES = (
    "results.json",
    "retrieval_t2v.parquet",
    "entities.parquet",
    "left_out.parquet",
    "rejects.parquet",
    "qa.parquet",
)
KIND = {"mlflow.experimentKind": "custom_model_development"}
VIEW = "alpro"  # of MLflow's table and charts of runs, by its key in addresses
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# The headline scores: as the columns, and as the first section of charts, of the metrics whose
# names have no slash.
SECTION = {"uuid": "scores", "name": "Model metrics", "display": True, "isReordered": True}
SHOWN: dict[str, Any] = {
    "compareRunSections": [SECTION],
    "compareRunCharts": [],
    "isAccordionReordered": True,
    "selectedColumns": ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in HEADLINES)],
}
CHANGED_COLUMNS = 8  # of values that runs changed, in that table
NOTE = "mlflow.note.content"  # the description of a run, in Markdown
# MLflow's pages of runs, not of traces of chats; with the charts of the headline scores beside the
# runs' names. In the table, the first visit shows one score: an assistant covers the others.
WORKFLOW = "workflowType=machine_learning"
PAGES = f"{WORKFLOW}&compareRunsMode=CHART"
Artifacts = list[tuple[Path, Record]]  # folders with their records


class Tracker:
    """Logs to one experiment of one MLflow store. Runs are named by their ids; an empty id is a run
    that MLflow does not have, of which nothing is logged."""

    def __init__(self, client: MlflowClient, experiment: str, uri: str, name: str = ""):
        self.client = client
        self.experiment = experiment
        self.uri = uri
        self.name = name
        self.warned = False
        self.paused_until = 0.0
        self.lock = threading.RLock()  # stages log side by side

    @classmethod
    def open(cls, uri: str, workspace: Path, experiment: str) -> "Tracker":
        """The store at `uri`, or, if it is empty, the SQLite file of a workspace, an absolute path.
        Creates the experiment if it does not exist. Raises InputError, also for an experiment that
        was deleted: MLflow would take no run of it."""
        local = not uri
        uri = uri or f"sqlite:///{workspace / 'mlflow.db'}"
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        # The workspace, and the store in it, may have been copied or moved.
        if local:
            relocate(workspace)

        try:
            with created(database, workspace):
                client = MlflowClient(uri)
                existing = client.get_experiment_by_name(experiment)
                if existing is None:
                    location = (workspace / "mlflow" / experiment).resolve().as_uri()
                    # A server decides itself where it keeps its files.
                    identity = client.create_experiment(
                        experiment, location if database else None, KIND
                    )
                else:
                    identity = existing.experiment_id
                    check_experiment(existing, uri)

                # Set once, because `show_columns` adds to it.
                if existing is None or VIEW_TAG not in existing.tags:
                    client.set_experiment_tag(identity, VIEW_TAG, json.dumps(SHOWN))
        except InputError:  # it says what to do
            raise
        except Exception as error:
            # Of MLflow, SQLAlchemy, alembic: a corrupt file, a server that is not there.
            raise unusable(uri, error) from error

        return cls(client, identity, uri, experiment)

    @contextmanager
    def run(
        self, name: str, params: dict[str, Any], tags: dict[str, str], parent: str = ""
    ) -> Iterator[str]:
        """A run for the time of the body, nested in `parent` if there is one: its id. It ends as
        the body does: FINISHED, FAILED or KILLED."""
        tags = common_tags() | tags
        if parent:
            tags["mlflow.parentRunId"] = parent

        created_run = self._call(
            lambda: self.client.create_run(self.experiment, run_name=name, tags=tags)
        )
        # Without an answer there is no run, and what is logged for an empty id goes nowhere.
        run = created_run.info.run_id if created_run else ""

        # MLflow accepts at most a hundred parameters in a call, of at most 6,000 characters each.
        flat = [Param(key, str(value)[:6000]) for key, value in flatten(params).items()]

        status = "FINISHED"
        try:
            for start in range(0, len(flat), 100):
                self._log(run, "log_batch", params=flat[start : start + 100])
            yield run
        # Also KeyboardInterrupt and SystemExit: such a run ends as KILLED.
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            self._log(run, "set_terminated", status)

    @contextmanager
    def stage_run(
        self, about: Record, folder: Path, parent: str = "", tags: dict[str, str] | None = None
    ) -> Iterator[str]:
        """The run of a stage for the time of the body, nested in `parent`. Logs its metrics while
        the stage writes them, with those of the machine if it trains, and its artifact if the body
        leaves a finished one in `folder`.

        about: the record of the artifact, or what is known of it before.
        """
        with self._described(about, folder, parent, tags or {}) as run:
            with self._followed(run, folder), self._monitored(run, about.stage):
                yield run
            record = read_record(folder)
            if record:
                self._result(run, folder, record)

    def log_artifact(self, folder: Path, record: Record) -> str:
        """Logs all of a finished artifact as a run of its stage. Returns the run's id."""
        with self._described(record, folder, "", {}) as run:
            with self._followed(run, folder):
                pass  # its metrics are all there
            self._result(run, folder, record)
        return run

    @contextmanager
    def _described(
        self, about: Record, folder: Path, parent: str, tags: dict[str, str]
    ) -> Iterator[str]:
        """The run of a stage, with its parameters, tags and data sets."""
        known = {"stage": about.stage, "fingerprint": about.fingerprint}
        # Of an artifact that is logged again, the commit that built it.
        if about.run.get("commit"):
            known |= commit_tags(about.run["commit"])
        with self.run(stage_title(about), params_of(about), known | tags, parent) as run:
            datasets = datasets_of(folder, about)
            if datasets:
                self._log(run, "log_inputs", datasets=datasets)
            yield run

    @contextmanager
    def _monitored(self, run: str, stage: str) -> Iterator[None]:
        """Logs how busy the machine is during a training: CPU, memory, disk, network and GPUs. One
        that takes less than `SYSTEM_SECONDS` has no values."""
        if not run or STAGES[stage] != "training":
            yield
            return

        monitor = SystemMetricsMonitor(run, SYSTEM_SECONDS, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_pipeline(
        self, run: str, artifacts: Artifacts, files: list[Path], description: str
    ) -> None:
        """Logs to the run of a pipeline what its stages have reached, its corpora, files and a
        description in Markdown. MLflow's pages start with the metric that is logged first, and a
        comparison plots it: the headline scores."""
        scores = dict[str, float]()
        training = dict[str, float]()
        for _, record in artifacts:
            if record.stage in EVALUATIONS:
                scores |= record.metrics
            else:
                # A slash keeps a name out of the section of the headline scores (SECTION).
                prefix = f"training/{record.stage}"
                training |= {f"{prefix}/{key}": value for key, value in record.metrics.items()}
        self.log_metrics(run, rounded(headlines(scores) | scores) | training)

        corpora = [one for folder, record in artifacts for one in datasets_of(folder, record)]
        if corpora:
            self._log(run, "log_inputs", datasets=distinct(corpora))

        for file in files:
            self._log(run, "log_artifact", str(file))
        self._log(run, "set_tag", NOTE, description)

    def show_columns(self, keys: list[str]) -> None:
        """Adds parameters, the values that a run changes, to the columns of the page that lists the
        runs."""
        wanted = [f"params.`{key}`" for key in keys]
        found = self._call(lambda: self.client.get_experiment(self.experiment))
        if not found or not wanted:
            return

        view = json.loads(found.tags.get(VIEW_TAG) or json.dumps(SHOWN))
        others = [column for column in view["selectedColumns"] if column not in wanted]
        changed = [*wanted, *(column for column in others if column.startswith("params."))]
        scores = [column for column in others if not column.startswith("params.")]
        # The newest changes come first, and the oldest lose their column.
        view["selectedColumns"] = changed[:CHANGED_COLUMNS] + scores

        self._call(
            lambda: self.client.set_experiment_tag(self.experiment, VIEW_TAG, json.dumps(view))
        )

    def page(self, run: str) -> str:
        """Where MLflow's server shows a run, relative to the server's address: a link of its own
        pages, which works whatever the address is."""
        return f"#/experiments/{self.experiment}/runs/{run}"

    def address(self, run: str, file: str = "", server: str = "") -> str:
        """Where a server shows a run, or one of its files; empty without a server. server: by
        default the store, if that is one."""
        server = server or self.uri
        if not run or not server.startswith("http"):
            return ""
        page = f"{server.rstrip('/')}/{self.page(run)}"
        # Without the query, MLflow takes whoever comes from another page to those of chats.
        return f"{page}/artifacts/{quote(file)}?{WORKFLOW}" if file else f"{page}?{WORKFLOW}"

    def logged_model(self, fingerprint: str) -> str:
        """The id of the newest logged model of an artifact; empty if the store has none."""
        query = f"tags.fingerprint = '{fingerprint}'"
        # A training and its evaluation may be in different experiments.
        everywhere = self._call(
            lambda: [one.experiment_id for one in self.client.search_experiments()]
        )

        models = self._call(
            lambda: self.client.search_logged_models(everywhere, query, max_results=1)
        )
        return models[0].model_id if models else ""

    @contextmanager
    def _followed(self, run: str, folder: Path) -> Iterator[None]:
        """Logs the lines of metrics.jsonl as they are written, from a thread, and the last ones at
        the end."""
        done = threading.Event()
        last = -1  # step that MLflow has

        def read() -> None:
            nonlocal last
            lines = read_metrics(folder / "metrics.jsonl")
            ready = [line for line in lines if line["step"] > last]
            # Several lines may share a step (training, validation): the newest step waits for its
            # last line.
            if not done.is_set():
                ready = [line for line in ready if line["step"] < lines[-1]["step"]]

            metrics = [
                # MLflow's times are in milliseconds.
                Metric(metric_name(key), value, int(line["time"] * 1000), line["step"])
                for line in ready
                for key, value in line.items()
                if key not in ("step", "time")
            ]
            if ready and self._send(run, metrics):  # after an outage, all lines since
                last = ready[-1]["step"]

        def loop() -> None:
            while not done.wait(FOLLOW_SECONDS):
                read()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            # The newest step is complete now. The thread ends first: it writes `last`, too.
            done.set()
            thread.join()
            read()

    def _result(self, run: str, folder: Path, record: Record) -> None:
        """Logs what a person looks at of an artifact: its record, numbers, pictures, and the first
        rows of its tables; its model, or its scores of the models that it evaluates."""
        stage = record.stage
        lines = read_metrics(folder / "metrics.jsonl")
        # The numbers of an artifact are those of its last step.
        step = lines[-1]["step"] if lines else 0

        numbers = dict(record.metrics)
        if stage in EVALUATIONS:
            short = rounded(headlines(numbers))
            self._scores(run, record, short, step)
            # MLflow's pages start with what is logged first.
            numbers = short | rounded(numbers)
        else:
            if STAGES[stage] == "training" and (folder / "model").is_dir():
                model = self._model(run, folder, record, step)
                validated = [key for key in VALIDATION_SCORES if key in numbers]
                self.log_metrics(run, {key: numbers[key] for key in validated[:1]}, step, model)
            numbers |= {f"counts/{name}": float(count) for name, count in record.counts.items()}
        numbers["seconds"] = record.run.get("seconds", 0.0)
        self.log_metrics(run, numbers, step)

        self._log(run, "log_artifact", str(folder / "artifact.json"))
        for picture in sorted(folder.glob("pictures/*.png")):
            self._log(run, "log_artifact", str(picture), "pictures")
        for name in TABLES:
            if (folder / name).is_file():
                shown = f"tables/{Path(name).stem}.json"
                self._log(run, "log_table", read_table(folder / name), shown)

    def _model(self, run: str, folder: Path, record: Record, step: int) -> str:
        """Logs a model that stays in its folder as the output of its run: MLflow lists it, and has
        no copy of it."""
        if not run:
            return ""

        tags = {
            "mlflow.model.isExternal": "true",
            "path": str(folder / "model"),
            "fingerprint": record.fingerprint,
        }
        params = {key: str(value)[:500] for key, value in flatten(params_of(record)).items()}
        title = f"{record.fingerprint[:8]} {record.stage} · {self.name}"
        name = re.sub(r"[/:.%\"']", "_", title)  # MLflow's names of models have none of these

        def create() -> str:
            logged = self.client.create_logged_model(
                self.experiment, name, run, tags, params, "ALPRO"
            )
            self.client.finalize_logged_model(logged.model_id, "READY")
            self.client.log_outputs(run, [LoggedModelOutput(logged.model_id, step)])
            return logged.model_id

        return self._call(create) or ""

    def _scores(self, run: str, record: Record, scores: dict[str, float], step: int) -> None:
        """Logs the headline scores of an evaluation with the models that they are of: MLflow's
        table of models sorts by them."""
        inputs = record.inputs
        models = set[str]()
        for short, value in scores.items():
            source = inputs.get(MODEL_OF_HEADLINE[short])
            model = self.logged_model(source.fingerprint) if source else ""
            # Its training was logged to another store, or to none.
            if not model:
                continue

            models.add(model)
            corpus = record.config.get("qa" if short == "QA" else "retrieval", "")
            digest = inputs[corpus].fingerprint[:16] if corpus in inputs else ""
            self.log_metrics(run, {short: value}, step, model, corpus, digest)

        if models:
            self._log(run, "log_inputs", models=[LoggedModelInput(model) for model in models])

    def log_metrics(
        self,
        run: str,
        values: dict[str, float],
        step: int = 0,
        model: str = "",
        corpus: str = "",
        digest: str = "",
    ) -> None:
        """Logs values of a step; `model`, `corpus` and its `digest`: what they are of."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(
                metric_name(key),
                value,
                timestamp=now,
                step=step,
                model_id=model or None,
                dataset_name=corpus or None,
                dataset_digest=digest or None,
            )
            for key, value in values.items()
        ]
        self._send(run, metrics)

    def _send(self, run: str, metrics: list[Metric]) -> bool:
        """Logs metrics. Returns whether MLflow took them all."""
        # MLflow takes at most 1,000 metrics in a call. After a part that fails, no other is sent.
        parts = [metrics[start : start + 1000] for start in range(0, len(metrics), 1000)]
        return all(self._log(run, "log_batch", metrics=part) for part in parts)

    def _log(self, run: str, method: str, *args: Any, **values: Any) -> bool:
        """Calls a method of the client for a run. Returns whether MLflow took it."""
        if not run:
            return False
        # Most methods return None when they succeed, as `_call` does when they fail.
        taken = self._call(lambda: getattr(self.client, method)(run, *args, **values) or True)
        return taken is not None

    def _call(self, call: Callable[[], Any]) -> Any:
        """What a call to MLflow returns; None if it fails, or if MLflow did not answer a moment
        ago."""
        with self.lock:
            if time.monotonic() < self.paused_until:
                return None
            try:
                return call()
            except Exception as error:  # of MLflow, requests, or the client of a store of artifacts
                status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
                refused = status in (400, 404)  # this call only: the store works
                if not refused:
                    self.paused_until = time.monotonic() + PAUSE_SECONDS
                # An outage is reported once: every call fails while it lasts.
                if refused or not self.warned:
                    self.warned |= not refused
                    again = "`alpro artifacts log ARTIFACT` logs a finished stage again"
                    log.warning(
                        f"warning: MLflow store {self.uri} misses entries: {one_line(error)}; "
                        f"{again}"
                    )
                return None


@contextmanager
def created(database: Path | None, workspace: Path) -> Iterator[None]:
    """A lock on an SQLite store, which exists within: two pipelines that start at once would both
    create its tables. None: a server."""
    if database is None:
        yield
        return
    lock = FileLock(f"{database}.lock")
    acquire(lock)
    try:
        if not database.exists():
            create_store(database, workspace / "mlflow")
        yield
    finally:
        lock.release()


def check_experiment(experiment: Experiment, uri: str) -> None:
    """Raises InputError if an experiment was deleted."""
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        command = (
            f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {experiment.experiment_id}"
        )
        raise InputError(
            f"MLflow store {uri}: the experiment {experiment.name!r} was deleted, and takes no "
            f"runs; restore it "
            f"({command}), or choose another name: --set name=OTHER"
        )


def create_store(database: Path, files: Path) -> None:
    """Creates an SQLite store under another name, which is renamed: a store whose tables are not
    all there, because its process was killed or the disk is full, can never be opened again."""
    with atomic_write(database) as temporary:
        SqlAlchemyStore(f"sqlite:///{temporary}", files.resolve().as_uri()).engine.dispose()


def start_page(uri: str) -> str:
    """The path, in MLflow's server, of the page that lists the runs of the newest experiment; empty
    if there is none but MLflow's own. Raises InputError."""
    try:
        newest = MlflowClient(uri).search_experiments(
            order_by=["last_update_time DESC"], max_results=1, filter_string="name != 'Default'"
        )
    except Exception as error:
        raise unusable(uri, error) from error

    if not newest:
        return ""
    return f"/#/experiments/{newest[0].experiment_id}/runs?{PAGES}&viewStateShareKey={VIEW}"


def unusable(uri: str, error: Exception) -> InputError:
    return InputError(f"MLflow store {uri}: not usable: {one_line(error)}{advice_on(error)}")
