"""The pipeline as one Prefect flow with a task for each step.

`alpro run` calls `start`; deployments in prefect.yaml are the flow `alpro`, each with a stage and a work pool.
"""

import os
import signal
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import prefect
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.context import FlowRunContext
from prefect.runtime import deployment
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from alpro.errors import InputError
from alpro.pipeline.execution.launch import GRACE_SECONDS
from alpro.pipeline.flows.tasks import PipelineRun, announce, make, title_of
from alpro.pipeline.plan.dag import Planned, check_files, planned, required
from alpro.pipeline.tracking.tracker import Tracker, stage_title
from alpro.stages import EVALUATIONS
from alpro.stages.execution.interface import STOP, Stop
from alpro.stages.execution.lifecycle import end_with_parent


def start(
    plan: Planned,
    arguments: dict[str, Any],
    workspace: Path,
    tracking_uri: str = "",
    title: str = "",
    tags: dict[str, str] | None = None,
) -> dict[str, str]:
    """Runs a plan as a flow of this process. Returns the folder of each artifact.

    arguments: config, data, changes and stage, as of `alpro`. title (default: `title_of`), tags: of the run in MLflow.
    """
    title, terminate = title or title_of(plan, arguments), signal.getsignal(signal.SIGTERM)

    def body(
        config: str, data: str, changes: list[str], stage: str
    ) -> dict[str, str]:  # Prefect's page shows them
        if (
            threading.current_thread() is threading.main_thread()
        ):  # elsewhere Prefect sets no handler
            signal.signal(
                signal.SIGTERM, terminate
            )  # its handler hides from the command what ended it
        return run(plan, arguments, workspace, tracking_uri, {}, title, tags)

    return Flow(body, name="alpro", persist_result=False)(**arguments)


@prefect.flow(name="alpro", persist_result=False)
def alpro(
    config: str = "sample",
    data: str = "",
    changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
    stage: str = "",
) -> dict[str, str]:
    """A deployment's run of every step that has no cached result. Relative paths are relative to the workspace.

    Args:
        config: A configuration that ships, or a TOML file.
        data: A manifest or a folder of your videos, which replaces every corpus. Empty: the configuration's.
        changes: Values to change, also of other stages, each as stage.key=value, such as pretrain.lr=1e-4.
        stage: Only this stage and its missing inputs. Empty: the whole pipeline.
    """
    arguments = {"config": config, "data": data, "changes": changes, "stage": stage}
    end_with_parent(os.getppid(), signal.SIGTERM)
    workspace = Path(os.environ.get("ALPRO_WORKSPACE", ""))
    if not workspace.is_absolute():
        raise InputError(
            f"ALPRO_WORKSPACE of this worker is not an absolute path but {str(workspace)!r}"
        )
    workspace.mkdir(parents=True, exist_ok=True)
    os.chdir(workspace)  # Prefect started this process in a temporary folder
    plan = planned(stage, config, data, changes, workspace.resolve())
    uri, title = os.environ.get("ALPRO_TRACKING_URI", ""), title_of(plan, arguments)
    return run(plan, arguments, workspace.resolve(), uri, elsewhere(), title)


def elsewhere() -> dict[str, str]:
    """The deployments of single stages in other work pools than that of this run, by the names of the stages."""
    with get_client(sync_client=True) as client:
        own = client.read_deployment(deployment.id).work_pool_name
        found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["alpro"])))
    others = [
        other
        for other in found
        if other.work_pool_name != own and other.parameters.get("stage") == other.name
    ]
    return {other.name: f"alpro/{other.name}" for other in others}


def run(
    plan: Planned,
    arguments: dict[str, Any],
    workspace: Path,
    tracking_uri: str,
    deployments: dict[str, str],
    title: str,
    tags: dict[str, str] | None = None,
) -> dict[str, str]:
    """Runs a plan in a flow, with its run in MLflow and its report. Returns the folder of each artifact."""
    settings, steps, store = plan
    check_files(steps, store)
    tracker, about = Tracker.open(tracking_uri, workspace, settings.name), dict(tags or {})
    if (context := FlowRunContext.get()) and context.flow_run:
        about["prefect_flow_run"] = str(context.flow_run.id)
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=title)
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    with tracker.run(title, changed, about) as mlflow_run:
        current = PipelineRun(plan, arguments, workspace, deployments, tracker, mlflow_run, title)
        try:
            run_steps(current)
        except BaseException as error:
            try:
                current.write_report(error)
            except Exception as problem:  # must not hide why it failed
                announce(f"no report of the run that failed: {problem}")
            raise
        current.write_report(None)
    return {name: str(folder) for name, (folder, _) in current.artifacts.items()}


def run_steps(current: PipelineRun) -> None:
    """Runs the steps, each once its inputs exist, and at most `resources.max_stages` here at a time.

    A step that fails stops the steps that depend on it, and no others; the first error is raised at the end. If this
    thread is interrupted, all stages are stopped: they have time to write a checkpoint, then they are killed.
    """
    steps, stop = required(current.plan.steps, current.plan.store), Stop()
    if current.plan.settings.resources.max_stages > 1:
        steps.sort(
            key=lambda step: step.stage in EVALUATIONS
        )  # trainings, which last, wait for none
    deployed = sum(step.stage in current.elsewhere for step in steps)
    token = STOP.set(stop)
    workers: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(
        current.plan.settings.resources.max_stages + deployed
    )
    with workers as runner:
        futures: dict[str, Any] = {}
        try:
            for number, step in enumerate(steps, 1):
                inputs = [
                    futures[other.name] for other in step.inputs.values() if other.name in futures
                ]
                values: dict[str, Any] = {
                    "title": stage_title(step.description),
                    "current": quote(current),
                }
                values |= {"number": f"stage {number} of {len(steps)}, ", "step": quote(step)}
                futures[step.name] = runner.submit(make, values, wait_for=inputs)
            for step in steps:
                state = futures[step.name].wrapped_future.result()
                if state.name == "NotReady":
                    announce(f"{step.name}: skipped, because an input failed")
                elif not state.is_completed():
                    current.failures[step.name] = error = state.result(raise_on_failure=False)
                    if not isinstance(error, Exception):
                        raise error
                    if step is not steps[-1]:
                        announce(f"{step.name}: failed: {error}")
        except BaseException:
            # The kernel sends SIGTERM for each thread of a worker that is killed: a second one must not cut this short.
            main = threading.current_thread() is threading.main_thread()
            before = signal.signal(signal.SIGTERM, signal.SIG_IGN) if main else None
            stop.request()
            try:
                wait([future.wrapped_future for future in futures.values()], GRACE_SECONDS)
            finally:
                stop.request(signal.SIGKILL)
                if main:
                    signal.signal(signal.SIGTERM, before)
            raise
        finally:
            STOP.reset(token)
    if current.failures:
        raise next(iter(current.failures.values()))
