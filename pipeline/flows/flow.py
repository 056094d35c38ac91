"""The pipeline as one Prefect flow with a task for each step.

`alpro run` calls `start`; deployments in prefect.yaml are the flow `alpro`, each with a stage and a
work pool.
"""

import os
import signal
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect
from httpx import HTTPError
from prefect import Flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_logger
from prefect.logging.handlers import APILogHandler
from prefect.runtime import deployment, flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from alpro.artifact import Artifact
from alpro.errors import InputError, one_line
from alpro.inference.names import find_workspace
from alpro.interpreter import set_parent_death_signal
from alpro.log import log
from alpro.pipeline.config.command import DATA, Command, text_change
from alpro.pipeline.config.load import variations
from alpro.pipeline.flows.pipeline_run import EXPECTED, PipelineRun, announce
from alpro.pipeline.flows.servers import get_worker_workspace
from alpro.pipeline.flows.tasks import (
    CURRENT_RUN,
    PARENT_RUN,
    get_failed_state,
    step_task,
)
from alpro.pipeline.plan.checks import check_plan, fetch_models
from alpro.pipeline.plan.plan import Plan, make_plan
from alpro.pipeline.store.runs import RunEntry, git_commit, write_run
from alpro.pipeline.tracking.contents import stage_title
from alpro.pipeline.tracking.store import FLOW_RUN
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages.execution.lifecycle import get_parent

# A signal that arrives just before a wait begins does not end it, so no wait is without a limit.
SIGNAL_SECONDS = 0.5


def start(
    plan: Plan,
    tracker: Tracker,
    title: str = "",
    tags: Mapping[str, str] = {},
) -> list[Artifact]:
    """Run a plan as a flow of this process. Returns its artifacts.

    Args:
        title: title of the run in MLflow; by default `get_title`.
        tags: tags of the run in MLflow.

    Raises:
        InputError: If Prefect's server does not answer.
    """
    title = title or get_title(plan)
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except (RuntimeError, HTTPError) as error:
        raise InputError(
            f"{error}; start a server with `alpro up`, set PREFECT_API_AUTH_STRING if it has a "
            "password, or unset PREFECT_API_URL: a command then has a server of its own"
        ) from error
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ended: Future[list[Artifact]] = Future()

    def body() -> None:
        # Prefect replaces the handler of SIGTERM. The command's own goes back, so that the command
        # ends as after Ctrl-C.
        signal.signal(signal.SIGTERM, on_sigterm)
        try:
            ended.set_result(run(plan, tracker, title=title, tags=tags))
        except BaseException as error:
            ended.set_exception(error)
            raise

    # A function: in a text, Prefect would take braces for the names of parameters.
    flow = Flow(
        body,
        name="alpro",
        flow_run_name=lambda: title,
        persist_result=False,
    )
    try:
        flow()
    except HTTPError as error:
        if not ended.done():
            raise
        # The stages need no server: only Prefect's page does not show how the run ended.
        log.warning(f"Prefect's server is gone: {one_line(error)}")
    return ended.result()


@prefect.flow(
    name="alpro",
    # Without a stage, no space ends the name.
    flow_run_name=lambda: "{config} {stage}".format_map(flow_run.parameters).strip(),
    persist_result=False,
)
def alpro(
    config: str = "sample",
    data: str = "",
    changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
    stage: str = "",
) -> Any:
    """Every step that has no cached result, as the run of a deployment, or called from Python.
    Returns the folder of each artifact. Relative paths are relative to the workspace, in Python to
    the current folder.

    Args:
        config: A configuration that ships, or a TOML file.
        data: A manifest or a folder of your videos, as `corpora.data.data`. Empty: the
            configuration's.
        changes: Values to change, also of other stages, each as stage.key=value, such as
            pretrain.lr=1e-4.
        stage: Only this stage, or step such as evaluate qa, and its missing inputs. Empty: the whole
            pipeline.
    """
    try:
        workspace = open_workspace()
        own_data = [text_change(DATA, data)] if data else []
        command = Command(config, (*own_data, *changes), stage)
        plan = make_plan(command, workspace)
        remote_stages = find_remote_stages()
        check_plan(plan, remote_stages)
        fetch_models(plan, remote_stages)
        uri = os.environ.get("ALPRO_TRACKING_URI", "")
        tracker = Tracker.open(uri, workspace, plan.settings.name)
        artifacts = run(
            plan,
            tracker,
            title=get_title(plan),
            remote_stages=remote_stages,
            # A pipeline may run this flow as one of its stages.
            parent=os.environ.get(PARENT_RUN, ""),
        )
        return {record.name: str(folder) for folder, record in artifacts}
    except EXPECTED as error:
        state = get_failed_state(error)
        # `--watch` ends soon after the state, and shows what was logged before.
        get_run_logger().error(state.message)
        APILogHandler().flush()
        # The engine of a deployment would log the same error once more, with its traceback.
        get_logger("prefect.flow_runs").addFilter(
            lambda entry: (
                not (entry.exc_info and isinstance(entry.exc_info[1], EXPECTED))
            )
        )
        return state


def open_workspace() -> Path:
    """Return the folder of this run's artifacts, and create it.

    Without a deployment, it is in the current folder. The run of a deployment ends with its worker,
    which has prepared its environment. The workspace becomes its current folder: Prefect starts it
    in a temporary one.
    """
    workspace = find_workspace(None)
    if deployment.id:
        set_parent_death_signal(get_parent(), signal.SIGKILL)
        workspace = get_worker_workspace()
    workspace.mkdir(parents=True, exist_ok=True)
    if deployment.id:
        os.chdir(workspace)
    return workspace.resolve()


def find_remote_stages() -> set[str]:
    """Return the stages that have a deployment of their name in another work pool than this run's.

    Empty for a run without a deployment: it runs every stage itself.
    """
    if not deployment.id:
        return set()

    of_this_flow = FlowFilter.model_validate({"name": {"any_": ["alpro"]}})
    with get_client(sync_client=True) as client:
        own_pool = client.read_deployment(deployment.id).work_pool_name
        deployments = client.read_deployments(flow_filter=of_this_flow)

    return {
        other.name
        for other in deployments
        if other.work_pool_name != own_pool
        and other.parameters.get("stage") == other.name
    }


def get_title(plan: Plan) -> str:
    """Return the name of a run: what it varies, its stage, the configuration and the last step's
    fingerprint. The user's files and models are the same in all runs.

    Pages show 16 characters of a name, so it begins with the last part of each changed key.
    """
    ends = []
    tables = {}
    for change in variations(plan.command):
        key, _, value = change.partition("=")
        table, _, end = key.strip().rpartition(".")
        ends.append(f"{end}={value.strip()}")
        tables[table] = ""
    tables[plan.command.stage] = ""  # once, if its own key was changed

    mark = f"{plan.settings.name} {plan.steps[-1].fingerprint[:6]}"
    return " · ".join(filter(None, [" ".join(ends), *tables, mark]))


def run(
    plan: Plan,
    tracker: Tracker,
    *,
    title: str,
    remote_stages: Collection[str] = (),
    tags: Mapping[str, str] = {},
    parent: str = "",
) -> list[Artifact]:
    """Run a plan in a flow, with its run in MLflow and its report. Returns its artifacts.

    parent: the run in MLflow of the pipeline that this run belongs to. Its stages are logged there,
    and the pipeline writes the report.
    """
    log_entry = RunEntry(
        **vars(plan.command),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=str(Path.cwd()),
        commit=git_commit(),
        title=title,
        report=plan.report.name,
    )
    current = PipelineRun(
        plan,
        log_entry,
        remote_stages=remote_stages,
        tracker=tracker,
        mlflow_run=parent,
    )
    if parent:
        run_steps(current)
        return current.artifacts

    write_run(plan.workspace, log_entry)
    # A comparison of two runs shows that their code differs.
    params = {"commit": log_entry.commit} | plan.settings.as_written()
    all_tags = {FLOW_RUN: flow_run.id or "", **tags}
    # Prefect's page repeats a run that was killed under the same id: only this attempt is running.
    tracker.end_runs([flow_run.id or ""])
    with tracker.run(title, params, all_tags) as current.mlflow_run:
        try:
            run_steps(current)
        finally:
            ended_by = sys.exception()
            try:
                current.write_report(ended_by)
            # What the stages made is there, and why one failed must not be hidden.
            except Exception as problem:
                announce(
                    f"the report is not written, the next run tries again: {one_line(problem)}"
                )
    return current.artifacts


def run_steps(current: PipelineRun) -> None:
    """Run the steps, each once its inputs exist, and at most `resources.max_stages` here at a time.

    A step that fails stops the steps that depend on it, and no others; the first error is raised at
    the end. If this thread is interrupted, all stages are stopped, with time to write a checkpoint;
    a second Ctrl-C kills them.
    """
    CURRENT_RUN.set(current)  # tasks run in threads with a copy of this context
    futures: dict[str, PrefectConcurrentFuture] = {}
    max_stages = current.plan.settings.resources.max_stages
    # A step that runs elsewhere takes no place here.
    with (
        ThreadPoolTaskRunner[Any](max_workers=max_stages) as here,
        ThreadPoolTaskRunner[Any]() as elsewhere,
    ):
        try:
            # The threads take the steps in order, so one that waits for its inputs waits for a step
            # that has begun.
            for index, step in enumerate(current.plan.required):
                is_remote = step.stage in current.remote_stages
                title = stage_title(step.description)
                names = [source.name for source in step.inputs.values()]
                futures[step.name] = (elsewhere if is_remote else here).submit(
                    step_task.with_options(name=step.name, task_run_name=title),
                    {"index": index},
                    # Prefect draws an arrow from each.
                    wait_for=[futures[name] for name in names if name in futures],
                )
            join(futures)
        except BaseException:
            try:
                current.stopping.set()
                for future in futures.values():
                    future.wrapped_future.cancel()  # unless it has begun
                join(futures)
            except KeyboardInterrupt:
                current.killing.set()
                join(futures)
                raise
            raise

    for name, future in futures.items():
        if name in current.failures or name in current.artifacts_by_name:
            continue
        future.wait()
        if not future.state.is_pending():
            future.result()  # raises what Prefect itself failed with
        announce(f"{name}: skipped, because an input failed")
    if current.failures:
        raise next(iter(current.failures.values()))


def join(futures: Mapping[str, PrefectConcurrentFuture]) -> None:
    """Wait until all steps have ended."""
    threads = [future.wrapped_future for future in futures.values()]
    while wait(threads, SIGNAL_SECONDS).not_done:
        continue
