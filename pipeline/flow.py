"""The pipeline as Prefect flows: `plan` is the DAG, `alpro` runs all of it, and each stage has a flow."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment, flow_run

from alpro.credentials import clean_values, without_credentials
from alpro.errors import InputError
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Step, Store
from alpro.pipeline.artifacts.upkeep import current_folder
from alpro.pipeline.checks import check_tracking_uri
from alpro.pipeline.config import PipelineConfig, load_config
from alpro.pipeline.handover import Handover
from alpro.pipeline.record import end_dead_runs, git_commit, run_tags, status_after
from alpro.pipeline.reporting.report import write_report
from alpro.pipeline.reporting.result_tables import results_markdown
from alpro.pipeline.reporting.run_summary import RunSummary
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.pipeline.schedule import run_steps
from alpro.pipeline.steps import check_files, decoding, model_task, needed, with_files
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


def run(
    stage: str,
    config: str,
    data: str = "",
    changes: list[str] | None = None,
    workspace: str = "workspace",
    tracking_uri: str = "",
    stages_by_deployment: bool = False,
) -> dict[str, str]:
    """Runs a pipeline, or one stage and its missing inputs. Returns the folder of each artifact."""
    root = Path(absolute(workspace))
    settings, steps, store = HANDED.get() or planned(stage, config, data, changes, root)
    check_files(steps, store)
    commit = git_commit()
    tracker = open_tracker(tracking_uri, root, settings.name)
    end_dead_runs(tracker, {})
    place = PLACE.get() or Place(title(settings, stage, changes, steps))
    tags = {**run_tags(commit), **place.tags}
    parent = tracker.start(place.title, settings.model_dump(mode="json"), tags, place.parent)
    arguments = {"config": config, "data": data, "changes": changes or []}
    recorded = clean_values({**arguments, "folder": current_folder()})
    session = Session(store, tracker, parent, settings.resources, commit, settings.name, recorded)
    passed = {**arguments, "workspace": str(root)}
    done = partial(finish, session, parent, settings, root, steps, partial(summarize, place.title, stage, now()))
    try:
        run_steps(session, steps, {**passed, "tracking_uri": tracking_uri} if stages_by_deployment else None)
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


def planned(stage: str, config: str, data: str, changes: list[str] | None, root: Path) -> Planned:
    """The configuration, the steps of one stage or, for "", of the whole pipeline, and the store in a workspace.

    Raises InputError for anything wrong with them, or if `resources.artifacts` cannot be reached.
    """
    settings = load_config(config, data, changes)
    root.mkdir(parents=True, exist_ok=True)
    store = Store(root / "artifacts", settings.resources.artifacts)
    steps = plan(settings, Digests(root / "digests.sqlite"), store)
    steps = needed(steps, stage) if stage else steps
    store.is_shared(steps[0])
    return settings, steps, store


def run_handed(handover: Handover, workspace: str, tracking_uri: str) -> dict[str, str]:
    """Runs one stage for a pipeline that runs its stages as deployments. That pipeline logs the stage again if this
    machine has an MLflow store of its own. The artifacts of the inputs must be here, or in `resources.artifacts`."""
    root = Path(absolute(workspace))
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


def check_workspace(workspace: str) -> None:
    """Raises InputError for a relative workspace in a run of a deployment: it would be in a folder of the worker's, and
    each run would begin with an empty one."""
    if deployment.id and not Path(workspace).is_absolute():
        raise InputError(
            f"workspace = {workspace!r} is not an absolute path; pass one, such as -p workspace=/shared/alpro, or set "
            "ALPRO_WORKSPACE for prefect deploy"
        )


def flow_run_name() -> str:
    """The name of a flow run on Prefect's pages: the stage, the configuration, and what was changed."""
    flow, parameters = flow_run.flow_name, flow_run.parameters
    if parameters.get("handover"):
        step = parameters["handover"]["steps"][-1]
        return f"{step['name']} · {step['fingerprint'][:8]}"
    if place := PLACE.get():
        return place.title
    config, data, changes = parameters["config"], parameters["data"], parameters["changes"]
    parts = (flow if flow != "alpro" else "", Path(config).stem, data, " ".join(changes))
    return without_credentials(" · ".join(part for part in parts if part))  # the flow refuses them, once it has a name


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
        if tables := results_markdown(results):
            create_markdown_artifact(tables, key="results", description=f"{config.name}: results")
    except Exception as problem:
        if error is None:
            raise
        announce(f"no report of the run that failed: {problem}")  # must not hide why it failed
    finally:
        session.tracker.end(parent, status_after(error) if error else "FINISHED")
        session.tracker.close()


def stage_flow(stage: str) -> Flow[..., dict[str, str]]:
    """A Prefect flow of one stage, or of the whole pipeline for "alpro"."""

    def body(
        config: str = "sample",
        data: str = "",
        changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
        workspace: str = "workspace",
        tracking_uri: str = "",
        stages_by_deployment: bool = False,
        handover: dict[str, Any] = {},  # noqa: B006
    ) -> dict[str, str]:
        """Runs the stage. Missing inputs are built first.

        Args:
            config: A configuration that ships (sample, own_videos, ...) or the path of a TOML file.
            data: A manifest or a folder of your videos, which replaces every corpus. Empty: the configuration's.
            changes: Values to change, each as stage.key=value, such as pretrain.lr=1e-4.
            workspace: The folder of artifacts, reports and the MLflow store. Workers must share it.
            tracking_uri: An MLflow server. Empty: an SQLite file in the workspace.
            stages_by_deployment: Run each stage as its own deployment, in that deployment's work pool.
            handover: Set by a pipeline that runs its stages as deployments; replaces config, data and changes.
        """
        check_workspace(workspace)
        check_tracking_uri(tracking_uri)
        with ended_if_cancelled():
            if handover:
                return run_handed(Handover.model_validate(handover), workspace, tracking_uri)
            whole = stage == "alpro"
            by_deployment = stages_by_deployment and whole
            return run("" if whole else stage, config, data, changes, workspace, tracking_uri, by_deployment)

    body.__name__ = body.__qualname__ = stage
    return Flow(body, name=stage.replace("_", "-"), flow_run_name=flow_run_name, persist_result=False)


alpro = stage_flow("alpro")
for _stage in STAGES:  # alpro.pipeline.flow:pretrain, and so on
    globals()[_stage] = stage_flow(_stage)
