"""The DAG of a configuration. Imports neither Prefect nor MLflow, so that a plan is quick."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from alpro.log import log
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Step, Store
from alpro.pipeline.config import PipelineConfig, load_config
from alpro.pipeline.reporting.run_summary import FINISHED, load
from alpro.pipeline.steps import check_text_lengths, decoding, model_task, needed, required, with_files
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.execution.interface import StageConfig
from alpro.stages.zero_shot import Config as ZeroShot

Planned = tuple[PipelineConfig, list[Step], Store]


def planned(stage: str, config: str, data: str, changes: list[str] | None, root: Path, warn: bool = True) -> Planned:
    """The configuration, the steps of one stage or, for "", of the whole pipeline, and the store in a workspace.

    warn: log `repeated_frames`.

    Raises InputError for anything wrong with them, or if `resources.artifacts` cannot be reached.
    """
    settings = load_config(config, data, changes)
    root.mkdir(parents=True, exist_ok=True)
    store = Store(root / "artifacts", settings.resources.artifacts)
    steps = plan(settings, Digests(root / "digests.sqlite"), store)
    steps = needed(steps, stage) if stage else steps
    if settings.pretrained:
        check_text_lengths(steps, Path(settings.pretrained))
    for line in repeated_frames(steps) if warn else ():
        log.warning(line)
    store.is_shared(steps[0])
    return settings, steps, store


def repeated_frames(steps: list[Step]) -> list[str]:
    """Lines about stages that use more frames of a clip than its corpus stores: some are then used twice."""
    lines = []
    for step in steps:
        config: Any = step.config
        model = getattr(config, "model", None)
        used = getattr(config, "frames", 0) or (model.video.frames if model else 0)
        corpora = {name: other.config for name, other in step.inputs.items() if other.stage == "decode_videos"}
        for name, corpus in corpora.items():
            if name != getattr(config, "retrieval", name):
                continue  # `frames` of an evaluation are those of retrieval
            if used > (stored := cast(DecodeConfig, corpus).frames):
                lines.append(f"{step.name} uses {used} frames of a clip, and {name} stores {stored}: some are repeated")
    return lines


def report_file(root: Path, config: PipelineConfig, steps: list[Step]) -> Path:
    """The report of a run of these steps in a workspace."""
    return root / "reports" / f"{config.name}-{steps[-1].fingerprint[:6]}.html"


def finished_steps(plan: Planned, report: Path) -> list[Step]:
    """The steps of a run that has nothing to do: every artifact is in the workspace, which has an MLflow store, and the
    last run of these steps did not fail or stop. Empty if anything is left to do. report: the file of `report_file`."""
    config, steps, store = plan
    wanted, summary = required(steps, store), report.with_suffix(".json")
    if config.resources.artifacts or not (report.parents[1] / "mlflow.db").is_file():
        return []
    if summary.is_file() and (before := load(summary)) and before.state != FINISHED:
        return []
    return wanted if all(map(store.find, wanted)) else []


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
