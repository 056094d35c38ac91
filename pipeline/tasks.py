"""One stage as a Prefect task: look for the artifact, make it under a lock if it is missing, log to MLflow."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Completed, State

from alpro.errors import InputError
from alpro.pipeline.handover import Handover
from alpro.pipeline.launch import work
from alpro.pipeline.record import StageResult, record_cached, record_made, record_made_elsewhere, run_tags, stage_run
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.stages.artifacts.store import Interrupted, Resources, StageFailed, Step, Store


@dataclass
class Session:
    """One running pipeline: its artifacts, its MLflow runs, its resources."""

    store: Store
    tracker: Tracker
    parent: Run | None  # MLflow run of the pipeline; None if it is in a store of another machine
    resources: Resources
    commit: str
    experiment: str
    made: list[StageResult] = field(default_factory=list)

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each artifact, by the names of the steps."""
        return {made.step.name: str(made.folder) for made in self.made}


def interrupted(task: Any, run: Any, state: State) -> bool:
    """Whether a failed stage left a checkpoint to continue from, and so is worth another try."""
    return isinstance(getattr(state.data, "result", state.data), Interrupted)


@task(cache_policy=NO_CACHE, persist_result=False, retries=3, retry_condition_fn=interrupted, task_run_name="{title}")
def make(title: str, session: Session, step: Step) -> State | None:
    """Finds a step's artifact or builds it, and appends it to the session. If it exists, the state is Cached.

    Prefect is given the session and the step in quotes and gets neither back: in every object that it sees it looks for
    the results of other tasks, and would draw arrows from all earlier stages.
    """
    store, tracker = session.store, session.tracker
    folder, tags = store.folder(step), run_tags(session.commit, step)
    with store.lock(step) as lock:
        record = store.find(step)
        if record is None and (record := store.fetch(step)):
            announce(f"{step.name}: fetched from {store.shared}")
        if record is not None:
            share(store, step)
            found = StageResult(step, folder, record, cached=True)
            record_cached(tracker, found, session.parent, tags)
            session.made.append(found)
            announce(f"{step.name}: cached")
            return Completed(name="Cached", message=f"{folder} was made {record['made']['at']}")
        announce(f"{step.name}: started")
        with stage_run(tracker, step, folder, session.parent, tags) as run:
            about = {"commit": session.commit, "mlflow_run": run.id, "prefect_run": tags.get("prefect_run", "")}
            file = lock_number(lock)
            record = store.make(step, lambda s, out: work(s, out, store, session.resources, file, say()), about)
            made = StageResult(step, folder, record, cached=False)
            record_made(tracker, made, run, session.parent)
        share(store, step)
    session.made.append(made)
    announce(f"{step.name}: done in {record['made']['seconds']:.0f} s")
    return None


def share(store: Store, step: Step) -> None:
    """Sends an artifact to where other machines find it; hours of work do not fail with that."""
    if problem := store.share(step):
        announce(f"{step.name}: {problem}")


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def make_by_deployment(title: str, session: Session, step: Step, parameters: dict[str, Any]) -> None:
    """Runs a stage by its own deployment, in that deployment's work pool, and waits for the artifact.

    run_deployment does not raise if the run that it started fails, so its state is checked.
    """
    flow = step.stage.replace("_", "-")
    parent = session.parent.id if session.parent else ""
    handover = Handover.of(step, session.experiment, parent, session.resources)
    passed = {**parameters, "handover": handover.model_dump(mode="json")}
    ran = cast(FlowRun, run_deployment(f"{flow}/{flow}", parameters=passed, timeout=None))
    if ran.state is None or not ran.state.is_completed():
        message = ran.state.message if ran.state else "no state"
        raise StageFailed(f"deployment {flow}: run {ran.name} did not complete: {message}")
    record = find_or_fetch(session.store, step)
    if record is None:
        raise StageFailed(
            f"deployment {flow}: run {ran.name} completed, but {session.store.folder(step)} does not exist; "
            "the workers must share the workspace, or resources.artifacts"
        )
    made = StageResult(step, session.store.folder(step), record, cached=False)
    if not session.tracker.has_run(record["made"].get("mlflow_run", "")):
        record_made_elsewhere(session.tracker, made, session.parent, run_tags(session.commit, step))
    session.made.append(made)


def find_or_fetch(store: Store, step: Step) -> dict[str, Any] | None:
    """The record of a step's artifact, here or fetched from the shared place; None if it is in neither."""
    with store.lock(step):
        return store.find(step) or store.fetch(step)


def fetch_input(store: Store, step: Step) -> None:
    """Fetches an input that is not here. Raises InputError if it is not in the shared place either."""
    if find_or_fetch(store, step) is None:
        raise InputError(
            f"{step.name}: the pipeline has this artifact, but {store.folder(step)} does not exist; "
            "the workers must share the workspace, or resources.artifacts"
        )


def lock_number(lock: Any) -> int | None:
    """The open file of a lock, to be handed on to child processes."""
    return getattr(getattr(lock, "_context", None), "lock_file_fd", None)


def at_terminal() -> bool:
    """Whether a person called the command line, and no Prefect worker did."""
    return "ALPRO_COMMAND_LINE" in os.environ


def announce(text: str) -> None:
    """Prints progress to standard error for the command line, or logs it to Prefect."""
    if at_terminal():
        print(text, file=sys.stderr, flush=True)
    else:
        get_run_logger().info(text)


def say() -> Callable[[str], None] | None:
    """Where the output of a stage's process goes: None for this terminal, else line by line to Prefect's log."""
    if at_terminal():
        return None
    logger = get_run_logger()
    return lambda line: logger.info(line)
