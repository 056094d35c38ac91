"""One stage as a Prefect task: look for the artifact, build it under a lock if it is missing, log to MLflow."""

import os
import time
from collections.abc import Callable
from typing import Any, cast

from httpx import HTTPError
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Completed, Failed, State

from alpro.errors import InputError
from alpro.log import log
from alpro.pipeline.execution.launch import run_stage
from alpro.pipeline.flows.pages import about_run, artifact_key, link_to_mlflow, show_metrics
from alpro.pipeline.flows.session import Session
from alpro.pipeline.plan.step import Step
from alpro.pipeline.reports.summary import first_line
from alpro.pipeline.store.artifacts import Store, lock_number
from alpro.pipeline.tracking.stage_runs import (
    StageResult,
    log_cached,
    log_corpora,
    log_remote_result,
    log_result,
    run_tags,
    stage_run,
    step_title,
)
from alpro.shards.storage import DISK_FULL
from alpro.stages import WITH_MODEL
from alpro.stages.execution.interface import Interrupted, StageFailed, Stopped
from alpro.stages.execution.stop import STOP

POLL_SECONDS = 3.0  # between looks at the state of a deployment's run
CANCEL_TRIES = 10  # if Prefect's server does not answer
VALIDATED = {
    "validation/vtc/t2v/R1": "validation R@1",
    "validation/t2v/R1": "validation R@1",
    "validation/qa/acc": "validation accuracy",
}
PEM = "validation/pem/acc"
RETRY_SECONDS = [5.0, 20.0]  # before a data stage runs again after a failure of a disk or a network


def interrupted(task: Any, run: Any, state: State) -> bool:
    """Whether a stage left a checkpoint to continue from, and so runs again at once."""
    error = error_of(state)
    return isinstance(error, Interrupted) and not isinstance(error, Stopped)


def transient(task: Any, run: Any, state: State) -> bool:
    """Whether a stage that reads and writes files may succeed if it runs again soon: a network or its disk failed."""
    error = error_of(state)
    lasting = isinstance(error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError)
    return isinstance(error, OSError) and not lasting and error.errno not in DISK_FULL


def error_of(state: State) -> Any:
    return getattr(state.data, "result", state.data)


@task(cache_policy=NO_CACHE, persist_result=False, retries=3, retry_condition_fn=interrupted, task_run_name="{title}")
def make(title: str, session: Session, step: Step) -> State | None:
    """Finds a step's artifact or builds it, and appends it to the session.

    The state is Completed, or Cached if the artifact exists; Interrupted if the stage left a checkpoint, from which
    the next run continues; Failed with one line for an error that is not a bug. Prefect receives the session and the
    step in quotes and no result: it searches every object that it sees for the results of other tasks, and would draw
    arrows from all earlier stages.
    """
    try:
        return find_or_build(session, step)
    except (InputError, StageFailed, Interrupted, OSError) as error:
        return failed(error)


# For stages that run in this process.
make_data = make.with_options(retries=2, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=transient)


def failed(error: Exception) -> State:
    """The state of a task whose stage ended with an error that is not a bug. Its message is one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Interrupted):
        return Failed(name="Interrupted", message=f"{line}; the next run continues", data=error)
    return Failed(message=line, data=error)


def find_or_build(session: Session, step: Step) -> State | None:
    """Finds a step's artifact, or builds it. Returns a state of its own if it exists."""
    store, tracker, number = session.store, session.tracker, session.progress.get(step.name, "")
    folder, tags = store.folder(step), about_run(run_tags(session.commit, step))
    with store.lock(step, announce) as lock:
        log.debug(f"{step.name}: {folder}")
        record = store.find(step)
        if record is not None:
            result = StageResult(step, folder, record, cached=True)
            log_cached(tracker, result, session.parent, tags, store)
            append(session, result)
            announce(f"{number}{step.name}: cached")
            return Completed(name="Cached", message=f"{folder} is of {record['run']['at']}")
        announce(f"{number}{step.name}: started")
        with stage_run(tracker, step, folder, session.parent, tags) as run:
            link_to_mlflow(tracker, run, f"{artifact_key(step.name)}-mlflow")
            log_corpora(tracker, run, store, step)
            about = {"commit": session.commit, "mlflow_run": run.id, "prefect_run": tags.get("prefect_run", "")}
            file = lock_number(lock)
            record = store.make(
                step,
                lambda s, out: run_stage(s, out, store, session.resources, file, say(), session.threads.get(s.name, 0)),
                {**about, "arguments": session.arguments},
            )
            result = StageResult(step, folder, record, cached=False)
            log_result(tracker, result, run, session.parent)
        append(session, result)
    announce(done_line(step, record))
    return None


def done_line(step: Step, record: dict[str, Any]) -> str:
    """How long a stage took, and its score on the validation split, if it has one."""
    scores = [f", {name} {record['metrics'][key]:.1f} %" for key, name in VALIDATED.items() if key in record["metrics"]]
    scores = [*scores[:1], *([f", PEM accuracy {record['metrics'][PEM]:.1f} %"] if PEM in record["metrics"] else [])]
    return f"{step.name}: done in {record['run']['seconds']:.0f} s{''.join(scores)}"


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def make_by_deployment(title: str, session: Session, step: Step) -> State | None:
    """Runs a step by a deployment of `step`, in the work pool of its stage, and waits for the artifact. The states are
    those of `make`."""
    try:
        build_by_deployment(session, step)
    except (InputError, StageFailed, Interrupted) as error:
        return failed(error)
    return None


def append(session: Session, result: StageResult) -> None:
    """Appends a result to the session, and shows its metrics on Prefect's page. A page that cannot be written to does
    not fail a finished stage."""
    session.results.append(result)
    try:
        show_metrics(result.step.name, result.folder, result.record["metrics"])
    except Exception as error:  # of Prefect's client
        announce(f"{result.step.name}: Prefect's page has no table of its metrics: {first_line(error)}")


def build_by_deployment(session: Session, step: Step) -> None:
    pool, number = "gpu" if step.stage in WITH_MODEL else "cpu", session.progress.get(step.name, "")
    about = {"name": step.name, "fingerprint": step.fingerprint, "parent_run": session.run.id}
    submitted = cast(
        FlowRun,
        run_deployment(
            f"step/{pool}",
            parameters={**(session.passed or {}), **about},
            timeout=0,
            flow_run_name=step_title(step),
            tags=[session.experiment],
        ),
    )
    announce(f"{number}{step.name}: waits for a worker of the pool {pool} or runs there, as {submitted.name}")
    state = wait_for_run(submitted)
    if not state.is_completed():
        raise StageFailed(f"deployment step/{pool}: run {submitted.name} did not complete: {state.message}")
    record = session.store.find(step)
    if record is None:
        raise StageFailed(
            f"deployment step/{pool}: run {submitted.name} completed, but {session.store.folder(step)} does not exist; "
            "the workers must share the workspace"
        )
    result = StageResult(step, session.store.folder(step), record, cached=False)
    # The worker that built it may log to an MLflow store of its own machine, where this one's users do not look.
    if not session.tracker.has_run(record["run"].get("mlflow_run", "")):
        log_remote_result(
            session.tracker, result, session.parent, about_run(run_tags(session.commit, step)), session.store
        )
        append(session, result)
    else:  # the deployment has shown the metrics on its page
        session.results.append(result)
    announce(done_line(step, record))


def wait_for_run(run: FlowRun) -> State:
    """Waits for the end of a deployment's run and returns its state. Cancels the run if the pipeline stops. If the
    server does not answer, the run continues, and so does the waiting. Raises StageFailed if the run is deleted."""
    state, unreachable = None, False
    # Not `run_deployment(timeout=None)`: it does not wake up when the pipeline stops, and one request that fails while
    # the server restarts would end days of waiting.
    with get_client(sync_client=True) as client:
        while True:
            try:
                state, unreachable = client.read_flow_run(run.id).state, False
            except ObjectNotFound:
                raise StageFailed(f"run {run.name} was deleted") from None
            except HTTPError as error:
                if not unreachable:
                    announce(f"Prefect's server does not answer ({type(error).__name__}); {run.name} continues")
                unreachable = True
            # A worker that ends leaves its run as AwaitingRetry, which is not final: the next worker continues it.
            if state and state.is_final():
                return state
            try:
                STOP.get().wait(POLL_SECONDS)
            except Stopped:
                cancel(client, run)
                raise


def cancel(client: SyncPrefectClient, run: FlowRun) -> None:
    """Cancels a deployment's run. If the server does not answer for some time, says how to do it by hand."""
    for _ in range(CANCEL_TRIES):
        try:
            state = client.read_flow_run(run.id).state
            started = state and (state.is_running() or state.is_pending())
            client.set_flow_run_state(run.id, Cancelling() if started else Cancelled())
            return
        except ObjectNotFound:
            return
        except HTTPError:
            time.sleep(POLL_SECONDS)
    announce(f"Prefect's server does not answer; {run.name} continues: prefect flow-run cancel {run.id} ends it")


def check_input(store: Store, step: Step) -> None:
    """Raises InputError if an input does not exist."""
    if store.find(step) is None:
        raise InputError(
            f"{step.name}: the pipeline has this artifact, but {store.folder(step)} does not exist; "
            "the workers must share the workspace"
        )


def at_terminal() -> bool:
    """Whether a person called the command line, and no Prefect worker did."""
    return "ALPRO_COMMAND_LINE" in os.environ


def announce(text: str) -> None:
    """Prints progress to standard error for the command line, or logs it to Prefect."""
    (say() or log.info)(text)


def say() -> Callable[[str], None] | None:
    """Where the output of a stage's process goes: None for this terminal, else line by line to Prefect's log."""
    return None if at_terminal() else get_run_logger().info
