"""The pipeline as Prefect flows: `plan` says which stage follows which, `alpro` runs them all, and each has a flow."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Prefect's own 20 s are too few for its server on a machine that is busy with other work.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import Flow
from prefect.artifacts import create_markdown_artifact

from models.folder import read_task
from pipeline.config import Corpus, PipelineConfig, load_config
from pipeline.record import end_dead_pipelines, git_commit, run_tags
from pipeline.tasks import Session, make, make_by_deployment, result
from shards.schema import InputError
from shards.storage import Location, located
from stages.artifacts import StageConfig, Step, Store, digest
from stages.decode_videos import Config as DecodeConfig
from stages.evaluate import Config as Evaluate
from stages.evaluate import check_items
from stages.files import Digests, digest_data, digest_model
from stages.index_shards import Config as IndexConfig
from stages.index_shards import digest_shards
from stages.report import results_markdown, write_report
from stages.tracking import Tracker


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
        files = {name: digest_model(given, digests)} if given else {}
        for key in (
            "vit",
            "bert",
            "tokenizer",
            "tagger",
            "start",
        ):  # a file or folder of the user's, or a name on the hub
            if (value := getattr(config, key, "")) and Path(value).exists():
                files[key] = digest_files(Path(value), digests)
        steps.append(Step(stage, stage, config, present, files, {name: given} if given else {}))
        return steps[-1]

    sample = add("render_sample", config.render_sample, {}) if config.render_sample else None
    corpora: dict[str, Step] = {}
    for name, corpus in config.corpora.items():
        corpora[name] = decoding(name, corpus, sample, digests)
        steps.append(corpora[name])
    phases = {
        stage: {c: corpora[c] for phase in training.phases for c in phase.corpora}
        for stage, training in config.trainings().items()
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
    if config.finetune_retrieval:
        retrieval = add("finetune_retrieval", config.finetune_retrieval, phases["finetune_retrieval"], model)
    if config.finetune_qa:
        qa = add("finetune_qa", config.finetune_qa, phases["finetune_qa"], model)

    tested = {name: corpora[name] for name in (config.evaluate.retrieval, config.evaluate.qa) if name}
    if tested:
        models = {"retrieval": retrieval, "qa": qa, **teacher, **tested}
        # A given model that is fine-tuned already is evaluated as what it is.
        add("evaluate", config.evaluate, models, (name, pretrained, None if models.get(name) else given))
    return steps


def digest_files(path: Path, digests: Digests) -> str:
    """The digest of a file, or of the files in a folder."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return digest(dict(zip((file.name for file in files), digests.of(files), strict=True)))


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
        shards = located(corpus.shards)
        index = IndexConfig(kinds=corpus.kinds, most_rejects=corpus.most_rejects)
        files = {"shards": digest_shards(shards, digests)}
        paths = {"shards": shards}
        return outside(
            "index_shards", name, index, paths, files, lambda: digest_shards(shards, digests) == files["shards"]
        )
    config = DecodeConfig.model_validate(corpus.model_dump(exclude={"data", "shards", "annotations"}))
    if corpus.manifest:
        assert sample is not None
        return Step("decode_videos", f"decode_videos {name}", config, {"sample": sample})
    data = located(corpus.data)
    annotations: dict[str, Path] = {split: Path(file) for split, file in corpus.annotations.items()}
    found = digest_data(data, digests, annotations)
    return outside(
        "decode_videos",
        name,
        config,
        {"data": data, **annotations},
        {"data": found.all},
        lambda: digest_data(data, digests, annotations, ask=False).here == found.here,
    )


def outside(
    stage: str,
    corpus: str,
    config: StageConfig,
    paths: Mapping[str, Location],
    files: Mapping[str, str],
    same: Callable[[], bool],
) -> Step:
    """A step of files that are the user's. `same` tells whether those of this machine are what they were; what is at a
    URL as a whole is not looked at again: a store may say another thing of the same file each time."""

    def unchanged() -> bool:
        try:
            return same()
        except InputError:  # it cannot be read any more
            return False

    here = all(isinstance(path, Path) for path in paths.values())
    return Step(stage, f"{stage} {corpus}", config, files=files, paths=paths, unchanged=unchanged if here else None)


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
    parent_run: str = "",
) -> dict[str, str]:
    """Runs a pipeline, or one stage with whatever it needs that is missing. Returns the folder of each artifact."""
    settings = load_config(config, data, changes)
    root = Path(workspace).resolve()
    root.mkdir(parents=True, exist_ok=True)
    store, commit = Store(root / "artifacts", settings.resources.artifacts), git_commit()
    steps = plan(settings, Digests(root / "digests.sqlite"))
    steps = needed(steps, stage) if stage else steps
    store.is_shared(steps[0])  # a place that cannot be reached is told before anything starts
    tracker = Tracker.open(tracking_uri or f"sqlite:///{root / 'mlflow.db'}", root / "mlflow", settings.name)
    if parent_run:  # a pipeline has told of what is there already, and tells the results
        steps = [step for step in steps if step.stage == stage or not store.find(step)]
        return make_all(Session(store, tracker, parent_run, settings.resources, commit), steps)
    end_dead_pipelines(tracker)
    name = title(settings, stage, changes, steps)
    parent = tracker.start(name, settings.model_dump(mode="json"), run_tags(commit))
    session = Session(store, tracker, parent, settings.resources, commit)
    passed = {"config": config, "data": data, "changes": changes or [], "workspace": str(root)}
    status = "FAILED"
    try:
        made = make_all(session, steps, {**passed, "tracking_uri": tracking_uri} if stages_by_deployment else None)
        status = "FINISHED"
    finally:
        finish(session, settings, root, status)
    return made


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
        if step.stage == "evaluate":
            config = cast(Evaluate, step.config)
            for name in filter(None, (config.retrieval, config.qa)):
                check_items(config, name, store.folder(step.inputs[name]))


def title(config: PipelineConfig, stage: str, changes: list[str] | None, steps: list[Step]) -> str:
    """A name that tells runs apart: the configuration, the stage, what was changed, and the end of the pipeline."""
    return " · ".join(part for part in (config.name, stage, " ".join(changes or []), steps[-1].fingerprint[:6]) if part)


def finish(session: Session, config: PipelineConfig, root: Path, status: str) -> None:
    """Writes the report, shows the results in Prefect and MLflow, and ends the pipeline's run."""
    made = [(m.step.name, m.folder, m.manifest, m.cached) for m in session.made]
    mark = session.made[-1].step.fingerprint[:6] if session.made else session.parent[:6]
    report = write_report(root / "reports" / f"{config.name}-{mark}.html", config.name, made)
    session.tracker.file(session.parent, report)
    session.tracker.text(session.parent, config.model_dump_json(indent=1), "config.json")
    if results := results_markdown(made):
        create_markdown_artifact(results, key="results", description=f"{config.name}: results")
    session.tracker.end(session.parent, status)


def stage_flow(stage: str) -> Flow[..., dict[str, str]]:
    """A Prefect flow of one stage, or of the whole pipeline for "alpro"."""

    def body(
        config: str = "sample",
        data: str = "",
        changes: list[str] = [],  # noqa: B006 (Prefect shows the default in its form)
        workspace: str = "workspace",
        tracking_uri: str = "",
        stages_by_deployment: bool = False,
        parent_run: str = "",
    ) -> dict[str, str]:
        """Runs the stage, making first whatever it needs that is not there.

        Args:
            config: A configuration that ships (sample, own_videos, ...) or the path of a TOML file.
            data: A manifest or a folder of videos of yours, in the place of every corpus. Empty: the configuration's.
            changes: Values to change, each as stage.key=value, such as pretrain.lr=1e-4.
            workspace: The folder of artifacts, reports and the MLflow store. Workers must share it.
            tracking_uri: An MLflow server. Empty: an SQLite file in the workspace.
            stages_by_deployment: Run each stage as its own deployment, on that one's work pool.
            parent_run: The MLflow run to nest in. Set by a pipeline that runs its stages as deployments.
        """
        whole = stage == "alpro"
        return run(
            "" if whole else stage,
            config,
            data,
            changes,
            workspace,
            tracking_uri,
            stages_by_deployment and whole,
            parent_run,
        )

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
evaluate = stage_flow("evaluate")
