"""Runs of MLflow and tables of Prefect for a stage that ran or was cached."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext

from alpro.pipeline.reporting.report import metric_curves
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.stages import EVALUATIONS
from alpro.stages.artifacts.store import Interrupted, Step
from alpro.stages.execution.run import alive
from alpro.stages.training.metrics import read_metrics


@dataclass
class StageResult:
    """A step with its artifact: where it lies, its record, and whether it was there already."""

    step: Step
    folder: Path
    record: dict[str, Any]
    cached: bool


@contextmanager
def stage_run(tracker: Tracker, step: Step, folder: Path, parent: Run | None, tags: dict[str, str]) -> Iterator[Run]:
    """An MLflow run for the time a stage runs: follows its metrics, ends as the stage ends.

    An earlier run of this process is stale: this process holds the lock of the artifact. Other processes may run the
    same stage at the same time in another workspace, or on another machine.
    """
    end_dead_runs(tracker, {"fingerprint": step.fingerprint}, own=True)
    run = tracker.start(f"{step.name} · {step.fingerprint[:8]}", params(step), tags, parent)
    try:
        with tracker.follow(run, folder / "metrics.jsonl"):
            yield run
    except BaseException as error:
        tracker.end(run, status_after(error))
        raise


def status_after(error: BaseException) -> str:
    """The status of a run that an exception ended: KILLED if somebody stopped it, else FAILED."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit | Interrupted)
    stopped = stopped or type(error).__name__ in ("TerminationSignal", "Abort", "CancelledError")
    return "KILLED" if stopped else "FAILED"


def record_made(tracker: Tracker, made: StageResult, run: Run, parent: Run | None) -> None:
    """Logs an artifact's final metrics, pictures, tables and curves to its run, its metrics to the pipeline's."""
    lines = read_metrics(made.folder / "metrics.jsonl")
    tracker.metrics(run, numbers(made), last_step(lines))
    tracker.artifact_folder(run, made.folder)
    if (curves := metric_curves(lines, made.step.name)) is not None:
        tracker.figure(run, curves, "pictures/curves.png")
    if parent:
        tracker.metrics(parent, parent_numbers(made))
    tracker.end(run)
    rows = [{"metric": name, "value": round(value, 4)} for name, value in made.record["metrics"].items()]
    if rows:
        key = made.step.name.replace(" ", "-").replace("_", "-").lower()
        create_table_artifact(rows, key=key, description=f"{made.step.name}: {made.folder}")


def record_made_elsewhere(tracker: Tracker, made: StageResult, parent: Run | None, tags: dict[str, str]) -> None:
    """A run with everything of an artifact that a machine with an MLflow store of its own has made."""
    run = tracker.start(f"{made.step.name} · {made.step.fingerprint[:8]}", params(made.step), tags, parent)
    tracker.lines(run, read_metrics(made.folder / "metrics.jsonl"))
    record_made(tracker, made, run, parent)


def record_cached(tracker: Tracker, made: StageResult, parent: Run | None, tags: dict[str, str]) -> None:
    """A run that repeats the metrics of the run that made the artifact, and names it."""
    maker = made.record["made"]
    note = f"Cached: made {maker['at']} by MLflow run {maker.get('mlflow_run')}"
    more = {"cached": "true", "made_by_run": maker.get("mlflow_run", ""), "mlflow.note.content": note}
    run = tracker.start(
        f"{made.step.name} · {made.step.fingerprint[:8]} · cached", params(made.step), tags | more, parent
    )
    lines = read_metrics(made.folder / "metrics.jsonl")
    tracker.lines(run, lines)
    tracker.metrics(run, numbers(made), last_step(lines))
    if parent:
        tracker.metrics(parent, parent_numbers(made))
    tracker.end(run)


def params(step: Step) -> dict[str, Any]:
    return {step.stage: step.config.model_dump(mode="json")}


def last_step(lines: list[dict[str, Any]]) -> int:
    return lines[-1]["step"] if lines else 0


def numbers(made: StageResult) -> dict[str, float]:
    """The numbers of an artifact record: metrics, counts, seconds."""
    counts = {f"counts/{name}": float(value) for name, value in made.record["counts"].items()}
    counts = {} if made.step.stage in EVALUATIONS else counts
    return {**made.record["metrics"], **counts, "seconds": made.record["made"]["seconds"]}


def parent_numbers(made: StageResult) -> dict[str, float]:
    """A stage's metrics under names of their own in the pipeline's run; an evaluation's as they are."""
    prefix = "" if made.step.stage in EVALUATIONS else f"{made.step.stage}/"
    metrics = {f"{prefix}{name}": value for name, value in made.record["metrics"].items()}
    return metrics | {f"seconds/{made.step.name.replace(' ', '_')}": made.record["made"]["seconds"]}


def run_tags(commit: str, step: Step | None = None) -> dict[str, str]:
    """Where a run comes from: commit, Prefect's runs, machine and process; for a stage its fingerprint."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    found = {"commit": commit, "host": socket.gethostname(), "pid": str(os.getpid())}
    if flow and flow.flow_run:
        found["prefect_flow_run"] = str(flow.flow_run.id)
    if task:
        found["prefect_run"] = str(task.task_run.id)
    return found | ({"stage": step.stage, "fingerprint": step.fingerprint} if step else {})


def end_dead_runs(tracker: Tracker, tags: dict[str, str], own: bool = False) -> None:
    """Marks as killed the runs with these tags that are listed as running although their process on this machine is
    gone; with `own`, also those of this process. Whether a process of another machine lives is not known here."""

    def is_dead(found: dict[str, str]) -> bool:
        pid = int(found.get("pid", 0))
        return own if pid == os.getpid() else pid > 0 and not alive(pid)

    tracker.kill_stale({**tags, "host": socket.gethostname()}, is_dead)


def git_commit() -> str:
    """The commit of this code, with + where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
