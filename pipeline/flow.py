"""The pipeline as Prefect flows: `alpro` runs all of it, and each stage has a flow."""

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import prefect
from prefect import Flow
from prefect.runtime import deployment, flow_run
from pydantic.json_schema import SkipJsonSchema

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Store
from alpro.pipeline.checks import check_tracking_uri, split
from alpro.pipeline.deployed_run import continued_later
from alpro.pipeline.handover import Handover
from alpro.pipeline.planning import HANDED, Planned, planned
from alpro.pipeline.record import git_commit, status_after
from alpro.pipeline.reporting.prefect_pages import about_run, link_to_mlflow, name_run, show_results
from alpro.pipeline.reporting.tracking import Run
from alpro.pipeline.run_report import listed, report_run
from alpro.pipeline.schedule import run_steps
from alpro.pipeline.session import Place, Request, Session, open_tracker, place_of, start_session
from alpro.pipeline.steps import check_files, with_files
from alpro.pipeline.tasks import announce, fetch_input
from alpro.shards.storage import absolute
from alpro.stages import STAGES

# Parameters that no person gives are not in the form on Prefect's page. A switch would have no empty state there: it
# would pass false for a field that nobody touched.
Internal = Annotated[str, SkipJsonSchema()]
InternalSwitch = Annotated[bool, SkipJsonSchema()]
InternalObject = Annotated[dict[str, Any], SkipJsonSchema()]
# A study sets it for each of its runs.
PLACE: ContextVar[Place | None] = ContextVar("PLACE", default=None)


def run(request: Request) -> dict[str, str]:
    """Runs a pipeline, or one stage and its missing inputs. Returns the folder of each artifact."""
    root, stage = request.workspace, request.stage
    plan = HANDED.get() or planned(stage, request.config, request.data, request.changes, root)
    settings, steps, store = plan
    check_files(steps, store)
    place = PLACE.get() or place_of(request, plan)
    labels = [settings.name, f"result {steps[-1].fingerprint[:8]}"]
    name_run(place.title, labels)
    session = start_session(request, plan, place, about_run)
    link_to_mlflow(session.tracker, session.run, "mlflow")
    passed = None if request.passed is None else {**request.arguments, **request.passed}
    try:
        with prefect.tags(*labels):
            run_steps(session, steps, passed)
    except BaseException as error:
        finish(session, plan, root, error)
        raise
    finish(session, plan, root)
    return session.folders


def run_handed(handover: Handover, root: Path, tracking_uri: str) -> dict[str, str]:
    """Runs one stage for a pipeline that runs its stages as deployments. That pipeline logs the stage again if this
    machine has an MLflow store of its own. The artifacts of the inputs must be here, or in `resources.artifacts`."""
    root.mkdir(parents=True, exist_ok=True)
    handed = handover.step()
    step = with_files(handed, Digests(root / "digests.sqlite"))
    if step.missing:
        raise InputError(step.missing)
    if step.fingerprint != handed.fingerprint:
        where = " or ".join(str(path) for path in step.paths.values())
        raise InputError(f"{step.name}: the files of {where} differ from those of the machine that runs the pipeline")
    store = Store(root / "artifacts", handover.resources.artifacts)
    for other in step.inputs.values():
        fetch_input(store, other)
    tracker = open_tracker(tracking_uri, root, handover.experiment)
    parent = Run(handover.parent_run) if tracker.has_run(handover.parent_run) else None
    session = Session(store, tracker, parent, handover.resources, git_commit(), handover.experiment, handover.arguments)
    try:
        run_steps(session, [step])
        return session.folders
    finally:
        tracker.close()


def flow_run_name() -> str:
    """The name of a flow run on Prefect's pages, until its configuration is read: the configuration, the stage, and
    what was changed."""
    flow, parameters = flow_run.flow_name, flow_run.parameters
    if is_handed(parameters):
        step = (parameters["handover"].get("steps") or [{}])[-1]  # it is validated later
        return f"{step.get('name')} · {str(step.get('fingerprint'))[:8]}"
    stage = "" if flow == "alpro" else flow.replace("-", "_")
    if place := PLACE.get():
        return place.title
    config, data, changes = parameters["config"], parameters["data"], list(parameters["changes"])
    name = "+".join(Path(part).stem for part in config.split("+"))
    parts = (name, stage, data, " ".join(changes))
    return without_credentials(" · ".join(part for part in parts if part))  # the flow refuses them, once it has a name


def is_handed(parameters: Mapping[str, Any]) -> bool:
    """Whether a pipeline started the run of a stage. A run that a person copied from such a run and changed is a run of
    its own."""
    if not parameters.get("handover"):
        return False
    arguments = parameters["handover"].get("arguments", {})  # and the folder of the pipeline's command
    return all(parameters[key] == arguments[key] for key in arguments.keys() & {"config", "data", "changes"})


def finish(session: Session, plan: Planned, root: Path, error: BaseException | None = None) -> None:
    """Writes the report, shows the results in Prefect and MLflow, and ends the pipeline's run. error: what ended it."""
    try:
        report = report_run(session, plan, root, error)
        link_to_mlflow(session.tracker, session.run, "report", report)
        show_results(session.experiment, listed(session))
    except BaseException as problem:
        if error is None or not isinstance(problem, Exception):
            error = error or problem
            raise
        announce(f"no report of the run that failed: {problem}")  # must not hide why it failed
    finally:
        session.tracker.end(session.run, status_after(error) if error else "FINISHED")
        session.tracker.close()


def request_of(
    stage: str,
    config: str,
    data: str,
    changes: list[str],
    workspace: str,
    tracking_uri: str,
    by_deployment: bool = False,
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
    folders = [Path(folder) for folder in split(os.environ.get("ALPRO_CONFIGS", "")) or ["configs"]]

    def found(name: str) -> str:
        files = (folder / name for folder in folders)
        return next((str(absolute(file)) for file in files if file.is_file()), name)

    return "+".join(found(part.strip()) for part in source.split("+"))


def whole(
    config: str = "sample",
    data: str = "",
    changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
    workspace: Internal = "",
    tracking_uri: Internal = "",
    stages_by_deployment: InternalSwitch = False,
) -> dict[str, str]:
    """Runs the pipeline: every stage that has no cached result.

    Args:
        config: A configuration that ships, or a TOML file in the folder `configs` of the workspace. Several are joined
            by +; later ones complete and override the earlier.
        data: A manifest or a folder of your videos, which replaces every corpus. Empty: the configuration's.
        changes: Values to change, each as stage.key=value, such as pretrain.lr=1e-4.
        workspace: The folder of artifacts, reports and the MLflow store; default: workspace, or the worker's.
        tracking_uri: An MLflow server. Empty: an SQLite file in the workspace, or the worker's.
        stages_by_deployment: Run each stage as its own deployment, in that deployment's work pool.
    """
    with continued_later():
        return run(request_of("", config, data, changes, workspace, tracking_uri, stages_by_deployment))


def stage_flow(stage: str) -> Flow[..., dict[str, str]]:
    """A Prefect flow of one stage."""

    def body(
        config: str = "sample",
        data: str = "",
        changes: list[str] = [],  # noqa: B006
        workspace: Internal = "",
        tracking_uri: Internal = "",
        handover: InternalObject = {},  # noqa: B006
    ) -> dict[str, str]:
        """Runs the stage. Missing inputs are built first.

        Args:
            config: A configuration that ships, or a TOML file in the folder `configs` of the workspace. Several are
                joined by +; later ones complete and override the earlier.
            data: A manifest or a folder of your videos, which replaces every corpus. Empty: the configuration's.
            changes: Values to change, also of other stages, each as stage.key=value, such as pretrain.lr=1e-4.
            workspace: The folder of artifacts, reports and the MLflow store; default: workspace, or the worker's.
            tracking_uri: An MLflow server. Empty: an SQLite file in the workspace, or the worker's.
            handover: Set by a pipeline that runs its stages as deployments.
        """
        with continued_later():
            if is_handed({"config": config, "data": data, "changes": changes, "handover": handover}):
                check_tracking_uri(tracking_uri)
                return run_handed(Handover.model_validate(handover), *places(workspace, tracking_uri))
            return run(request_of(stage, config, data, changes, workspace, tracking_uri))

    return flow_of(body, stage)


def flow_of(body: Callable[..., dict[str, str]], stage: str) -> Flow[..., dict[str, str]]:
    body.__name__ = body.__qualname__ = stage
    return Flow(body, name=stage.replace("_", "-"), flow_run_name=flow_run_name, persist_result=False)


alpro = flow_of(whole, "alpro")
for _stage in STAGES:  # alpro.pipeline.flow:pretrain, and so on
    globals()[_stage] = stage_flow(_stage)
