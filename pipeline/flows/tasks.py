"""A run of a pipeline, and a step of it as a Prefect task: it looks for the artifact, builds it
under a lock if it is missing, and logs to MLflow."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from httpx import HTTPError
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import MissingContextError
from prefect.states import Cancelling, Completed, Failed
from prefect.utilities.urls import url_for

from alpro.artifact import Record
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import atomic_write, write_json
from alpro.locks import lock_descriptor
from alpro.log import log
from alpro.names import record_run
from alpro.pipeline.execution.launch import run_stage
from alpro.pipeline.plan.dag import Planned, check_test_items
from alpro.pipeline.reports.document import describe_run
from alpro.pipeline.reports.summaries import (
    FAILED,
    FINISHED,
    STOPPED,
    earlier_runs,
    report_file,
)
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.tracking.contents import stage_title, status_after
from alpro.pipeline.tracking.tracker import MAX_DESCRIPTION, Tracker
from alpro.stages import STAGES, WITH_MODEL
from alpro.stages.evaluation.score_names import INTERPOLATION_SHARE, VALIDATION_SCORES
from alpro.stages.execution.interface import STOP, Interrupted, Outcome, StageFailed, Stopped

# What ends a run and is no bug: a mistake of a person, a failed stage, which has printed why, a
# stop, a disk.
EXPECTED = (InputError, StageFailed, Interrupted, OSError)
DEFAULT_UI = "http://127.0.0.1:5000"  # the server of `alpro ui`, without --port
POLL_SECONDS = 3.0  # between looks at the state of a deployment's run
# Before a stage continues that was interrupted, or whose network or disk failed.
RETRY_SECONDS = [1.0, 5.0, 20.0]


@dataclass
class PipelineRun:
    """A run of a plan, whose MLflow run is open."""

    plan: Planned
    arguments: Mapping[str, Any]  # config, data, changes and stage: the parameters of the flow
    workspace: Path  # of artifacts and reports
    remote_deployments: Mapping[str, str]  # that run the steps of a stage, by stage
    tracker: Tracker
    run: str  # in MLflow
    title: str
    started: datetime
    commit: str
    changed: list[str]  # each as KEY: OLD -> NEW
    changed_code: str  # since the run before; empty if it is the same
    # By the names of the steps: what they left, whether it was there, and why they failed or were
    # interrupted.
    found: dict[str, tuple[Path, Record]] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    failures: dict[str, BaseException] = field(default_factory=dict)

    @property
    def command(self) -> dict[str, Any]:
        """What a record has of the command that built its artifact, with the folder that its paths
        are relative to."""
        arguments = {name: self.arguments[name] for name in ("config", "data", "changes")}
        return {**arguments, "folder": str(Path.cwd())}

    @property
    def artifacts(self) -> dict[str, tuple[Path, Record]]:
        """The artifacts with their records, by the names of the steps, in order."""
        return {
            step.name: self.found[step.name] for step in self.plan.steps if step.name in self.found
        }

    def concurrent_model_steps(self, step: Step) -> int:
        """The number of stages with a model that may run here at the same time as a step, itself
        included."""
        independent = 0
        for other in self.plan.steps:
            runs_here = other.stage in WITH_MODEL and other.stage not in self.remote_deployments
            # Of two steps, one of which needs the other, only one runs at a time.
            if not runs_here or other.needs(step) or step.needs(other):
                continue
            independent += not self.plan.store.find(other)

        return min(self.plan.settings.resources.max_stages, independent)

    def write_report(self, error: BaseException | None) -> None:
        """Writes the report, and a summary as JSON beside it, and shows the results in MLflow and
        Prefect. error: what ended the run, if it did not finish."""
        run_summary = self.run_summary(error)
        artifacts = list(self.artifacts.values())
        fingerprints = {name: record.fingerprint for name, (_, record) in self.found.items()}
        # Also of a run that failed: STAGE stands for what was built last.
        record_run(self.workspace, self.arguments, fingerprints)

        report = report_file(self.workspace, self.plan)
        document = describe_run(run_summary, artifacts, earlier_runs(report, run_summary))
        # The server of a command ends with it: no link leads to its page.
        context = FlowRunContext.get()
        flow_run = context.flow_run if context and not at_terminal() else None
        prefect = (url_for("flow-run", flow_run.id) or "") if flow_run else ""
        links = {"MLflow": self.mlflow_page(DEFAULT_UI), "Prefect": prefect}
        report.parent.mkdir(exist_ok=True)
        with atomic_write(report) as temporary:
            temporary.write_text(document.page(links), "utf-8")
        write_json(report.with_suffix(".json"), run_summary)

        # The report is one of the files of MLflow's run, which has a page for each.
        in_mlflow = {"Report": self.tracker.page(self.run, report.name), "Prefect": prefect}
        self.tracker.log_pipeline(
            self.run,
            artifacts,
            files=[report, report.with_suffix(".json")],
            figures=document.figures,
            description=document.markdown(in_mlflow, MAX_DESCRIPTION),
        )

        if not at_terminal():  # the command line prints it below the results
            announce(f"report: {report}")
        if flow_run:
            links = {"Report": self.mlflow_page("", report.name), "MLflow": self.mlflow_page("")}
            text = document.markdown(links | {"Prefect": prefect})
            create_markdown_artifact(text, key="results", description=self.title)

    def mlflow_page(self, default_server: str, file: str = "") -> str:
        """Return the address of the run in MLflow, or of one of its files; empty without a run or
        a server.

        Args:
            default_server: Address of a server for a store that is a file.
        """
        server = self.tracker.server or default_server
        return f"{server}/{self.tracker.page(self.run, file)}" if self.run and server else ""

    def run_summary(self, error: BaseException | None) -> dict[str, Any]:
        """The summary of the run, as it is written beside the report."""
        settings = self.plan.settings
        state = FINISHED
        if error is not None:
            state = FAILED if status_after(error) == "FAILED" else STOPPED

        return {
            "title": self.title,
            "name": settings.name,
            "stage": self.arguments["stage"],
            "state": state,
            "reason": one_line(error, max_length=MAX_MESSAGE) if error else "",
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "commit": self.commit,
            "arguments": self.command,
            "changed": self.changed,
            "changed_code": self.changed_code,
            "config": settings.model_dump(mode="json"),
            "steps": [
                {
                    "name": step.name,
                    "stage": step.stage,
                    "fingerprint": step.fingerprint,
                    "inputs": [source.name for source in step.inputs.values()],
                    "state": self.state_of(step, finished=error is None),
                }
                for step in self.plan.steps
            ],
        }

    def state_of(self, step: Step, finished: bool) -> str:
        """What became of a step, in a word."""
        error = self.failures.get(step.name)
        if error and not isinstance(error, Interrupted):
            return "failed"
        if step.name in self.found:
            return "cached" if step.name in self.cached else "built"
        return "unused" if finished else "unfinished"


def interrupted(task: Any, run: Any, state: State) -> bool:
    """Whether a stage can continue where it was interrupted, and so runs again."""
    # Prefect may wrap what a state has in a record of a result.
    error = getattr(state.data, "result", state.data)
    return isinstance(error, Interrupted) and not isinstance(error, Stopped)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=interrupted,
    task_run_name="{title}",
)
def step_task(title: str, progress: str, current: PipelineRun, step: Step) -> State | None:
    """Finds a step's artifact or builds it, and adds it to the results of the run.

    The state is Completed, or Cached if the artifact exists; Interrupted if the stage can continue,
    which the next try does; Failed with one line for an error that is not a bug. Prefect receives
    the run and the step in quotes and no result: it searches every object that it sees for the
    results of other tasks, and would draw arrows from all earlier stages.

    progress: which stage of how many it is, as the log shows it.
    """
    try:
        # A step whose turn comes after the pipeline was stopped does not begin.
        STOP.get().wait(0)
        return find_or_build(progress, current, step)
    except EXPECTED as error:
        return failure(error)


def failure(error: BaseException) -> State:
    """The state of a run or a task that ended by an error which is no bug. Its message is one
    line."""
    if isinstance(error, Interrupted):
        message = f"{one_line(error, max_length=MAX_MESSAGE)}; the next run continues"
        return Failed(name="Interrupted", message=message, data=error)
    return Failed(message=one_line(error, max_length=MAX_MESSAGE), data=error)


def find_or_build(progress: str, current: PipelineRun, step: Step) -> State | None:
    """Finds a step's artifact or builds it, here or by a deployment. Returns the state Cached if it
    existed before."""
    store = current.plan.store
    folder = store.folder(step)
    existed = store.find(step) is not None

    if STAGES[step.stage] != "data":  # a corpus that is complete now may have no test items
        check_test_items(current.plan)
    if not existed and step.stage in current.remote_deployments:
        run_remotely(current, step, progress)

    with store.lock(step, announce) as lock:
        log.debug(f"{step.name}: {folder}")
        record = store.find(step)
        if record is None:
            record = build(current, step, folder, progress, lock_descriptor(lock))
            announce(done_line(step, record))
        elif existed:
            announce(f"{progress}{step.name}: cached")
        else:  # another run, or a deployment, has built it in the meantime
            announce(done_line(step, record))

    current.found[step.name] = folder, record
    if not existed:
        return None
    current.cached.add(step.name)
    return Completed(name="Cached", message=f"{folder} is of {record.run['at']}")


def build(current: PipelineRun, step: Step, folder: Path, progress: str, lock_file: int) -> Record:
    """Builds a step's artifact under its open lock, and logs it to MLflow. Returns its record."""
    if step.stage in current.remote_deployments:
        name = current.remote_deployments[step.stage]
        raise StageFailed(
            f"{name} completed, but {folder} does not exist; the workers must share the workspace "
            "and the files that the configuration names"
        )

    def work(step: Step, out: Path) -> Outcome:
        return run_stage(
            step,
            out,
            current.plan.store,
            current.plan.settings.resources,
            lock_file=lock_file,
            say=log_sink(),
            concurrent_stages=current.concurrent_model_steps(step),
        )

    announce(f"{progress}{step.name}: started")

    context = TaskRunContext.get()
    tags = {"prefect_run": str(context.task_run.id)} if context else {}
    with current.tracker.stage_run(step.description, folder, current.run, tags) as mlflow_run:
        run_info = {
            "commit": current.commit,
            "mlflow_run": mlflow_run,
            "arguments": current.command,
        }
        return current.plan.store.make(step, work, run_info)


def run_remotely(current: PipelineRun, step: Step, progress: str) -> None:
    """Runs a step as the run of a deployment in another work pool, and waits for its end.

    It has the same parameters, and finds its inputs in the shared workspace. Cancels it if the
    pipeline stops. Raises StageFailed.
    """
    name = current.remote_deployments[step.stage]
    parameters = {**current.arguments, "stage": step.stage, "parent_run": current.run}
    # Not timeout=None: that does not wake up when the pipeline stops.
    submitted: Any = run_deployment(
        name, parameters=parameters, timeout=0, flow_run_name=stage_title(step.description)
    )
    announce(f"{progress}{step.name}: waits for a worker or runs there, as {name} {submitted.name}")

    with get_client(sync_client=True) as client:
        while True:
            try:
                STOP.get().wait(POLL_SECONDS)
                state = client.read_flow_run(submitted.id).state
            except HTTPError as error:  # the run continues, whatever becomes of the server
                log.debug(f"Prefect's server does not answer: {error}")
                continue
            except Stopped:
                client.set_flow_run_state(submitted.id, Cancelling())
                raise
            if state and state.is_final():
                break

    if not state.is_completed():
        raise StageFailed(f"{step.name}: {name} {submitted.name} did not complete: {state.message}")


def done_line(step: Step, record: Record) -> str:
    """How long a stage took, and its score on the validation split, if it has one."""
    line = f"{step.name}: done in {record.run['seconds']:.0f} s"
    for key, name in VALIDATION_SCORES.items():
        if key in record.metrics:
            line += f", {name} {record.metrics[key]:.1f} %"
            break
    if INTERPOLATION_SHARE in record.metrics:
        line += f", with {record.metrics[INTERPOLATION_SHARE]:.0%} of the fine-tuning"
    return line


def at_terminal() -> bool:
    """Whether a person called the command line, and no Prefect worker did."""
    return "ALPRO_COMMAND_LINE" in os.environ


def announce(text: str) -> None:
    """Prints progress to standard error for the command line, or logs it to Prefect."""
    (log_sink() or log.info)(text)


def log_sink() -> Callable[[str], None] | None:
    """Where the output of a stage's process goes: line by line to the log of Prefect's run; None
    for this terminal, of the command line or of a person who calls the flow's function without
    Prefect."""
    if at_terminal():
        return None
    try:
        return get_run_logger().info
    except MissingContextError:
        return None
