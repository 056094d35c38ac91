"""The steps of a pipeline in order, each with its configuration and where its inputs come from.

The corpora come first: `pipeline/plan/plan.py` plans a step for each of them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from alpro.errors import InputError
from alpro.models.folder import read_kind
from alpro.stages.evaluate import Config as EvaluateOne
from alpro.stages.evaluation.protocol import EvaluationConfig
from alpro.stages.evaluation.score_names import FINE_TUNED, PRETRAINED, PROMPTER
from alpro.stages.execution.interface import StageConfig
from alpro.stages.train_tokenizer import Config as TrainTokenizer

# The configuration of a pipeline as this module sees it: a table for each stage, None for one that
# is left out. Its class is in a room above.
Pipeline: TypeAlias = Any

# Tasks of the models in `pretrained`, with the steps that evaluate them.
START_TASKS = {"pretrain": "pretrained", "retrieval": "retrieval", "qa": "qa"}
# Keys of [evaluate]: of every model, of one that ranks, and of one that was fine-tuned.
EVERY = {"top_k", "split", "min_decoded_share", "exclude_overlap", "mixed_precision"}
RANKING = {"retrieval", "frames", "max_text_tokens", *EVERY}
CONTROLS = {"controls", "seed"}


@dataclass(frozen=True)
class Needs:
    """A step of a pipeline: its configuration, and where its inputs come from.

    Attributes:
        stage: Its stage.
        config: Configuration of the step.
        inputs: The stage that builds each input. If the pipeline has no such step, the input is
            omitted as well.
        folders: Model folders of the user, by input.
        corpora: Names of the corpora that it reads.
        name: Name of the step, if its stage has several.
    """

    stage: str
    config: StageConfig
    inputs: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    corpora: Sequence[str] = ()
    name: str = ""


def list_needs(pipeline: Pipeline) -> Iterator[Needs]:
    """Yield the steps of a pipeline after its corpora."""
    pretrain = pipeline.pretrain
    if pretrain:
        tokenizer = pipeline.train_tokenizer
        if tokenizer.tokenizer == "train":
            yield Needs("train_tokenizer", tokenizer, corpora=pretrain.corpora)
        else:
            # It reads no captions, and depends on no other key.
            tokenizer = TrainTokenizer(tokenizer=tokenizer.tokenizer)
            yield Needs("train_tokenizer", tokenizer)
        vocabulary = pipeline.build_vocabulary
        yield Needs("build_vocabulary", vocabulary, corpora=pretrain.corpora)

    prompter = pipeline.train_prompter
    is_read = pipeline.uses_prompter or pipeline.finetunes_clip
    if prompter and is_read and not pipeline.cache_prompts.prompter:
        # A CLIP has a tokenizer of its own.
        inputs = {} if prompter.clip else {"tokenizer": "train_tokenizer"}
        yield Needs("train_prompter", prompter, inputs, corpora=prompter.corpora)
    if pipeline.uses_prompter:
        inputs = {"vocabulary": "build_vocabulary", "prompter": "train_prompter"}
        yield Needs("cache_prompts", pipeline.cache_prompts, inputs)

    if pretrain:
        inputs = {
            "tokenizer": "train_tokenizer",
            "vocabulary": "build_vocabulary",
            "prompter": "train_prompter",
            "prompts": "cache_prompts",
        }
        yield Needs("pretrain", pretrain, inputs, corpora=pretrain.corpora)

    folders = {"model": Path(pipeline.pretrained)} if pipeline.pretrained else {}
    for stage in ("finetune_retrieval", "finetune_qa"):
        config = getattr(pipeline, stage)
        if config:
            inputs = {"model": "pretrain"}
            yield Needs(stage, config, inputs, folders, config.corpora)

    start = find_start(folders["model"]) if folders else ""
    for step in list_evaluations(pipeline, start):
        # Without a corpus for what this model can do, there is nothing to ask about.
        if step.corpora:
            is_start = step.name == start
            yield replace(step, folders=folders) if is_start else step


def list_evaluations(pipeline: Pipeline, start: str) -> Iterator[Needs]:
    """Yield a step for each model of a pipeline.

    A step has only the keys that concern its model: another control must not evaluate the
    pre-trained model again.

    Args:
        start: the step that evaluates the model which the pipeline starts from.
    """
    table = pipeline.evaluate
    if pipeline.baseline:
        clip = pipeline.baseline
        frames = table.frames or pipeline.frames
        own = {"baseline": clip, "frames": frames}
        yield evaluation(table, "baseline", Path(clip).name, RANKING, own)

    if pipeline.uses_prompter or pipeline.finetunes_clip:
        name = FINE_TUNED if pipeline.finetunes_clip else PROMPTER
        own = {} if table.retrieval else {"qa": table.qa}
        if pipeline.pretrain:
            own["threshold"] = pipeline.pretrain.threshold
        step = evaluation(table, "prompter", name, {*RANKING, "entity_crops"}, own)
        inputs = {"model": "train_prompter", "prompts": "cache_prompts"}
        yield replace(step, inputs=inputs)

    # A model that was fine-tuned before has no score as pre-trained.
    if start == "evaluate pretrained" or (pipeline.pretrain and not start):
        step = evaluation(table, "pretrained", PRETRAINED, RANKING)
        yield replace(step, inputs={"model": "pretrain"})
    if pipeline.finetune_retrieval or start == "evaluate retrieval":
        step = evaluation(table, "retrieval", FINE_TUNED, RANKING | CONTROLS)
        yield replace(step, inputs={"model": "finetune_retrieval"})
    if pipeline.finetune_qa or start == "evaluate qa":
        # The numbers of frames and tokens are those of retrieval.
        keys = {"qa", "contrasts", *EVERY, *CONTROLS}
        step = evaluation(table, "qa", FINE_TUNED, keys)
        yield replace(step, inputs={"model": "finetune_qa"})


def evaluation(
    table: EvaluationConfig,
    task: str,
    model_name: str,
    keys: Collection[str],
    own: Mapping[str, Any] = {},
) -> Needs:
    """Return the step that evaluates one model, without its inputs.

    Args:
        keys: the keys of the table that concern the model.
        own: further values, and those that replace the table's.
    """
    values = {"model_name": model_name}
    values |= {key: getattr(table, key) for key in keys}
    # Its values are valid: they are of a configuration.
    config = EvaluateOne.model_construct(**{**values, **own})
    return Needs("evaluate", config, corpora=config.corpora, name=f"evaluate {task}")


def find_start(folder: Path) -> str:
    """Return the step that evaluates the model which a pipeline starts from. Raises InputError if
    the folder has no model that is pre-trained or fine-tuned."""
    task = read_kind(folder, "task")
    if task not in START_TASKS:
        kind = task or "no model folder"
        raise InputError(
            f"pretrained: {folder}: {kind}; give a model of pre-training or fine-tuning"
        )
    return f"evaluate {START_TASKS[task]}"
