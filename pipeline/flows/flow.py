"""The pipeline as Prefect flows: `alpro` runs all of it, each stage has a flow, and `step` runs one step for them.
These are the flows of deployments; `alpro run` calls `start`.

A flow reads the configuration, makes the plan, and runs the steps that have no artifact. The runs of its deployment do
so in the work pool `cpu`, where mistakes are found at once, and leave each step to a deployment of `step`: steps with a
model wait for a slot of the pool `gpu`, in the order in which they were submitted.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import prefect
from prefect import Flow
from prefect.runtime import deployment, flow_run
from pydantic.json_schema import SkipJsonSchema

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.flows.pages import about_run, link_to_mlflow, name_run, show_results
from alpro.pipeline.flows.schedule import run_steps
from alpro.pipeline.flows.session import Place, Request, Session, open_tracker, place_of, start_session
from alpro.pipeline.flows.tasks import announce, at_terminal, check_input
from alpro.pipeline.plan.dag import Planned, plan, planned
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.step import Step
from alpro.pipeline.plan.steps import check_files, needed
from alpro.pipeline.reports.report import write_report
from alpro.pipeline.reports.results import Listed
from alpro.pipeline.reports.summary import FINISHED, STATES, RunSummary, StepSummary, first_line, report_file
from alpro.pipeline.servers.checks import check_tracking_uri
from alpro.pipeline.servers.deployed_run import continued_later
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.tracking.stage_runs import git_commit, log_stages, status_after
from alpro.pipeline.tracking.tracker import Run
from alpro.shards.storage import absolute
from alpro.stages.execution.interface import Interrupted

# Parameters that no person gives are not in the form on Prefect's page. A switch would have no empty state there: it
# would pass false for a field that nobody touched.
Internal = Annotated[str, SkipJsonSchema()]
InternalSwitch = Annotated[bool, SkipJsonSchema()]
InternalObject = Annotated[dict[str, Any], SkipJsonSchema()]


def start(request: Request, plan: Planned, place: Place | None = None) -> dict[str, str]:
    """Runs a plan as a flow of this process. Returns the folder of each artifact."""
    place = place or place_of(request, plan)

    def pipeline(config: str, data: str, changes: list[str]) -> dict[str, str]:  # for Prefect's page, which shows them
        return run(request, plan, place)

    name = request.stage.replace("_", "-") or "alpro"
    flow = Flow(pipeline, name=name, flow_run_name=lambda: place.title, persist_result=False)
    return flow(**request.arguments)


def run(request: Request, plan: Planned, place: Place) -> dict[str, str]:
    """Runs a plan in a flow, with its run in MLflow and its report. Returns the folder of each artifact."""
    settings, steps, store = plan
    check_files(steps, store)
    labels = [settings.name, f"result {steps[-1].fingerprint[:8]}"]
    name_run(place.title, labels)
    session = start_session(request, plan, place, about_run)
    link_to_mlflow(session.tracker, session.run, "mlflow")
    try:
        with prefect.tags(*labels):
            run_steps(session, steps)
    except BaseException as error:
        finish(session, plan, request.workspace, error)
        raise
    finish(session, plan, request.workspace)
    return session.folders


def finish(session: Session, plan: Planned, root: Path, error: BaseException | None = None) -> None:
    """Writes the report, shows the results in Prefect and MLflow, and ends the pipeline's run. error: what ended it."""
    try:
        report = report_run(session, plan, root, error)
        link_to_mlflow(session.tracker, session.run, "report", report)
        if not at_terminal():  # the command line prints it below the results
            announce(f"report: {report}")
        show_results(session.experiment, listed(session))
    except BaseException as problem:
        if error is None or not isinstance(problem, Exception):
            error = error or problem
            raise
        announce(f"no report of the run that failed: {problem}")  # must not hide why it failed
    finally:
        session.tracker.end(session.run, status_after(error) if error else "FINISHED")
        session.tracker.close()


def report_run(session: Session, plan: Planned, root: Path, error: BaseException | None = None) -> Path:
    """Writes the report of a run into a workspace and logs it to the run of the pipeline in MLflow. error: what ended
    the run, if it did not finish."""
    config, steps, _ = plan
    report = write_report(report_file(root, config, steps), summarize(session, plan, error), listed(session))
    if session.parent:
        session.tracker.file(session.parent, report)
        session.tracker.text(session.parent, config.model_dump_json(indent=1), "config.json")
        log_stages(session.tracker, session.parent, session.results)
    return report


def listed(session: Session) -> list[Listed]:
    """The artifacts of a session, as tables of results take them."""
    return [(result.step.name, result.folder, result.record, result.cached) for result in session.results]


def summarize(session: Session, plan: Planned, error: BaseException | None) -> RunSummary:
    """What a run has done."""
    config, steps, _ = plan
    state = STATES[status_after(error)] if error else FINISHED
    return RunSummary(
        title=session.title,
        name=config.name,
        stage=session.stage,
        state=state,
        reason=reason(session, error) if error else "",
        started=session.started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - session.started).total_seconds(), 1),
        commit=session.commit,
        arguments=session.arguments,
        config=config.model_dump(mode="json"),
        steps=[step_summary(step, session, finished=state == FINISHED) for step in steps],
    )


def reason(session: Session, error: BaseException) -> str:
    """Why a run did not finish, in a line that names the stage."""
    line = first_line(error)
    failed = [name for name, own in session.failures.items() if own is error]
    return f"{failed[0]}: {line}" if failed and not line.startswith(failed[0]) else line


def step_summary(step: Step, session: Session, finished: bool) -> StepSummary:
    """A step with its state at the end of the run."""
    result = next((result for result in session.results if result.step.name == step.name), None)
    if result:
        state = "cached" if result.cached else "built"
    elif step.name in session.failures and not isinstance(session.failures[step.name], Interrupted):
        state = "failed"
    else:
        state = "unused" if finished else "unfinished"
    seconds = result.record["run"]["seconds"] if result else None
    inputs = [source.name for source in step.inputs.values()]
    return StepSummary(step.name, step.stage, step.fingerprint, inputs, state, seconds)


def request_of(
    stage: str, config: str, data: str, changes: list[str], workspace: str, tracking_uri: str, by_deployment: bool
) -> Request:
    """The parameters of a flow, checked. A run of a deployment is in the workspace of its worker."""
    check_tracking_uri(tracking_uri)
    passed = {"workspace": str(absolute(workspace)) if workspace else "", "tracking_uri": tracking_uri}
    root, tracking_uri = places(workspace, tracking_uri)
    return Request(stage, found_config(config), data, changes, root, tracking_uri, passed if by_deployment else None)


def places(workspace: str, tracking_uri: str) -> tuple[Path, str]:
    """The workspace and the MLflow store of a run, of a deployment's by default those of its worker.

    A deployment's run has a process of its own in a temporary folder of Prefect: it moves to its workspace, so that
    relative paths are relative to that. Raises InputError if the worker names no workspace.
    """
    if deployment.id is None:
        return Path(absolute(workspace or "workspace")), tracking_uri
    named = os.environ.get("ALPRO_WORKSPACE", "")
    if not workspace and not Path(named).is_absolute():
        raise InputError(
            f"ALPRO_WORKSPACE = {named!r} of this worker is not an absolute path; start the worker with "
            "ALPRO_WORKSPACE=/shared/alpro, say"
        )
    root = Path(workspace or named).resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    return root, tracking_uri or os.environ.get("ALPRO_TRACKING_URI", "")


def found_config(source: str) -> str:
    """A configuration with the files that are in the folder `configs` of the workspace, or in those that ALPRO_CONFIGS
    of the worker names, by their paths. Others are shipped ones, and paths."""
    if deployment.id is None:
        return source
    named = [name.strip() for name in os.environ.get("ALPRO_CONFIGS", "").split(",") if name.strip()]
    folders = [Path(name) for name in named or ["configs"]]

    def found(name: str) -> str:
        files = (folder / name for folder in folders)
        return next((str(absolute(file)) for file in files if file.is_file()), name)

    return "+".join(found(part.strip()) for part in source.split("+"))


def flow_run_name() -> str:
    """The name of a flow run on Prefect's pages, until its configuration is read: the configuration, the stage, and
    what was changed."""
    flow, parameters = flow_run.flow_name, flow_run.parameters
    name = "+".join(Path(part).stem for part in parameters["config"].split("+"))
    stage = "" if flow == "alpro" else flow.replace("-", "_")
    parts = (name, stage, parameters["data"], " ".join(parameters["changes"]))
    return " · ".join(part for part in parts if part)


def flow_of(stage: str) -> Flow[..., dict[str, str]]:
    """A flow of one stage and its missing inputs, or, for "", of the whole pipeline."""

    def body(
        config: str = "sample",
        data: str = "",
        changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
        workspace: Internal = "",
        tracking_uri: Internal = "",
        stages_by_deployment: InternalSwitch = False,
    ) -> dict[str, str]:
        """Runs every step that has no cached result.

        Args:
            config: A configuration that ships, or a TOML file in the folder `configs` of the workspace. Several are
                joined by +; later ones complete and override the earlier.
            data: A manifest or a folder of your videos, which replaces every corpus. Empty: the configuration's.
            changes: Values to change, also of other stages, each as stage.key=value, such as pretrain.lr=1e-4.
            workspace: The folder of artifacts, reports and the MLflow store; default: workspace, or the worker's.
            tracking_uri: An MLflow server. Empty: an SQLite file in the workspace, or the worker's.
            stages_by_deployment: Run each step as a run of a deployment of `step`, in a work pool.
        """
        with continued_later():
            request = request_of(stage, config, data, changes, workspace, tracking_uri, stages_by_deployment)
            plan = planned(stage, request.config, data, changes, request.workspace)
            return run(request, plan, place_of(request, plan))

    body.__name__ = body.__qualname__ = stage or "alpro"
    name = body.__name__.replace("_", "-")
    return Flow(body, name=name, flow_run_name=flow_run_name, persist_result=False)


alpro = flow_of("")
render_sample = flow_of("render_sample")
decode_videos = flow_of("decode_videos")
index_shards = flow_of("index_shards")
train_tokenizer = flow_of("train_tokenizer")
build_vocabulary = flow_of("build_vocabulary")
train_prompter = flow_of("train_prompter")
cache_prompts = flow_of("cache_prompts")
pretrain = flow_of("pretrain")
zero_shot = flow_of("zero_shot")
finetune_retrieval = flow_of("finetune_retrieval")
finetune_qa = flow_of("finetune_qa")
evaluate = flow_of("evaluate")


@prefect.flow(name="step", persist_result=False)
def step(
    name: Internal,
    fingerprint: Internal,
    settings: InternalObject,
    arguments: InternalObject,
    parent_run: Internal = "",
    workspace: Internal = "",
    tracking_uri: Internal = "",
) -> dict[str, str]:
    """Runs one step of a pipeline, which starts this. The artifacts of its inputs must be here. The pipeline logs
    the step again if this machine has an MLflow store of its own.

    Args:
        name: The name of the step in the plan.
        fingerprint: Its fingerprint on the machine that runs the pipeline.
        settings: The configuration of the pipeline, complete.
        arguments: What the pipeline was started with, for the record of the artifact.
        parent_run: The MLflow run of the pipeline.
        workspace: The folder of artifacts; default: the worker's.
        tracking_uri: An MLflow server; default: the worker's.
    """
    with continued_later():
        check_tracking_uri(tracking_uri)
        root, tracking_uri = places(workspace, tracking_uri)
        root.mkdir(parents=True, exist_ok=True)
        config = PipelineConfig.model_validate(settings)
        store = Store(root / "artifacts")
        chosen = step_of(plan(config, Digests(root / "digests.sqlite")), name, fingerprint)
        for other in chosen.inputs.values():
            check_input(store, other)
        tracker = open_tracker(tracking_uri, root, config.name)
        parent = Run(parent_run) if tracker.has_run(parent_run) else None
        session = Session(store, tracker, parent, config.resources, git_commit(), config.name, arguments)
        try:
            run_steps(session, [chosen])
            return session.folders
        finally:
            tracker.close()


def step_of(steps: list[Step], name: str, fingerprint: str) -> Step:
    """The step of a plan that another machine made, too. Raises InputError if this one computes another fingerprint,
    because files that it reads are missing or differ, or because the versions of this project differ."""
    chosen = next((step for step in steps if step.name == name), None)
    if chosen and chosen.fingerprint == fingerprint and not chosen.missing:
        return chosen
    if chosen and (missing := [step.missing for step in needed(steps, chosen.stage) if step.missing]):
        raise InputError(f"{name}: {missing[0]}")
    raise InputError(
        f"{name}: this machine and the one that runs the pipeline have different files, or different versions of this "
        "project; `alpro artifacts show` lists the digests of an artifact's files"
    )
