"""The pipeline as Prefect flows: `plan` says which stage follows which, `alpro` runs them all, and each has a flow."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from prefect import Flow
from prefect.artifacts import create_markdown_artifact

from alpro.errors import InputError
from alpro.models.folder import read_task
from alpro.pipeline.config import FILES, Corpus, PipelineConfig, load_config
from alpro.pipeline.handover import Handover
from alpro.pipeline.record import end_dead_runs, git_commit, run_tags, status_after
from alpro.pipeline.reporting.report import write_report
from alpro.pipeline.reporting.result_tables import results_markdown
from alpro.pipeline.reporting.tracking import Run, Tracker
from alpro.pipeline.tasks import Session, fetch_input, make, make_by_deployment, result
from alpro.shards.schema import SPLITS
from alpro.shards.storage import Location, absolute, located
from alpro.stages.artifacts.digests import Digests, digest_data, digest_model
from alpro.stages.artifacts.store import EVALUATIONS, StageConfig, Step, Store, digest
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.decode_videos import decoder_files
from alpro.stages.evaluate import Config as Evaluate
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items
from alpro.stages.index_shards import Config as IndexConfig
from alpro.stages.index_shards import digest_shards
from alpro.stages.zero_shot import Config as ZeroShot

# Keys that name a file or folder of the user's, or else something on the hub.
OUTSIDE = ("vit", "bert", "tokenizer", "tagger", "start", "entities_file", "answers_file")


def plan(config: PipelineConfig, digests: Digests) -> list[Step]:
    """The DAG, in an order in which it can run. A step's fingerprint needs nothing but what is written here."""
    steps: list[Step] = []

    def add(
        stage: str,
        config: StageConfig,
        inputs: Mapping[str, Step | None],
        model: tuple[str, Step | None, Path | None] = ("", None, None),
    ) -> Step:
        """model: the name of another input, and what it is: a step of this pipeline, or a model folder."""
        name, made, given = model
        present = {key: step for key, step in {name: made, **inputs}.items() if step is not None}
        step = Step(stage, stage, config, present, paths={name: given} if given else {})
        steps.append(with_files(step, digests))
        return steps[-1]

    sample = add("render_sample", config.render_sample, {}) if config.render_sample else None
    corpora: dict[str, Step] = {}
    for name, corpus in config.corpora.items():
        corpora[name] = decoding(name, corpus, sample, digests)
        steps.append(corpora[name])
    phases = {
        stage: {name: corpora[name] for name in training.corpora} for stage, training in config.trainings().items()
    }

    retrieval = qa = pretrained = None
    teacher: dict[str, Step] = {}
    given = Path(config.pretrained) if config.pretrained else None
    if config.train_prompter and config.pretrain:
        vocabulary = add("build_vocabulary", config.build_vocabulary, phases["pretrain"])
        teacher = {"vocabulary": vocabulary}
        if config.pretrain.needs_prompter:
            training = {**teacher, **phases["train_prompter"]}
            teacher["prompter"] = add("train_prompter", config.train_prompter, training)
            teacher["prompts"] = add("cache_prompts", config.cache_prompts, teacher)
        pretrained = add("pretrain", config.pretrain, {**teacher, **phases["pretrain"]})
    name = given_task(given) if given else "pretrained"
    model = ("model", pretrained, given)
    before = zero_shot_config(config.evaluate)
    prompts = teacher if "prompts" in teacher else {}
    if before.corpora and (prompts or (before.retrieval and name == "pretrained")):
        tested = {corpus: corpora[corpus] for corpus in before.corpora}
        add("zero_shot", before, {**prompts, **tested}, (name, pretrained, given))
    if config.finetune_retrieval:
        retrieval = add("finetune_retrieval", config.finetune_retrieval, phases["finetune_retrieval"], model)
    if config.finetune_qa:
        qa = add("finetune_qa", config.finetune_qa, phases["finetune_qa"], model)

    models = {"retrieval": retrieval, "qa": qa}
    # A given model that is fine-tuned already is evaluated as what it is, unless this pipeline fine-tunes it further.
    finished = given if name in models and models[name] is None else None
    if config.evaluate.corpora and (finished or any(models.values())):
        tested = {corpus: corpora[corpus] for corpus in config.evaluate.corpora}
        add("evaluate", config.evaluate, {**models, **tested}, (name, None, finished))
    return steps


def zero_shot_config(config: Evaluate) -> ZeroShot:
    """The part of `[evaluate]` that the stage `zero_shot` reads. The corpus of questions only matters to it, for the
    prompter's entities, where there is no retrieval."""
    shared = config.model_dump(include=set(ZeroShot.model_fields))
    return ZeroShot.model_validate(shared | ({"qa": ""} if config.retrieval else {}))


def with_files(step: Step, digests: Digests) -> Step:
    """A step with the digests of the user's files as they are on this machine."""
    if step.stage == "index_shards":
        return index_step(step, digests)
    if step.stage == "decode_videos":
        return decode_step(step, digests) if step.paths else step
    files = {name: digest_model(Path(folder), digests) for name, folder in step.paths.items()}
    for key in OUTSIDE:
        path = Path(value) if (value := getattr(step.config, key, "")) else None
        if path and path.exists():
            files[key] = digest_files(path, digests)
        elif path and (step.stage, key) in FILES:
            raise InputError(f"{step.stage}.{key} = {value!r}: no such file")
    return replace(step, files=files)


def digest_files(path: Path, digests: Digests) -> str:
    """The digest of a file, or of the files in and below a folder: those of a spaCy pipeline lie in folders of their
    own. Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digest({path.name: digests.of([path])[0]})
    files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    shown = {name: file for name, file in files.items() if not any(part.startswith(".") for part in Path(name).parts)}
    return digest(dict(zip(shown, digests.of(list(shown.values())), strict=True)))


def given_task(folder: Path) -> str:
    """What a given model folder is called among the inputs of evaluate."""
    try:
        task = read_task(folder)
    except ValueError as error:
        raise InputError(f"pretrained: {error}") from error
    if task == "prompter":
        raise InputError(f"pretrained: {folder} is a prompter; give a model of pre-training or fine-tuning")
    return "pretrained" if task == "pretrain" else task


def decoding(name: str, corpus: Corpus, sample: Step | None, digests: Digests) -> Step:
    """The step that makes one corpus: of the rendered sample, of files whose contents are in its fingerprint, or of
    shards that are there already."""
    if corpus.shards:
        index = IndexConfig(kinds=corpus.kinds, max_reject_share=corpus.max_reject_share)
        return with_files(
            Step("index_shards", f"index_shards {name}", index, paths={"shards": located(corpus.shards)}), digests
        )
    config = DecodeConfig.model_validate(corpus.model_dump(exclude={"data", "shards", "annotations", "root"}))
    if corpus.manifest:
        assert sample is not None
        return Step("decode_videos", f"decode_videos {name}", config, {"sample": sample}, decoder_files(config))
    paths: dict[str, Location] = {"data": located(corpus.data)}
    paths.update({split: Path(file) for split, file in corpus.annotations.items()})
    paths.update({"root": Path(corpus.root)} if corpus.root else {})
    return with_files(Step("decode_videos", f"decode_videos {name}", config, paths=paths), digests)


def index_step(step: Step, digests: Digests) -> Step:
    shards = step.paths["shards"]
    contents = digest_shards(shards, digests)
    return outside(step, {"shards": contents}, lambda: digest_shards(shards, digests) == contents)


def decode_step(step: Step, digests: Digests) -> Step:
    data, root = step.paths["data"], step.paths.get("root")
    annotations = {split: Path(file) for split, file in step.paths.items() if split in SPLITS}
    root = Path(root) if root else None
    contents = digest_data(data, digests, annotations, root)
    return outside(
        step,
        {"data": contents.all, **decoder_files(cast(DecodeConfig, step.config))},
        lambda: digest_data(data, digests, annotations, root, ask=False).here == contents.here,
    )


def outside(step: Step, files: Mapping[str, str], same: Callable[[], bool]) -> Step:
    """A step with the digests of the user's files. `same` is whether those of this machine are unchanged. A corpus at a
    URL is not checked again: a store may describe the same file differently each time."""

    def unchanged() -> bool:
        try:
            return same()
        except InputError:  # it cannot be read any more
            return False

    here = all(isinstance(path, Path) for path in step.paths.values())
    return replace(step, files=files, unchanged=unchanged if here else None)


def needed(steps: list[Step], stage: str) -> list[Step]:
    """The steps of one stage and all that they rest on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        raise InputError(f"this configuration has no stage {stage}")
    for step in reversed(steps):
        if step.fingerprint in wanted:
            wanted |= {other.fingerprint for other in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted]


def run(
    stage: str,
    config: str,
    data: str = "",
    changes: list[str] | None = None,
    workspace: str = "workspace",
    tracking_uri: str = "",
    stages_by_deployment: bool = False,
) -> dict[str, str]:
    """Runs a pipeline, or one stage with whatever it needs that is missing. Returns the folder of each artifact."""
    settings = load_config(config, data, changes)
    root = Path(absolute(workspace))
    root.mkdir(parents=True, exist_ok=True)
    store, commit = Store(root / "artifacts", settings.resources.artifacts), git_commit()
    steps = plan(settings, Digests(root / "digests.sqlite"))
    steps = needed(steps, stage) if stage else steps
    store.is_shared(steps[0])  # an unreachable place ends the run before anything starts
    tracker = open_tracker(tracking_uri, root, settings.name)
    end_dead_runs(tracker, {})
    name = title(settings, stage, changes, steps)
    parent = tracker.start(name, settings.model_dump(mode="json"), run_tags(commit))
    session = Session(store, tracker, parent, settings.resources, commit, settings.name)
    passed = {"config": config, "data": data, "changes": changes or [], "workspace": str(root)}
    try:
        made = make_all(session, steps, {**passed, "tracking_uri": tracking_uri} if stages_by_deployment else None)
    except BaseException as error:
        finish(session, parent, settings, root, status_after(error))
        raise
    finish(session, parent, settings, root, "FINISHED")
    return made


def run_handed(handover: Handover, workspace: str, tracking_uri: str) -> dict[str, str]:
    """Runs one stage for a pipeline that runs its stages as deployments, and that logs what its own MLflow store does
    not get from here. The artifacts of the inputs must be here, or in `resources.artifacts`."""
    root = Path(absolute(workspace))
    root.mkdir(parents=True, exist_ok=True)
    handed = handover.step()
    step = with_files(handed, Digests(root / "digests.sqlite"))
    if step.fingerprint != handed.fingerprint:
        where = " or ".join(str(path) for path in step.paths.values())
        raise InputError(f"{step.name}: the files of {where} differ from those of the machine that runs the pipeline")
    store = Store(root / "artifacts", handover.resources.artifacts)
    for other in step.inputs.values():
        fetch_input(store, other)
    tracker = open_tracker(tracking_uri, root, handover.experiment)
    parent = Run(handover.parent_run) if tracker.has_run(handover.parent_run) else None
    session = Session(store, tracker, parent, handover.resources, git_commit(), handover.experiment)
    try:
        return make_all(session, [step])
    finally:
        tracker.close()


def open_tracker(uri: str, root: Path, experiment: str) -> Tracker:
    """The MLflow store of a run: the server, or a file in the workspace."""
    return Tracker.open(uri or f"sqlite:///{root / 'mlflow.db'}", root / "mlflow", experiment)


def make_all(session: Session, steps: list[Step], by_deployment: dict[str, Any] | None = None) -> dict[str, str]:
    """Makes the steps in order: here, or, with the parameters of their flows, by the deployment of each stage."""
    checked = False
    for step in steps:
        if step.stage not in ("render_sample", "decode_videos", "index_shards") and not checked:
            check_test_split(session.store, steps)
            checked = True
        if by_deployment is not None and not session.store.find(step) and not session.store.is_shared(step):
            session.made.append(make_by_deployment(session, step, by_deployment))
        else:
            session.made.append(result(make(step.name, session, step)))
    return {made.step.name: str(made.folder) for made in session.made}


def check_test_split(store: Store, steps: list[Step]) -> None:
    """What evaluation would refuse of its corpora is refused before days of training."""
    for step in steps:
        if step.stage in EVALUATIONS:
            config = cast(EvaluationConfig, step.config)
            for name in config.corpora:
                check_items(config, name, store.folder(step.inputs[name]))


def title(config: PipelineConfig, stage: str, changes: list[str] | None, steps: list[Step]) -> str:
    """A name that tells runs apart: the configuration, the stage, what was changed, and the end of the pipeline."""
    return " · ".join(part for part in (config.name, stage, " ".join(changes or []), steps[-1].fingerprint[:6]) if part)


def finish(session: Session, parent: Run, config: PipelineConfig, root: Path, status: str) -> None:
    """Writes the report, shows the results in Prefect and MLflow, and ends the pipeline's run."""
    made = [(m.step.name, m.folder, m.record, m.cached) for m in session.made]
    mark = session.made[-1].step.fingerprint[:6] if session.made else parent.id[:6]
    try:
        report = write_report(root / "reports" / f"{config.name}-{mark}.html", config.name, made)
        session.tracker.file(parent, report)
        session.tracker.text(parent, config.model_dump_json(indent=1), "config.json")
        if results := results_markdown(made):
            create_markdown_artifact(results, key="results", description=f"{config.name}: results")
    finally:
        session.tracker.end(parent, status)
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
        if handover:
            return run_handed(Handover.model_validate(handover), workspace, tracking_uri)
        whole = stage == "alpro"
        by_deployment = stages_by_deployment and whole
        return run("" if whole else stage, config, data, changes, workspace, tracking_uri, by_deployment)

    body.__name__ = body.__qualname__ = stage
    return Flow(body, name=stage.replace("_", "-"), persist_result=False)


alpro = stage_flow("alpro")
render_sample = stage_flow("render_sample")
decode_videos = stage_flow("decode_videos")
index_shards = stage_flow("index_shards")
build_vocabulary = stage_flow("build_vocabulary")
train_prompter = stage_flow("train_prompter")
cache_prompts = stage_flow("cache_prompts")
pretrain = stage_flow("pretrain")
finetune_retrieval = stage_flow("finetune_retrieval")
finetune_qa = stage_flow("finetune_qa")
zero_shot = stage_flow("zero_shot")
evaluate = stage_flow("evaluate")
