"""Logging to MLflow: a run for each pipeline, a nested run for each stage, a logged model for each
model.

Stages write metrics.jsonl, tables and pictures into their folders and know nothing of MLflow. The
process that drives the pipeline follows those files while a stage runs, and logs the rest from the
artifact when it is done; processes of a training need no MLflow.

Only opening the store raises an error. After that, what MLflow does not take is left out, with one
warning: `alpro artifacts log` logs an artifact again. MLflow's fluent API has one active run per
process and stages run side by side, so each call names its run.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import mlflow_tags

from alpro.artifact import Artifact, Record, flatten, read_record
from alpro.errors import InputError, one_line
from alpro.log import log
from alpro.pipeline.store.runs import git_commit
from alpro.pipeline.tracking.contents import (
    clean_metric_name,
    describe_corpora,
    select_headlines,
    stage_title,
    status_after,
)
from alpro.pipeline.tracking.store import (
    FLOW_RUN,
    check_store,
    end_runs,
    open_experiment,
    store_uri,
)
from alpro.stages import EVALUATIONS, TRAININGS
from alpro.stages.training.metrics import read_metrics

METRICS = "metrics.jsonl"
# A read of the 50,000 lines of a long training takes half a second.
FOLLOW_SECONDS = 20.0
PAUSE_SECONDS = 30.0  # after a call without an answer
SYSTEM_SECONDS = 10  # between samples of CPU, memory and GPU
MAX_DESCRIPTION = 8000  # characters
FILES = ("artifact.json", "results.json", "pictures")  # and folders
TABLES = ("similarity_t2v", "entities", "rejects", "qa")  # Parquet files
MAX_TABLE_ROWS = 500


@dataclass
class Tracker:
    """Logs to one experiment of one MLflow store. Runs are named by their ids; an empty id is a run
    that MLflow does not have, of which nothing is logged."""

    client: MlflowClient
    experiment: str
    uri: str
    has_failed: bool = False  # so that a run warns only once
    paused_until: float = 0.0
    # Stages log side by side.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, uri: str, workspace: Path, experiment: str) -> "Tracker":
        """Open an experiment of the store at `uri`, by default the workspace's own.

        Args:
            workspace: Absolute path.

        Raises:
            InputError: If the store was made in another folder or does not work, or if the
                experiment was deleted.
        """
        if uri in ("", store_uri(workspace)):
            uri = check_store(workspace)
        return cls(*open_experiment(uri, workspace, experiment), uri)

    @contextmanager
    def run(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: dict[str, str],
        parent: str = "",
    ) -> Iterator[str]:
        """Open a run, nested in `parent` if there is one, for the time of the body.

        Yields its id. The run ends as the body does: FINISHED, FAILED or KILLED.
        """
        all_tags = {mlflow_tags.MLFLOW_GIT_COMMIT: git_commit()}
        if parent:
            all_tags[mlflow_tags.MLFLOW_PARENT_RUN_ID] = parent
        all_tags = resolve_tags(all_tags | tags)
        new_run = self._call(
            "create_run", self.experiment, run_name=name, tags=all_tags
        )
        # Without an answer there is no run: calls with an empty id are skipped.
        run = new_run.info.run_id if new_run else ""

        status = "FINISHED"
        try:
            values = [Param(key, str(value)) for key, value in flatten(params).items()]
            self._call("log_batch", run, params=values)
            yield run
        # KeyboardInterrupt and SystemExit end a run as KILLED.
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            self.paused_until = 0.0  # try, whatever happened to earlier calls
            self._call("set_terminated", run, status)

    @contextmanager
    def stage_run(
        self,
        record: Record,
        folder: Path,
        parent: str = "",
        tags: Mapping[str, str] = {},
    ) -> Iterator[str]:
        """Open the run of a stage for the time of the body.

        Logs its metrics while the stage writes them, and its artifact if the body leaves a
        finished one in `folder`.

        Args:
            record: Record of the artifact, or what is known before the stage runs. If it trains
                then, the load of the machine is logged.
        """
        all_tags = {
            "stage": record.stage,
            "fingerprint": record.fingerprint,
            # An artifact that is logged again keeps the commit that built it.
            mlflow_tags.MLFLOW_GIT_COMMIT: record.run.get("commit", git_commit()),
            **tags,
        }
        trains_now = record.stage in TRAININGS and not record.run
        with self.run(
            stage_title(record), {record.stage: record.config}, all_tags, parent
        ) as run:
            with self._followed(run, folder), ExitStack() as at_end:
                if run and trains_now:  # CPU, memory, disk, network and GPUs
                    monitor = SystemMetricsMonitor(
                        run, SYSTEM_SECONDS, tracking_uri=self.uri
                    )
                    monitor.start()
                    at_end.callback(monitor.finish)
                yield run
            result = read_record(folder)
            if result:
                try:
                    self._log_result(run, folder, result)
                except (OSError, ValueError) as error:  # the stage itself is finished
                    self._warn(error)

    def end_killed(self, fingerprint: str, workspace: Path) -> None:
        """End what MLflow shows as running of a stage that was killed, and of all of its run.

        Call it under the lock of the stage: nothing else builds it in this workspace. Another store than
        the workspace's own may have runs of other workspaces.
        """
        if self.uri != store_uri(workspace):
            return
        query = f"attributes.status = 'RUNNING' and tags.fingerprint = '{fingerprint}'"
        killed = self._call("search_runs", [self.experiment], query) or ()
        # A pipeline and its stages have the same run of Prefect.
        self.end_runs({run.data.tags.get(FLOW_RUN, "") for run in killed})

    def end_runs(self, flow_runs: Collection[str]) -> None:
        """End what MLflow shows as running of runs of Prefect, as KILLED."""
        try:
            end_runs(self.uri, flow_runs)
        except InputError as error:
            self._warn(error)

    def log_artifact(self, folder: Path, record: Record) -> str:
        """Log all of a finished artifact as a run of its stage. Returns the run's id."""
        with self.stage_run(record, folder) as run:
            return run

    def log_pipeline(
        self,
        run: str,
        artifacts: Sequence[Artifact],
        report: Path,
        figures: Mapping[str, Any],
        description: str,
    ) -> None:
        """Log to a pipeline's run what its stages reached, its corpora, report and description.

        MLflow's pages start with the metric that is logged first, and a comparison plots it: the
        headline scores.

        Args:
            figures: Figures of matplotlib by their names.
            description: Markdown, at most MAX_DESCRIPTION characters.
        """
        reached = dict[str, float]()
        for folder, record in artifacts:
            self._call("log_inputs", run, datasets=describe_corpora(folder, record))
            prefix = "" if record.stage in EVALUATIONS else f"training/{record.stage}/"
            for key, value in record.metrics.items():
                reached[prefix + key] = value
        self.log_metrics(run, select_headlines(reached) | reached)

        self._call("log_artifact", run, str(report))
        for name, figure in figures.items():
            self._call("log_figure", run, figure, name)
        self._call("set_tag", run, mlflow_tags.MLFLOW_RUN_NOTE, description)

    def logged_model(self, fingerprint: str) -> str:
        """Return the id of the newest logged model of an artifact; empty if the store has none."""
        query = f"tags.fingerprint = '{fingerprint}'"
        # A training and its evaluation may be in different experiments.
        listed = self._call("search_experiments") or ()
        experiments = [one.experiment_id for one in listed]
        models = self._call("search_logged_models", experiments, query, max_results=1)
        return models[0].model_id if models else ""

    def log_metrics(
        self,
        run: str,
        values: Mapping[str, float],
        step: int = 0,
        model: str | None = None,
    ) -> None:
        """Log values of a step, and with the logged model that reached them, if it is given."""
        metrics = make_metrics(values, step, time.time(), model)
        self._call("log_batch", run, metrics=metrics)

    @contextmanager
    def _followed(self, run: str, folder: Path) -> Iterator[None]:
        """Log the lines of metrics.jsonl while they are written, from a thread, and the last ones
        at the end."""
        done = threading.Event()

        def follow() -> None:
            logged = 0  # lines
            ended = False
            while not ended:
                ended = done.wait(FOLLOW_SECONDS)
                if ended:
                    # A short outage while the stage ran costs no lines and no results.
                    self.paused_until = 0.0
                # A training that resumes has a shorter file, and writes the same lines again, which
                # MLflow has.
                lines = read_metrics(folder / METRICS)
                metrics: list[Metric] = []
                for line in lines[logged:]:
                    step = line.pop("step")
                    seconds = line.pop("time")
                    metrics += make_metrics(line, step, seconds)
                # Without an answer they are sent again. What MLflow refuses would be refused again.
                if (
                    metrics
                    and self._call("log_batch", run, metrics=metrics) is not None
                ):
                    logged = len(lines)

        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(follow)
            try:
                yield
            finally:
                done.set()
                following.result()

    def _log_result(self, run: str, folder: Path, record: Record) -> None:
        """Log a finished artifact: its numbers, corpora and files, the first rows of its tables;
        and its model, or the scores of the model that it evaluates."""
        # MLflow shows the values of the last step: also if earlier weights are the result, its metrics
        # are those.
        step = record.counts.get("steps", 0)
        model = ""
        used = []
        if record.stage in EVALUATIONS and "model" in record.inputs:
            # Its training may be in another store, or in none.
            model = self.logged_model(record.inputs["model"].fingerprint)
            used = [LoggedModelInput(model)] if model else []
        elif record.stage in TRAININGS and (folder / "model").is_dir():
            model = self._log_model(run, folder, record, step)
        # MLflow's pages begin with the metrics that are logged first. Its table of models sorts by
        # those of a model.
        scores = select_headlines(record.metrics)
        self.log_metrics(run, scores, step, model or None)
        self.log_metrics(run, record.metrics, step)

        datasets = describe_corpora(folder, record)
        self._call("log_inputs", run, datasets=datasets, models=used)

        for path in map(folder.joinpath, FILES):
            if path.exists():
                self._call("log_artifact", run, str(path))
        for name in TABLES:
            file = folder / f"{name}.parquet"
            if file.is_file():
                rows = pd.read_parquet(file).head(MAX_TABLE_ROWS)
                self._call("log_table", run, rows, f"tables/{name}.json")

    def _log_model(self, run: str, folder: Path, record: Record, step: int) -> str:
        """Log a model that stays in its folder as the output of its run. Returns its id; empty if
        MLflow did not take it."""
        tags = {
            mlflow_tags.MLFLOW_MODEL_IS_EXTERNAL: "true",
            "path": str(folder / "model"),
            "fingerprint": record.fingerprint,
        }
        model = run and self._call(
            "create_logged_model",
            self.experiment,
            stage_title(record),
            run,
            tags,
            model_type="ALPRO",
        )
        if not model:
            return ""
        self._call("finalize_logged_model", model.model_id, "READY")
        self._call("log_outputs", run, [LoggedModelOutput(model.model_id, step)])
        return model.model_id

    def _call(self, method: str, *args: Any, **values: Any) -> Any:
        """Call a method of the client, unless the run of the first argument does not exist, or MLflow
        did not answer a moment ago.

        Returns:
            What the method returns, or True. None if it was not called or not answered; False if
            MLflow refused the call, which it would do again.
        """
        with self.lock:
            if args[:1] == ("",) or time.monotonic() < self.paused_until:
                return None
            try:
                answer = getattr(self.client, method)(*args, **values)
                return True if answer is None else answer
            # MLflow, requests and SQLAlchemy raise their own.
            except Exception as error:
                self._warn(error)
                if isinstance(error, MlflowException) and (
                    error.get_http_status_code() in (400, 404)
                ):
                    return False
                # Each further call may block until its timeout.
                self.paused_until = time.monotonic() + PAUSE_SECONDS
                return None

    def _warn(self, error: Exception) -> None:
        if not self.has_failed:
            log.warning(
                f"MLflow store {self.uri} misses entries: {one_line(error)}; "
                "`alpro artifacts log ARTIFACT` logs a finished stage again"
            )
        self.has_failed = True


def make_metrics(
    values: Mapping[str, float], step: int, seconds: float, model: str | None = None
) -> list[Metric]:
    """Return values of a step, at a time in seconds, as metrics of a run and a logged model."""
    milliseconds = int(seconds * 1000)
    return [
        Metric(clean_metric_name(key), value, milliseconds, step, model_id=model)
        for key, value in values.items()
    ]
