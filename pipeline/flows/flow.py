"""The pipeline as one Prefect flow with a task for each step.

`alpro run` calls `start`; deployments in prefect.yaml are the flow `alpro`, each with a stage and a
work pool.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import prefect
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import FailedRun
from prefect.runtime import deployment, flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field, JsonValue

from alpro.environment import prepare
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.pipeline.config.load import shipped
from alpro.pipeline.execution.launch import GRACE_SECONDS
from alpro.pipeline.flows.tasks import EXPECTED, PipelineRun, announce, failure, step_task
from alpro.pipeline.plan.changes import changed_code, changed_values, commit_text
from alpro.pipeline.plan.dag import Planned, check_files, planned, required
from alpro.pipeline.reports.summaries import latest_summary, report_file
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.tracking.contents import git_commit, run_title, stage_title
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages import EVALUATIONS, STAGES
from alpro.stages.execution.interface import STOP, Stop
from alpro.stages.execution.lifecycle import end_with_parent, ignore_signals, parent_process

SHIPPED: list[JsonValue] = [*shipped()]
# The form of a deployment's run offers these as choices. A configuration may also be a file.
Configuration = (
    Annotated[str, Field(title="one that ships", json_schema_extra={"enum": SHIPPED})]
    | Annotated[str, Field(title="a TOML file")]
)
STAGE_CHOICES: list[JsonValue] = ["", *STAGES]
StageName = Annotated[str, Field(json_schema_extra={"enum": STAGE_CHOICES})]


def start(
    plan: Planned,
    arguments: dict[str, Any],
    workspace: Path,
    tracker: Tracker,
    title: str = "",
    tags: dict[str, str] | None = None,
) -> dict[str, str]:
    """Runs a plan as a flow of this process. Returns the folder of each artifact.

    Args:
        arguments: config, data, changes and stage, as of `alpro`.
        title: of the run in MLflow; by default that of `title_of`.
        tags: of the run in MLflow.
    """
    title = title or title_of(plan, arguments)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ended_by: list[Any] = []  # the error of a run that failed

    def work() -> dict[str, str]:
        return run(plan, arguments, workspace, tracker, title=title, tags=tags)

    # Prefect's page shows the parameters.
    def body(config: str, data: str, changes: list[str], stage: str) -> dict[str, str] | State:
        # Prefect's handler hides from the command what ended it. Elsewhere than in the main thread
        # it sets none.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        ended = reported(work)
        if isinstance(ended, State):
            ended_by.append(ended.data)
        return ended

    # A function: of a text, Prefect would take braces for the names of parameters.
    flow: Any = Flow(body, name="alpro", flow_run_name=lambda: title, persist_result=False)
    try:
        return flow(**arguments)
    except FailedRun:
        # If the server's answer is lost, Prefect asks again, and is answered with the state that the
        # server has, which lacks the error.
        if ended_by:
            raise ended_by[0] from None
        raise


def run_name() -> str:
    """The name of a run from its parameters alone: it stands before the plan, which may fail."""
    parameters = flow_run.parameters
    config = Path(str(parameters.get("config", ""))).stem
    arguments = {
        "stage": parameters.get("stage") or "",
        "data": parameters.get("data") or "",
        "changes": parameters.get("changes") or [],
    }
    return run_title(config, "", arguments)


@prefect.flow(name="alpro", flow_run_name=run_name, persist_result=False)
def alpro(
    config: Configuration = "sample",
    data: str = "",
    changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
    stage: StageName = "",
    parent_run: str = "",
) -> Any:
    """Every step that has no cached result, as the run of a deployment, or called from Python.
    Returns the folder of each artifact. Relative paths are relative to the workspace, in Python to
    the current folder.

    Args:
        config: A configuration that ships, or a TOML file.
        data: A manifest or a folder of your videos, which replaces every corpus. Empty: the
            configuration's.
        changes: Values to change, also of other stages, each as stage.key=value, such as
            pretrain.lr=1e-4.
        stage: Only this stage and its missing inputs. Empty: the whole pipeline.
        parent_run: The run in MLflow that this one is a part of; the pipeline sets it. Leave it
            empty.
    """
    arguments = {"config": config, "data": data, "changes": changes, "stage": stage}

    def work() -> dict[str, str]:
        # Here, where a mistake becomes the state of this run, in one line.
        workspace = deployed_workspace() if deployment.id else called_workspace()
        plan = planned(stage, config, data, changes, workspace)
        check_files(plan.steps, plan.store)
        uri = os.environ.get("ALPRO_TRACKING_URI", "")
        return run(
            plan,
            arguments,
            workspace,
            tracker=Tracker.open(uri, workspace, plan.settings.name),
            title=title_of(plan, arguments),
            deployments=remote_deployments(),
            parent=parent_run,
        )

    return reported(work)


def deployed_workspace() -> Path:
    """The workspace of a worker, which becomes the current folder: Prefect starts a run in a
    temporary one. Such a process ends with its worker. Raises InputError."""
    end_with_worker()
    prepare()

    workspace = Path(os.environ.get("ALPRO_WORKSPACE", ""))
    if not workspace.is_absolute():
        raise InputError(
            f"ALPRO_WORKSPACE of this worker is not an absolute path but {str(workspace)!r}"
        )

    workspace.mkdir(parents=True, exist_ok=True)
    # Relative paths in a configuration are relative to the workspace.
    os.chdir(workspace)
    return workspace.resolve()


def end_with_worker() -> None:
    """From now on this process receives SIGTERM, once, when its worker ends."""

    # The kernel sends a signal for each thread of the worker. Prefect's handler of SIGTERM raises
    # every time, and a second time would cut short the stop that the first has begun.
    def stop(number: int, _: FrameType | None) -> None:
        ignore_signals(number)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, stop)
    end_with_parent(parent_process(), signal.SIGUSR1)


def called_workspace() -> Path:
    """The workspace of a flow that a person calls in Python, or as a part of another flow."""
    workspace = Path(os.environ.get("ALPRO_WORKSPACE", "workspace")).resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    return workspace


def reported(work: Callable[[], dict[str, str]]) -> dict[str, str] | State:
    """What `work` returns, or the state of a run that ended by an error which is no bug: its
    message is one line."""
    try:
        return work()
    except EXPECTED as error:
        return failure(error)


class WithoutTraceback(logging.Filter):
    """Replaces the traceback of an error that is no bug by its line, in the logs of runs."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, EXPECTED):
            record.msg = one_line(error, max_length=MAX_MESSAGE)
            # Without arguments, `logging` does not format a % in the message.
            record.args = None
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(WithoutTraceback())


def remote_deployments() -> dict[str, str]:
    """The deployments of single stages in other work pools than that of this run, by stage.

    Empty for a run without a deployment: it runs every stage itself.
    """
    if not deployment.id:
        return {}

    of_this_flow = FlowFilter(name=FlowFilterName(any_=["alpro"]))
    with get_client(sync_client=True) as client:
        own_pool = client.read_deployment(deployment.id).work_pool_name
        deployments = client.read_deployments(flow_filter=of_this_flow)

    return {
        other.name: f"alpro/{other.name}"
        for other in deployments
        if other.work_pool_name != own_pool and other.parameters.get("stage") == other.name
    }


def title_of(plan: Planned, arguments: dict[str, Any]) -> str:
    """The name of a run: what it changes, its stage and data, the configuration and the last step's
    fingerprint."""
    return run_title(plan.settings.name, plan.steps[-1].fingerprint, arguments)


def run(  # noqa: PLR0913 - what a command and a deployment know of a run
    plan: Planned,
    arguments: dict[str, Any],
    workspace: Path,
    tracker: Tracker,
    *,
    title: str,
    deployments: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    parent: str = "",
) -> dict[str, str]:
    """Runs a plan in a flow, with its run in MLflow and its report. Returns the folder of each
    artifact.

    parent: the run in MLflow of the pipeline that this run belongs to. Its stages are logged there,
    and the pipeline writes the report.
    """
    started = datetime.now(UTC)
    commit = git_commit()
    reports = report_file(workspace, plan).parent
    earlier = latest_summary(reports, plan.settings.name, started.isoformat(timespec="seconds"))
    other_code = changed_code(commit, earlier)

    mlflow_run: AbstractContextManager[str]
    if parent:
        mlflow_run = nullcontext(parent)
    else:
        all_tags = dict(tags or {}) | named_flow_run(title)
        # A comparison of two runs shows that their code differs.
        params = {"commit": commit_text(commit)} | plan.settings.as_written()
        mlflow_run = tracker.run(title, params, all_tags)

    with mlflow_run as run_id:
        current = PipelineRun(
            plan,
            arguments,
            workspace,
            remote_deployments=deployments or {},
            tracker=tracker,
            run=run_id,
            title=title,
            started=started,
            commit=commit,
            changed=changed_values(arguments, plan.settings),
            changed_code=other_code,
        )

        if parent:
            run_steps(current)
        else:
            run_with_report(current)

    return {name: str(folder) for name, (folder, _) in current.artifacts.items()}


def named_flow_run(title: str) -> dict[str, str]:
    """Gives Prefect's run its full name. Returns the tags of MLflow's run that lead to it."""
    context = FlowRunContext.get()
    if not context or not context.flow_run:
        return {}

    # Its first name stands before the plan, and lacks the fingerprint.
    if context.flow_run.name != title:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=title)

    return {"prefect_flow_run": str(context.flow_run.id)}


def run_with_report(current: PipelineRun) -> None:
    """Runs the steps, and writes the report, also of a run that fails."""
    try:
        run_steps(current)
    except BaseException as error:
        try:
            current.write_report(error)
        except Exception as problem:  # must not hide why it failed
            announce(f"no report of the run that failed: {problem}")
        raise
    current.write_report(None)


def run_steps(current: PipelineRun) -> None:
    """Runs the steps, each once its inputs exist, and at most `resources.max_stages` here at a
    time.

    A step that fails stops the steps that depend on it, and no others; the first error is raised at
    the end. If this thread is interrupted, all stages are stopped: they have time to write a
    checkpoint, then they are killed.
    """
    steps = required(current.plan.steps, current.plan.store)
    max_stages = current.plan.settings.resources.max_stages
    if max_stages > 1:
        # Trainings take longest: none waits for an evaluation that could run later.
        steps.sort(key=lambda step: step.stage in EVALUATIONS)

    # A step that runs elsewhere only waits, in a thread that takes no step's turn here.
    remote = sum(step.stage in current.remote_deployments for step in steps)

    stop = Stop()
    # Before the threads start, which copy this context.
    token = STOP.set(stop)
    workers: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_stages + remote)
    with workers as runner:
        futures: dict[str, Any] = {}
        try:
            for position, step in enumerate(steps, 1):
                # An input that exists already has no task.
                inputs = [
                    futures[source.name]
                    for source in step.inputs.values()
                    if source.name in futures
                ]

                values: dict[str, Any] = {
                    "title": stage_title(step.description),
                    "progress": f"stage {position} of {len(steps)}, ",
                    "current": quote(current),
                    "step": quote(step),
                }
                futures[step.name] = runner.submit(step_task, values, wait_for=inputs)

            for step in steps:
                state = futures[step.name].wrapped_future.result()
                note_failure(current, step, state, last=step is steps[-1])
        except BaseException:
            stop_stages(stop, [future.wrapped_future for future in futures.values()])
            raise
        finally:
            STOP.reset(token)

    if current.failures:
        raise next(iter(current.failures.values()))


def note_failure(current: PipelineRun, step: Step, state: State, last: bool) -> None:
    """Notes why a step failed, and announces it, unless it is the `last`, whose error ends the run.
    Raises what ends the run at once, such as Ctrl-C."""
    if state.is_completed():
        return
    if state.name == "NotReady":
        announce(f"{step.name}: skipped, because an input failed")
        return

    error: Any = state.result(raise_on_failure=False)
    current.failures[step.name] = error

    if not isinstance(error, Exception):
        raise error
    if not last:
        announce(f"{step.name}: failed: {error}")


def stop_stages(stop: Stop, futures: list[Future[Any]]) -> None:
    """Asks all stages to stop, waits while they write checkpoints, and kills what is left."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if main:  # a second one must not cut this short
        ignore_signals(signal.SIGTERM)
    stop.request()

    try:
        wait(futures, GRACE_SECONDS)
    finally:
        stop.request(signal.SIGKILL)
        if main:
            signal.signal(signal.SIGTERM, before)
