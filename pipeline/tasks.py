"""One stage as a Prefect task: look for the artifact, make it under a lock where it is missing, tell MLflow."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.states import Completed, State

from pipeline.launch import Interrupted, work
from stages.artifacts import Resources, Step, Store
from stages.report import metric_curves
from stages.tracking import Tracker
from stages.training.metrics import read_metrics


@dataclass
class Made:
    """A step with its artifact: where it lies, its manifest, and whether it was there already."""

    step: Step
    folder: Path
    manifest: dict[str, Any]
    cached: bool


@dataclass
class Session:
    """One running pipeline: its artifacts, its MLflow runs, its resources."""

    store: Store
    tracker: Tracker
    parent: str  # MLflow run of the pipeline
    resources: Resources
    commit: str
    made: list[Made] = field(default_factory=list)


def interrupted(task: Any, run: Any, state: State) -> bool:
    """Whether a failed stage left a checkpoint to continue from, and so is worth another try."""
    return isinstance(state.data, Interrupted) or isinstance(getattr(state.data, "exception", None), Interrupted)


@task(cache_policy=NO_CACHE, persist_result=False, retries=3, retry_condition_fn=interrupted, task_run_name="{title}")
def make(title: str, session: Session, step: Step) -> Made | State:
    """Finds a step's artifact or makes it. A found one ends as the state Cached."""
    store, tracker = session.store, session.tracker
    waited = time.monotonic()
    with store.lock(step) as lock:
        if (manifest := store.find(step)) is not None:
            found = Made(step, store.folder(step), manifest, cached=True)
            record_cached(session, found)
            return Completed(name="Cached", message=f"{found.folder} was made {manifest['made']['at']}", data=found)
        if time.monotonic() - waited > 5:
            get_run_logger().info("%s: waited for another run of the same fingerprint, which made nothing", step.name)
        run = tracker.start(
            f"{step.name} · {step.fingerprint[:8]}",
            {step.stage: step.config.model_dump(mode="json")},
            tags(session, step),
            session.parent,
        )
        with ended(tracker, run), tracker.follow(run, store.folder(step) / "metrics.jsonl"):
            made = {"commit": session.commit, "mlflow_run": run, "prefect_run": prefect_run()}
            manifest = store.make(
                step, lambda s, out: work(s, out, store, session.resources, lock_number(lock), say()), made
            )
    made_now = Made(step, store.folder(step), manifest, cached=False)
    record_made(session, made_now, run)
    return made_now


def result(returned: Made | State) -> Made:
    """What `make` made: a task that ends in a state of its own choice gives its caller that state."""
    return returned if isinstance(returned, Made) else returned.result(raise_on_failure=True)


@contextmanager
def ended(tracker: Tracker, run: str):
    """Ends an MLflow run as the body ends."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        tracker.end(run, "KILLED")
        raise
    except BaseException as error:
        stopped = type(error).__name__ in ("TerminationSignal", "Abort", "CancelledError")
        tracker.end(run, "KILLED" if stopped or isinstance(error, Interrupted) else "FAILED")
        raise
    tracker.end(run)


def tags(session: Session, step: Step) -> dict[str, str]:
    found = {
        "stage": step.stage,
        "fingerprint": step.fingerprint,
        "commit": session.commit,
        "prefect_run": prefect_run(),
    }
    return found | {"prefect_flow_run": prefect_flow_run()}


def record_made(session: Session, made: Made, run: str) -> None:
    """Logs an artifact's final metrics, pictures, tables and curves to its run, and its metrics to the pipeline's."""
    tracker = session.tracker
    tracker.metrics(run, final_metrics(made))
    tracker.artifact_folder(run, made.folder)
    if (curves := metric_curves(read_metrics(made.folder / "metrics.jsonl"), made.step.name)) is not None:
        tracker.figure(run, curves, "pictures/curves.png")
    tracker.metrics(session.parent, parent_metrics(made))
    show_in_prefect(made)


def record_cached(session: Session, made: Made) -> None:
    """A run that repeats the metrics of the run that made the artifact, and names it."""
    tracker, maker = session.tracker, made.manifest["made"]
    note = f"Cached: made {maker['at']} by MLflow run {maker.get('mlflow_run')}"
    more = {"cached": "true", "made_by_run": maker.get("mlflow_run", ""), "mlflow.note.content": note}
    title = f"{made.step.name} · {made.step.fingerprint[:8]} · cached"
    run = tracker.start(
        title,
        {made.step.stage: made.step.config.model_dump(mode="json")},
        tags(session, made.step) | more,
        session.parent,
    )
    tracker.lines(run, read_metrics(made.folder / "metrics.jsonl"))
    tracker.metrics(run, final_metrics(made))
    tracker.metrics(session.parent, parent_metrics(made))
    tracker.end(run)


def final_metrics(made: Made) -> dict[str, float]:
    """What a manifest tells in numbers: metrics, counts, seconds."""
    counts = {f"counts/{name}": float(value) for name, value in made.manifest["counts"].items()}
    counts = {} if made.step.stage == "evaluate" else counts
    return {**made.manifest["metrics"], **counts, "seconds": made.manifest["made"]["seconds"]}


def parent_metrics(made: Made) -> dict[str, float]:
    """A stage's metrics under names of their own in the pipeline's run; evaluation's as they are."""
    plain = made.step.stage == "evaluate"
    metrics = {
        name if plain else f"{made.step.stage}/{name}": value
        for name, value in made.manifest["metrics"].items()
        if "decode/" not in name
    }
    return metrics | {f"seconds/{made.step.name.replace(' ', '_')}": made.manifest["made"]["seconds"]}


def show_in_prefect(made: Made) -> None:
    """The metrics as a table in Prefect's page of the run."""
    rows = [{"metric": name, "value": round(value, 4)} for name, value in made.manifest["metrics"].items()]
    if rows:
        create_table_artifact(
            rows,
            key=made.step.name.replace(" ", "-").replace("_", "-").lower(),
            description=f"{made.step.name}: {made.folder}",
        )


def make_by_deployment(session: Session, step: Step, parameters: dict[str, Any]) -> Made:
    """Has a stage's own deployment make the artifact, wherever its work pool runs, and waits for it.

    run_deployment does not raise when the run that it started fails, so its state is looked at.
    """
    flow = step.stage.replace("_", "-")
    passed = {**parameters, "parent_run": session.parent}
    ran = cast(FlowRun, run_deployment(f"{flow}/{flow}", parameters=passed, timeout=None))
    if ran.state is None or not ran.state.is_completed():
        said = ran.state.message if ran.state else "no state"
        raise RuntimeError(f"deployment {flow}: run {ran.name} did not complete: {said}")
    manifest = session.store.find(step)
    if manifest is None:
        raise RuntimeError(
            f"deployment {flow}: run {ran.name} completed, but {session.store.folder(step)} is not there; "
            "do the workers share the workspace?"
        )
    return Made(step, session.store.folder(step), manifest, cached=False)


def lock_number(lock: Any) -> int | None:
    """The open file of a lock, to be handed on to child processes."""
    return getattr(getattr(lock, "_context", None), "lock_file_fd", None)


def say() -> Callable[[str], None] | None:
    """Where the output of a stage's process goes: None for this terminal, else line by line to Prefect's log."""
    if sys.stderr.isatty() or os.environ.get("ALPRO_PLAIN_OUTPUT"):
        return None
    logger = get_run_logger()
    return lambda line: logger.info(line)


def prefect_run() -> str:
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return str(context.task_run.id) if context else ""


def prefect_flow_run() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def git_commit() -> str:
    """The commit of this code, with + where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
