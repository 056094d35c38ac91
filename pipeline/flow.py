"""The pipeline as Prefect flows: `plan` is the DAG, `alpro` runs all of it, and each stage has a flow."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import prefect
from prefect import Flow
from prefect.runtime import flow_run

from alpro.credentials import clean_values, without_credentials
from alpro.errors import InputError
from alpro.pipeline.access import Limits, current_limits
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Step, Store
from alpro.pipeline.artifacts.upkeep import current_folder
from alpro.pipeline.checks import check_tracking_uri
from alpro.pipeline.config import PipelineConfig, load_config
from alpro.pipeline.form import Changes, ConfigName, Internal, InternalObject, changes_of, leaves, values_type
from alpro.pipeline.handover import Handover
from alpro.pipeline.record import end_dead_runs, git_commit, log_stages, run_tags, status_after
from alpro.pipeline.reporting.prefect_pages import about_run, link_to_mlflow, name_run, show_results
from alpro.pipeline.reporting.report import write_report
from alpro.pipeline.reporting.run_summary import RunSummary
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.pipeline.schedule import run_steps
from alpro.pipeline.steps import check_files, check_text_lengths, decoding, model_task, needed, with_files
from alpro.pipeline.summarize import now, summarize
from alpro.pipeline.tasks import Session, announce, fetch_input
from alpro.pipeline.watch import ended_if_cancelled
from alpro.shards.storage import absolute
from alpro.stages import STAGES
from alpro.stages.execution.interface import StageConfig
from alpro.stages.zero_shot import Config as ZeroShot


def plan(config: PipelineConfig, digests: Digests, store: Store | None = None) -> list[Step]:
    """The DAG, in an order in which it can run. Where videos are not on this machine, `store` has their digests."""
    steps: list[Step] = []

    def add(
        stage: str,
        config: StageConfig,
        inputs: Mapping[str, Step | None],
        model: tuple[str, Step | None, Path | None] = ("", None, None),
    ) -> Step:
        """model: the name of one more input, and its source: a step of this pipeline, or a model folder."""
        name, source, folder = model
        present = {key: step for key, step in {name: source, **inputs}.items() if step is not None}
        step = Step(stage, stage, config, present, paths={name: folder} if folder else {})
        steps.append(with_files(step, digests))
        return steps[-1]

    sample = add("render_sample", config.render_sample, {}) if config.render_sample else None
    corpora: dict[str, Step] = {}
    for name, corpus in config.corpora.items():
        corpora[name] = decoding(name, corpus, sample, digests, store)
        steps.append(corpora[name])
    phases = {
        stage: {name: corpora[name] for name in training.corpora} for stage, training in config.trainings().items()
    }

    retrieval = qa = pretrained = None
    teacher: dict[str, Step] = {}
    folder = Path(config.pretrained) if config.pretrained else None
    if config.pretrain:
        vocabulary = add("build_vocabulary", config.build_vocabulary, phases["pretrain"])
        teacher = {"vocabulary": vocabulary}
        if config.pretrain.needs_prompter:
            if config.train_prompter and not config.cache_prompts.prompter:
                training = {**teacher, **phases["train_prompter"]}
                teacher["prompter"] = add("train_prompter", config.train_prompter, training)
            teacher["prompts"] = add("cache_prompts", config.cache_prompts, teacher)
        pretrained = add("pretrain", config.pretrain, {**teacher, **phases["pretrain"]})
    name = model_task(folder) if folder else "pretrained"
    model = ("model", pretrained, folder)
    before = zero_shot_config(config)
    prompts = teacher if "prompts" in teacher else {}
    if before.corpora and (prompts or (before.retrieval and name == "pretrained")):
        tested = {corpus: corpora[corpus] for corpus in before.corpora}
        add("zero_shot", before, {**prompts, **tested}, (name, pretrained, folder))
    if config.finetune_retrieval:
        retrieval = add("finetune_retrieval", config.finetune_retrieval, phases["finetune_retrieval"], model)
    if config.finetune_qa:
        qa = add("finetune_qa", config.finetune_qa, phases["finetune_qa"], model)

    models = {"retrieval": retrieval, "qa": qa}
    # A pretrained model that is fine-tuned for a task is evaluated on it, unless this pipeline fine-tunes it again.
    finished = folder if name in models and models[name] is None else None
    if config.evaluate.corpora and (finished or any(models.values())):
        tested = {corpus: corpora[corpus] for corpus in config.evaluate.corpora}
        add("evaluate", config.evaluate, {**models, **tested}, (name, None, finished))
    return steps


def zero_shot_config(config: PipelineConfig) -> ZeroShot:
    """The part of `[evaluate]` that the stage `zero_shot` reads, and PEM's threshold. The corpus of questions only
    matters to it, for the prompter's entities, where there is no retrieval."""
    values = config.evaluate.model_dump(include=set(ZeroShot.model_fields))
    values |= {"qa": ""} if config.evaluate.retrieval else {}
    values |= {"threshold": config.pretrain.threshold} if config.pretrain else {}
    return ZeroShot.model_validate(values)


@dataclass(frozen=True)
class Request:
    """What a run was started with, checked. `passed` has the parameters of its stages' deployments besides these, None
    if it runs them itself."""

    config: str
    data: str
    changes: list[str]
    workspace: Path
    tracking_uri: str
    limits: Limits | None = None
    passed: dict[str, Any] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"config": self.config, "data": self.data, "changes": self.changes}


def run(stage: str, request: Request) -> dict[str, str]:
    """Runs a pipeline, or one stage and its missing inputs. Returns the folder of each artifact."""
    root = request.workspace
    plan = HANDED.get() or planned(stage, request.config, request.data, request.changes, root, request.limits)
    settings, steps, store = plan
    check_files(steps, store)
    commit = git_commit()
    tracker = open_tracker(request.tracking_uri, root, settings.name)
    end_dead_runs(tracker, {})
    place = PLACE.get() or Place(title(settings, stage, request.changes, steps))
    labels = [settings.name, f"result {steps[-1].fingerprint[:8]}"]
    name_run(place.title, labels)
    tags = about_run({**run_tags(commit), **place.tags})
    parent = tracker.start(place.title, settings.model_dump(mode="json"), tags, place.parent)
    link_to_mlflow(tracker, parent, "mlflow")
    recorded = clean_values({**request.arguments, "folder": current_folder()})
    session = Session(store, tracker, parent, settings.resources, commit, settings.name, recorded)
    passed = None if request.passed is None else {**request.arguments, **request.passed}
    done = partial(finish, session, parent, settings, root, steps, partial(summarize, place.title, stage, now()))
    try:
        with prefect.tags(*labels):
            run_steps(session, steps, passed)
    except BaseException as error:
        done(error)
        raise
    done()
    return session.folders


Planned = tuple[PipelineConfig, list[Step], Store]
# The plan that the command line has made already; reading a large manifest again takes time.
HANDED: ContextVar[Planned | None] = ContextVar("HANDED", default=None)


@dataclass(frozen=True)
class Place:
    """How a run appears in MLflow and Prefect. A study gives its runs names, tags, and the run of their variant."""

    title: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: Run | None = None


PLACE: ContextVar[Place | None] = ContextVar("PLACE", default=None)


def planned(
    stage: str, config: str, data: str, changes: list[str] | None, root: Path, limits: Limits | None = None
) -> Planned:
    """The configuration, the steps of one stage or, for "", of the whole pipeline, and the store in a workspace.

    Raises InputError for anything wrong with them, or if `resources.artifacts` cannot be reached.
    """
    settings = load_config(config, data, changes, limits.check_values) if limits else load_config(config, data, changes)
    root.mkdir(parents=True, exist_ok=True)
    store = Store(root / "artifacts", settings.resources.artifacts)
    steps = plan(settings, Digests(root / "digests.sqlite"), store)
    steps = needed(steps, stage) if stage else steps
    if settings.pretrained:
        check_text_lengths(steps, Path(settings.pretrained))
    store.is_shared(steps[0])
    return settings, steps, store


def run_handed(handover: Handover, root: Path, tracking_uri: str, limits: Limits | None) -> dict[str, str]:
    """Runs one stage for a pipeline that runs its stages as deployments. That pipeline logs the stage again if this
    machine has an MLflow store of its own. The artifacts of the inputs must be here, or in `resources.artifacts`."""
    if limits:
        limits.check_values(handover.model_dump(mode="json", exclude={"arguments"}))
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


def open_tracker(uri: str, root: Path, experiment: str) -> Tracker:
    """The MLflow store of a run: the server, or a file in the workspace."""
    return Tracker.open(uri or f"sqlite:///{root / 'mlflow.db'}", root / "mlflow", experiment)


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
    changes += [f"{key}={value}" for key, value in leaves(parameters.get("values", {}))]
    name = "+".join(Path(part).stem for part in config.split("+"))
    parts = (name, stage, data, " ".join(changes))
    return without_credentials(" · ".join(part for part in parts if part))  # the flow refuses them, once it has a name


def is_handed(parameters: Mapping[str, Any]) -> bool:
    """Whether a pipeline started the run of a stage. A run that a person copied from such a run and changed is a run of
    its own."""
    if not parameters.get("handover") or parameters.get("values"):
        return False
    arguments = parameters["handover"].get("arguments", {})  # and the folder of the pipeline's command
    return all(parameters[key] == arguments[key] for key in arguments.keys() & {"config", "data", "changes"})


def title(config: PipelineConfig, stage: str, changes: list[str] | None, steps: list[Step]) -> str:
    """A name that distinguishes runs: the configuration, the stage, the changes, and the last step's fingerprint."""
    return " · ".join(part for part in (config.name, stage, " ".join(changes or []), steps[-1].fingerprint[:6]) if part)


def finish(
    session: Session,
    parent: Run,
    config: PipelineConfig,
    root: Path,
    steps: list[Step],
    summary: Callable[..., RunSummary],
    error: BaseException | None = None,
) -> None:
    """Writes the report, shows the results in Prefect and MLflow, and ends the pipeline's run. error: what ended it."""
    results = [(result.step.name, result.folder, result.record, result.cached) for result in session.results]
    try:
        path = root / "reports" / f"{config.name}-{steps[-1].fingerprint[:6]}.html"
        report = write_report(path, summary(session, config, steps, error), results)
        session.tracker.file(parent, report)
        session.tracker.text(parent, config.model_dump_json(indent=1), "config.json")
        log_stages(session.tracker, parent, session.results)
        link_to_mlflow(session.tracker, parent, "report", report)
        show_results(config.name, results)
    except Exception as problem:
        if error is None:
            raise
        announce(f"no report of the run that failed: {problem}")  # must not hide why it failed
    finally:
        session.tracker.end(parent, status_after(error) if error else "FINISHED")
        session.tracker.close()


def request_of(
    config: str, data: str, changes: list[str], workspace: str, tracking_uri: str, by_deployment: bool = False
) -> Request:
    """The parameters of a flow, checked. Those of a run that a page started are inside the limits of its worker."""
    check_tracking_uri(tracking_uri)
    passed = {"workspace": str(absolute(workspace)) if workspace else "", "tracking_uri": tracking_uri}
    limits = current_limits()
    if limits:
        config, data = limits.check_config(config), limits.check_data(data)
        workspace, tracking_uri = limits.check_workspace(workspace), limits.check_tracking_uri(tracking_uri)
    root = Path(absolute(workspace or "workspace"))
    return Request(config, data, changes, root, tracking_uri, limits, passed if by_deployment else None)


def whole(
    config: ConfigName = "sample",
    data: str = "",
    changes: Changes = [],  # noqa: B006 (Prefect shows the default in its form)
    workspace: Internal = "",
    tracking_uri: Internal = "",
    stages_by_deployment: bool = False,
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
    with ended_if_cancelled():
        return run("", request_of(config, data, changes, workspace, tracking_uri, stages_by_deployment))


def stage_flow(stage: str) -> Flow[..., dict[str, str]]:
    """A Prefect flow of one stage."""
    values_of_stage = values_type(stage)

    def body(
        config: ConfigName = "sample",
        data: str = "",
        changes: Changes = [],  # noqa: B006
        workspace: Internal = "",
        tracking_uri: Internal = "",
        values: values_of_stage = {},  # type: ignore[valid-type]  # noqa: B006
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
            values: Values of this stage to change. An empty field keeps the value of the configuration.
            handover: Set by a pipeline that runs its stages as deployments.
        """
        with ended_if_cancelled():
            about = {"config": config, "data": data, "changes": changes, "values": values, "handover": handover}
            if is_handed(about):
                limits = current_limits()
                check_tracking_uri(tracking_uri)
                if limits:
                    workspace, tracking_uri = limits.check_workspace(workspace), limits.check_tracking_uri(tracking_uri)
                root = Path(absolute(workspace or "workspace"))
                return run_handed(Handover.model_validate(handover), root, tracking_uri, limits)
            request = request_of(config, data, changes, workspace, tracking_uri)
            if values:
                check = request.limits.check_values if request.limits else lambda _: None
                corpora = load_config(request.config, request.data, changes, check).corpora
                request = replace(request, changes=[*changes, *changes_of(stage, values, list(corpora))])
            return run(stage, request)

    return flow_of(body, stage)


def flow_of(body: Callable[..., dict[str, str]], stage: str) -> Flow[..., dict[str, str]]:
    body.__name__ = body.__qualname__ = stage
    return Flow(body, name=stage.replace("_", "-"), flow_run_name=flow_run_name, persist_result=False)


alpro = flow_of(whole, "alpro")
for _stage in STAGES:  # alpro.pipeline.flow:pretrain, and so on
    globals()[_stage] = stage_flow(_stage)
