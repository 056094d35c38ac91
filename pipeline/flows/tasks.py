"""A step of a pipeline as a Prefect task: it finds the artifact, or builds it under a lock, here or
by a deployment, and logs to MLflow."""

from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import Any

from filelock import FileLock
from httpx import HTTPError
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Failed

from alpro.artifact import Record
from alpro.errors import MAX_MESSAGE, one_line
from alpro.locks import lock_descriptor
from alpro.log import log
from alpro.pipeline.execution.processes import Launch, run_stage
from alpro.pipeline.flows.pipeline_run import (
    EXPECTED,
    PipelineRun,
    announce,
    get_log_sink,
)
from alpro.pipeline.plan.checks import check_decoded
from alpro.pipeline.tracking.contents import stage_title
from alpro.pipeline.tracking.store import FLOW_RUN
from alpro.stages import TRAININGS
from alpro.stages.evaluation.score_names import main_score
from alpro.stages.execution.interface import StageFailed
from alpro.stages.execution.step import Step

POLL_SECONDS = 3.0  # between looks at the state of a deployment's run
MAX_RETRIES = 10  # for a stage that dies, but each time with more finished work
RETRY_SECONDS = 5.0  # times the number of attempts, before the next one
# Environment variable of a deployment's run: the run in MLflow of its pipeline.
PARENT_RUN = "ALPRO_PARENT_RUN"
# A parameter would be searched for results of other tasks.
CURRENT_RUN: ContextVar[PipelineRun] = ContextVar("CURRENT_RUN")


def runs_again(task: Any, task_run: Any, state: State) -> bool:
    """Return, after a pause, whether a stage that died runs again: if it left more finished work than
    it began with, and the pipeline is not to stop."""
    # Prefect may wrap the data of a state in a record of a result.
    error = getattr(state.data, "result", state.data)
    if not (isinstance(error, StageFailed) and error.progressed):
        return False

    seconds = RETRY_SECONDS * task_run.run_count
    announce(f"{task.name} got further, and runs again in {seconds:.0f} s")
    # Prefect's own delay would not end at Ctrl-C.
    return not CURRENT_RUN.get().stopping.wait(seconds)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=MAX_RETRIES,
    retry_condition_fn=runs_again,
)
def step_task(index: int) -> State | None:
    """Find the artifact of a required step or build it, and add it to the results of the run.

    Returns:
        Prefect's state: Cached if the artifact exists, None for Completed, or Failed or Cancelled
        with one line for an error that is not a bug.
    """
    run = CURRENT_RUN.get()
    step = run.plan.required[index]
    run.failures.pop(step.name, None)  # an earlier attempt, which got further
    try:
        return find_or_build(run, step)
    except Exception as error:
        # What a corpus lacks fails each step that could begin now, and is announced once.
        is_announced = str(error) in map(str, run.failures.values())
        run.failures[step.name] = error
        if not isinstance(error, CancelledError):
            run.states[step.name] = "failed"
            if not is_announced:
                announce(f"failed: {error}")
        if not isinstance(error, EXPECTED):
            raise
        return get_failed_state(error)


def get_failed_state(error: BaseException) -> State:
    """Return the state of a run or a task that ended by an error which is no bug."""
    message = one_line(error, max_length=MAX_MESSAGE)
    if isinstance(error, CancelledError):
        return Cancelled(message=f"{message}; the next run continues", data=error)

    return Failed(message=message, data=error)


def find_or_build(run: PipelineRun, step: Step) -> State | None:
    """Find the artifact of a step, or build it here or by a deployment.

    Returns:
        The state Cached if it existed before.
    """
    store = run.plan.store
    folder = store.folder(step)
    existed = store.find(step) is not None

    # A corpus that is complete now may have no test items.
    check_decoded(run.plan)
    if not existed and step.stage in run.remote_stages:
        run_remotely(run, step)

    with store.lock(step, announce, run.stopping.is_set) as lock:
        record = store.find(step)
        if record is None:
            record = build(run, step, lock)
        # Another run, or a deployment, may have built it in the meantime.
        found = "cached" if existed else f"done in {record.run['seconds']:.0f} s"
        score = main_score(record.metrics)
        run.announce(step, ", ".join(filter(None, [found, score])))

    run.artifacts_by_name[step.name] = folder, record
    run.states[step.name] = "cached" if existed else "built"
    if not existed:
        return None
    return Completed(name="Cached", message=f"{folder} is of {record.run['at']}")


def build(run: PipelineRun, step: Step, lock: FileLock) -> Record:
    """Build the artifact of a step under its lock, and log it to MLflow. Returns its record."""
    store = run.plan.store
    with run.gpus(step) as gpus:
        run.announce(step, "started")
        if step.stage in TRAININGS:
            for other in store.interrupted(step.stage):
                run.announce(
                    step,
                    f"not continued: {other}, interrupted with other values, inputs or versions",
                )
        launch = Launch(
            gpus,
            [lock_descriptor(lock)],
            on_line=get_log_sink(),
            stopping=run.stopping,
            killing=run.killing,
            models=run.count_models(step),
        )
        run.tracker.end_killed(step.fingerprint, run.plan.workspace)
        with run.tracker.stage_run(
            step.description,
            store.folder(step),
            run.mlflow_run,
            {FLOW_RUN: flow_run.id},
        ) as mlflow_run:
            run_info = {
                "commit": run.log_entry.commit,
                "mlflow_run": mlflow_run,
                "arguments": {
                    "config": run.log_entry.config,
                    "changes": list(run.log_entry.changes),
                    # That relative paths are relative to.
                    "folder": run.log_entry.folder,
                },
            }
            return store.make(
                step,
                lambda step, out: run_stage(
                    step, out, store, run.plan.settings.resources, launch
                ),
                run_info,
            )


def run_remotely(run: PipelineRun, step: Step) -> None:
    """Run a step as the run of a deployment in another work pool, and wait for its end.

    It has the same parameters, and finds its inputs in the shared workspace. It is cancelled if the
    pipeline stops.

    Raises:
        StageFailed: If it did not complete, or its artifact is not in this workspace.
        CancelledError: If the pipeline stops.
    """
    name = f"alpro/{step.stage}"
    # With timeout=None, it would not wake up when the pipeline stops.
    submitted: Any = run_deployment(
        name,
        parameters={
            "config": run.log_entry.config,
            "changes": list(run.log_entry.changes),
            "stage": step.name,
        },
        timeout=0,
        flow_run_name=stage_title(step.description),
        job_variables={"env": {PARENT_RUN: run.mlflow_run}},
    )
    run.announce(step, f"waits for a worker or runs there, as {name} {submitted.name}")

    with get_client(sync_client=True) as client:
        while not run.stopping.wait(POLL_SECONDS):
            try:
                state = client.read_flow_run(submitted.id).state
            except HTTPError as error:
                # The run continues, whatever becomes of the server.
                log.debug(f"Prefect's server does not answer: {error}")
                continue
            if state and state.is_completed():
                if run.plan.store.find(step):
                    return
                raise StageFailed(
                    f"{name} completed, but {run.plan.store.folder(step)} does not exist; the "
                    "workers must share the workspace, the configuration and the files that it names, "
                    "none of which may change meanwhile"
                )
            if state and state.is_final():
                raise StageFailed(
                    f"{step.name}: {name} {submitted.name}: {state.message}"
                )

        client.set_flow_run_state(submitted.id, Cancelling())
    raise CancelledError(f"{step.name} was stopped")
