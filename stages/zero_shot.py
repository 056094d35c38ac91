"""Zero-shot evaluation: retrieval by the pre-trained model, entity accuracy of the prompter (paper,
section 4.2)."""

from pathlib import Path

import torch
from pydantic import Field

from alpro.inference.encoding import load_prompter
from alpro.inference.prompts import read_entities, read_prompts
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.entities import (
    add_crops,
    add_entities,
    entities_of_clips,
    entities_of_crops,
)
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import TABLE_VERSION
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded
from alpro.stages.evaluation.results import Results, evaluating
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.evaluation.scores import add_rankers
from alpro.stages.execution.interface import Needs, Outcome, Pipeline, Resources, StageInputs

VERSION = f"14 {TABLE_VERSION}"  # intervals of scipy, none of a median


class Config(EvaluationConfig, frozen=True):
    """Zero-shot evaluation; its keys are set in `[evaluate]`, except `threshold`, which is that of
    `[pretrain]`."""

    threshold: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="minimum probability of the pseudo-labels that PEM keeps",
    )


class Inputs(StageInputs):
    """The pre-trained model for retrieval; the prompts and the entities for the accuracy of the
    prompter, which is the one beside the prompts if it was not trained; the corpora of the
    evaluation."""

    pretrained: Path | None = None
    vocabulary: Path | None = None
    prompter: Path | None = None
    prompts: Path | None = None
    corpora: dict[str, Path]


def needs(pipeline: Pipeline) -> Needs | None:
    """Where there is a pre-trained model to search with, or a prompter that names entities.

    The corpus of questions only matters for the entities, where there is no retrieval.
    """
    # Only its own keys: another control must not make this stage run again.
    values = pipeline.evaluate.model_dump(include=set(Config.model_fields))
    if pipeline.evaluate.retrieval:
        values["qa"] = ""
    if pipeline.pretrain:
        values["threshold"] = pipeline.pretrain.threshold
    config = Config.model_validate(values)

    # Of a model that is fine-tuned already, no score is zero-shot.
    is_pretrained = pipeline.pretrain or pipeline.start_task == "pretrained"
    searches = config.retrieval and is_pretrained
    if not (config.corpora and (searches or pipeline.uses_prompter)):
        return None

    stages = {"pretrained": "pretrain"}
    if pipeline.uses_prompter:
        stages |= {
            "vocabulary": "build_vocabulary",
            "prompter": "train_prompter",
            "prompts": "cache_prompts",
        }
    folders = {pipeline.start_task: pipeline.start} if pipeline.start else {}
    return Needs(config, stages=stages, folders=folders, corpora=config.corpora)


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Writes results.json and per-query tables."""
    models = [inputs.pretrained, inputs.prompter, inputs.prompts]
    with evaluating(config, inputs.corpora, models, out, resources) as (results, device):
        if config.retrieval and inputs.pretrained:
            retrieval(config, inputs, results, device)
        if inputs.prompts:
            entities(config, inputs, results, device)
        return results.outcome()


def retrieval(config: Config, inputs: Inputs, results: Results, device: torch.device) -> None:
    """Retrieval by the pre-trained model, by each of its scores."""
    assert inputs.pretrained is not None
    model = Scorer.load(config, inputs.pretrained, device)
    corpus = inputs.corpora[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    add_rankers(
        results,
        what="zero-shot",
        name="zero_shot",
        model=model,
        labels=gallery.labels,
        scored=model.score(gallery),
    )


def entities(config: Config, inputs: Inputs, results: Results, device: torch.device) -> None:
    """Accuracy of the prompter's most likely entity per clip, and on random crops of the clips."""
    assert inputs.prompts is not None
    assert inputs.vocabulary is not None

    # A CLIP that was not trained is beside its prompts.
    encoder = load_prompter(inputs.prompter or inputs.prompts, device).normalized(device)
    prompts = read_prompts(inputs.prompts)["video"].to(device)
    names = read_entities(inputs.vocabulary)

    corpus = inputs.corpora[config.retrieval or config.qa]
    reader = ShardReader(corpus, config.split, "video", excluded(config, corpus))
    add_entities(results, entities_of_clips(encoder, prompts, names, reader), names)
    if config.entity_crops:
        crops = entities_of_crops(encoder, prompts, names, reader, config.entity_crops)
        add_crops(results, crops, names, config.threshold)
