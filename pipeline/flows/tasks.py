"""A run of a pipeline, and a step of it as a Prefect task: it looks for the artifact, builds it under a lock if it is
missing, and logs to MLflow."""

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
from prefect.context import FlowRunContext, TaskRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import MissingContextError
from prefect.states import Cancelling, Completed, Failed, State
from prefect.utilities.urls import url_for

from alpro.artifact import Record
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.locks import lock_number
from alpro.log import log
from alpro.names import record_run
from alpro.pipeline.execution.launch import run_stage
from alpro.pipeline.plan.dag import Planned, check_test_items
from alpro.pipeline.reports.page import FAILED, FINISHED, STOPPED, report_file, write_report
from alpro.pipeline.reports.summary import summary
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.tracking.contents import git_commit, stage_title, status_after
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages import STAGES, WITH_MODEL
from alpro.stages.evaluation.score_names import VALIDATION_SCORES
from alpro.stages.execution.interface import STOP, Interrupted, StageFailed, Stopped

# What ends a run and is no bug: a mistake of a person, a failed stage, which has printed why, a stop, a disk.
EXPECTED = (InputError, StageFailed, Interrupted, OSError)
POLL_SECONDS = 3.0  # between looks at the state of a deployment's run
RETRY_SECONDS = [
    1.0,
    5.0,
    20.0,
]  # before a stage continues that was interrupted, or whose network or disk failed


@dataclass
class PipelineRun:
    """A run of a plan, whose MLflow run is open."""

    plan: Planned
    arguments: Mapping[str, Any]  # config, data, changes and stage: the parameters of the flow
    workspace: Path  # of artifacts and reports
    elsewhere: Mapping[
        str, str
    ]  # the deployments that run the steps of a stage, by the names of the stages
    tracker: Tracker
    run: str  # in MLflow
    title: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: str = field(default_factory=git_commit)
    # By the names of the steps: what they left, whether it was there, and why they failed or were interrupted.
    found: dict[str, tuple[Path, Record]] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    failures: dict[str, BaseException] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a record has of the command that built its artifact, with the folder that its paths are relative to."""
        return {name: self.arguments[name] for name in ("config", "data", "changes")} | {
            "folder": str(Path.cwd())
        }

    @property
    def artifacts(self) -> dict[str, tuple[Path, Record]]:
        """The artifacts with their records, by the names of the steps, in order."""
        return {
            step.name: self.found[step.name] for step in self.plan.steps if step.name in self.found
        }

    def beside(self, step: Step) -> int:
        """The number of stages with a model that may run here at the same time as a step, itself included."""
        here = [
            s for s in self.plan.steps if s.stage in WITH_MODEL and s.stage not in self.elsewhere
        ]
        apart = [other for other in here if not other.needs(step) and not step.needs(other)]
        return min(
            self.plan.settings.resources.max_stages,
            sum(not self.plan.store.find(other) for other in apart),
        )

    def write_report(self, error: BaseException | None) -> None:
        """Writes the report, and a summary as JSON beside it, and shows the results in MLflow and Prefect. error: what
        ended the run, if it did not finish."""
        about = self.about(error)
        artifacts = list(self.artifacts.values())
        fingerprints = {name: record["fingerprint"] for name, (_, record) in self.found.items()}
        record_run(self.workspace, self.arguments, fingerprints)

        page = self.tracker.address(self.run)
        links = {"MLflow": page, "report": f"{page}/artifacts" if page else ""}
        context = FlowRunContext.get()
        flow_run = context.flow_run if context and not at_terminal() else None
        if flow_run:  # the server of a command ends with it
            links["Prefect"] = url_for("flow-run", flow_run.id) or ""
        # The page does not link itself. The server of a store that is a file is that of `alpro ui`.
        local = f"http://127.0.0.1:5000/#/experiments/{self.tracker.experiment}/runs/{self.run}"
        shown = [("MLflow: curves and parameters", page)] if page else []
        shown += [("MLflow, while `alpro ui` runs", local)] if self.run and not page else []
        shown += [("Prefect: times and logs", links["Prefect"])] if links.get("Prefect") else []
        report = write_report(report_file(self.workspace, self.plan), about, artifacts, shown)
        text = f"{summary(about, artifacts, links)}\nReport: `{report}`\n"
        self.tracker.log_pipeline(
            self.run, artifacts, [report, report.with_suffix(".json")], description=text
        )
        if not at_terminal():  # the command line prints it below the results
            announce(f"report: {report}")
        if flow_run:
            create_markdown_artifact(text, key="results", description=self.title)

    def about(self, error: BaseException | None) -> dict[str, Any]:
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
            "arguments": self.recorded,
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
def make(title: str, number: str, current: PipelineRun, step: Step) -> State | None:
    """Finds a step's artifact or builds it, and appends it to the results of the run.

    The state is Completed, or Cached if the artifact exists; Interrupted if the stage can continue, which the next try
    does; Failed with one line for an error that is not a bug. Prefect receives the run and the step in quotes and no
    result: it searches every object that it sees for the results of other tasks, and would draw arrows from all earlier
    stages.
    """
    try:
        STOP.get().wait(0)
        return find_or_build(number, current, step)
    except EXPECTED as error:
        return failure(error)


def failure(error: BaseException) -> State:
    """The state of a run or a task that ended by an error which is no bug. Its message is one line."""
    if isinstance(error, Interrupted):
        message = f"{one_line(error, max_length=MAX_MESSAGE)}; the next run continues"
        return Failed(name="Interrupted", message=message, data=error)
    return Failed(message=one_line(error, max_length=MAX_MESSAGE), data=error)


def find_or_build(number: str, current: PipelineRun, step: Step) -> State | None:
    """Finds a step's artifact or builds it, here or by a deployment. Returns a state of its own if it exists."""
    settings = current.plan.settings
    store = current.plan.store
    folder = store.folder(step)
    exists = store.find(step) is not None
    if STAGES[step.stage] != "data":
        check_test_items(current.plan)
    if not exists and step.stage in current.elsewhere:
        run_elsewhere(current, step, number)
    with store.lock(step, announce) as lock:
        log.debug(f"{step.name}: {folder}")
        record = store.find(step)
        if record is not None:
            current.found[step.name] = folder, record
            current.cached |= {step.name} if exists else set()
            announce(f"{number}{step.name}: cached" if exists else done_line(step, record))
            return (
                Completed(name="Cached", message=f"{folder} is of {record['run']['at']}")
                if exists
                else None
            )
        if step.stage in current.elsewhere:
            raise StageFailed(
                f"{current.elsewhere[step.stage]} completed, but {folder} does not exist; the workers must share the "
                "workspace and the files that the configuration names"
            )
        announce(f"{number}{step.name}: started")
        task = TaskRunContext.get()
        tags = {"prefect_run": str(task.task_run.id)} if task else {}
        with current.tracker.stage_run(step.description, folder, current.run, tags) as run:
            about = {"commit": current.commit, "mlflow_run": run, "arguments": current.recorded}
            rest = (store, settings.resources, lock_number(lock), say(), current.beside(step))
            record = store.make(step, lambda step, out: run_stage(step, out, *rest), about)
        current.found[step.name] = folder, record
    announce(done_line(step, record))
    return None


def run_elsewhere(current: PipelineRun, step: Step, number: str) -> None:
    """Runs a step as the run of a deployment in another work pool, and waits for its end. It has the same parameters,
    and finds its inputs in the shared workspace. Cancels it if the pipeline stops. Raises StageFailed."""
    name = current.elsewhere[step.stage]
    parameters = {**current.arguments, "stage": step.stage, "parent_run": current.run}
    # Not timeout=None: that does not wake up when the pipeline stops.
    submitted: Any = run_deployment(
        name, parameters=parameters, timeout=0, flow_run_name=stage_title(step.description)
    )
    announce(f"{number}{step.name}: waits for a worker or runs there, as {name} {submitted.name}")
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


def done_line(step: Step, record: dict[str, Any]) -> str:
    """How long a stage took, and its score on the validation split, if it has one."""
    scores = [
        f", {name} {record['metrics'][key]:.1f} %"
        for key, name in VALIDATION_SCORES.items()
        if key in record["metrics"]
    ]
    return f"{step.name}: done in {record['run']['seconds']:.0f} s{''.join(scores[:1])}"


def at_terminal() -> bool:
    """Whether a person called the command line, and no Prefect worker did."""
    return "ALPRO_COMMAND_LINE" in os.environ


def announce(text: str) -> None:
    """Prints progress to standard error for the command line, or logs it to Prefect."""
    (say() or log.info)(text)


def say() -> Callable[[str], None] | None:
    """Where the output of a stage's process goes: line by line to the log of Prefect's run; None for this terminal, of
    the command line or of a person who calls the flow's function without Prefect."""
    if at_terminal():
        return None
    try:
        return get_run_logger().info
    except MissingContextError:
        return None
