"""The DAG of a configuration: its steps with their inputs, in an order in which they can run."""

from pathlib import Path
from typing import Any, cast

from alpro.log import log
from alpro.pipeline.config.pipeline_config import PipelineConfig, load_config
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.step import Step
from alpro.pipeline.plan.steps import check_text_lengths, decoding, model_task, needed, with_files
from alpro.pipeline.store.artifacts import Store
from alpro.shards.sources.manifest import has_questions
from alpro.stages import STAGES
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.execution.interface import StageConfig
from alpro.stages.train_tokenizer import Config as TrainTokenizer
from alpro.stages.zero_shot import Config as ZeroShot

Planned = tuple[PipelineConfig, list[Step], Store]


def planned(stage: str, config: str, data: str, changes: list[str] | None, root: Path, warn: bool = True) -> Planned:
    """The configuration, the steps of one stage or, for "", of the whole pipeline, and the store in a workspace.

    warn: log `repeated_frames`.

    Raises InputError for anything wrong with them.
    """
    settings = loaded(config, data, changes, root)
    store = Store(root / "artifacts")
    steps = plan(settings, Digests(root / "digests.sqlite"))
    steps = needed(steps, stage) if stage else steps
    if settings.pretrained:
        check_text_lengths(steps, Path(settings.pretrained))
    for line in repeated_frames(steps) if warn else ():
        log.warning(line)
    return settings, steps, store


def loaded(config: str, data: str, changes: list[str] | None, root: Path) -> PipelineConfig:
    """`load_config` in a workspace, which remembers whether the data has questions."""
    root.mkdir(parents=True, exist_ok=True)
    digests = Digests(root / "digests.sqlite")
    return load_config(config, data, changes, lambda location: has_questions(location, digests.manifests))


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


def plan(config: PipelineConfig, digests: Digests) -> list[Step]:
    """The DAG, in an order in which it can run: a step for each stage of STAGES that the configuration asks for, with
    the inputs that are declared there."""
    folder = Path(config.pretrained) if config.pretrained else None
    task = model_task(folder) if folder else ""
    configs = stage_configs(config, task)
    made: dict[str, Step] = {}  # by stage
    corpora: dict[str, Step] = {}
    for stage, declared in STAGES.items():
        if stage == "decode_videos":  # a step for each corpus, of index_shards if it names shards
            for name, corpus in config.corpora.items():
                corpora[name] = decoding(name, corpus, made.get("render_sample"), digests)
        if (values := configs[stage]) is None:
            continue
        inputs = {name: made[source] for name, source in declared.inputs.items() if source in made}
        if stage == "train_prompter" and config.train_prompter and config.train_prompter.clip:
            inputs.pop("tokenizer")  # a CLIP has its own
        if stage == "zero_shot" and "prompts" not in inputs:
            inputs.pop("vocabulary", None)  # only entities need it
        if declared.corpora and getattr(values, "tokenizer", "train") == "train":  # another one reads no captions
            read = config.pretrain if declared.kind == "text" else values
            inputs |= {name: corpora[name] for name in getattr(read, "corpora", corpora)}
        given = {"finetune_retrieval": "model", "finetune_qa": "model", "zero_shot": task}
        given |= {"evaluate": task} if is_evaluated(config, task) else {}
        paths = {given[stage]: folder} if folder and stage in given else {}
        made[stage] = with_files(Step(stage, stage, values, inputs, paths=paths), digests)
    steps = list(made.values())
    after = 1 if "render_sample" in made else 0
    return [*steps[:after], *corpora.values(), *steps[after:]]


def stage_configs(config: PipelineConfig, task: str) -> dict[str, StageConfig | None]:
    """The configuration of each stage, None for those that are not part of the pipeline. task: that of the model folder
    `pretrained`, empty without one."""
    configs: dict[str, StageConfig | None] = {stage: getattr(config, stage, None) for stage in STAGES}
    prompts = config.pretrain is not None and config.pretrain.needs_prompter
    if config.pretrain is None:
        configs |= {"train_tokenizer": None, "build_vocabulary": None}
    elif (tokenizer := config.train_tokenizer.tokenizer) != "train":  # of the other keys, it depends on none
        configs["train_tokenizer"] = TrainTokenizer(tokenizer=tokenizer)
    if not prompts:
        configs |= {"train_prompter": None, "cache_prompts": None}
    elif config.cache_prompts.prompter:
        configs["train_prompter"] = None
    before = zero_shot_config(config)
    if before.corpora and (prompts or (before.retrieval and task in ("", "pretrained"))):
        configs["zero_shot"] = before
    fine_tuned = config.finetune_retrieval or config.finetune_qa
    if not (config.evaluate.corpora and (fine_tuned or is_evaluated(config, task))):
        configs["evaluate"] = None
    return configs


def is_evaluated(config: PipelineConfig, task: str) -> bool:
    """Whether `evaluate` reads the model folder `pretrained`: one that is fine-tuned for a task, unless this pipeline
    fine-tunes it again."""
    again = {"retrieval": config.finetune_retrieval, "qa": config.finetune_qa}
    return task in again and again[task] is None


def zero_shot_config(config: PipelineConfig) -> ZeroShot:
    """The part of `[evaluate]` that the stage `zero_shot` reads, and PEM's threshold. The corpus of questions only
    matters to it, for the prompter's entities, where there is no retrieval."""
    values = config.evaluate.model_dump(include=set(ZeroShot.model_fields))
    values |= {"qa": ""} if config.evaluate.retrieval else {}
    values |= {"threshold": config.pretrain.threshold} if config.pretrain else {}
    return ZeroShot.model_validate(values)
