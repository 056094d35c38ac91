"""Zero-shot evaluation: retrieval by the pre-trained model, entity accuracy of the prompter (paper, section 4.2)."""

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
from alpro.stages.execution.interface import Outcome, Resources

VERSION = f"12 {TABLE_VERSION}"


class Config(EvaluationConfig):
    """Zero-shot evaluation; its keys are set in `[evaluate]`, except `threshold`, which is that of `[pretrain]`."""

    threshold: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="minimum probability of the pseudo-labels that PEM keeps",
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `pretrained`, or `prompter`, `prompts` and `vocabulary`, or all of them; and the corpora by name. Without
    `prompter`, it is the one in `prompts`.

    Writes results.json and per-query tables.
    """
    with evaluating(config, inputs, out, resources) as (results, device):
        if config.retrieval and "pretrained" in inputs:
            retrieval(config, inputs, results, device)
        if "prompts" in inputs:
            entities(config, inputs, results, device)
        return results.outcome()


def retrieval(
    config: Config, inputs: dict[str, Path], results: Results, device: torch.device
) -> None:
    """Retrieval by the pre-trained model, by each of its scores."""
    model, corpus = Scorer.load(config, inputs["pretrained"], device), inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    add_rankers(results, "zero-shot", "zero_shot", model, gallery.labels, model.score(gallery))


def entities(
    config: Config, inputs: dict[str, Path], results: Results, device: torch.device
) -> None:
    """Accuracy of the prompter's most likely entity per clip, and on random crops of the clips."""
    encoder = load_prompter(inputs.get("prompter", inputs["prompts"]), device).normalized(device)
    prompts, names = (
        read_prompts(inputs["prompts"])["video"].to(device),
        read_entities(inputs["vocabulary"]),
    )
    corpus = inputs[config.retrieval or config.qa]
    reader = ShardReader(corpus, config.split, "video", excluded(config, corpus))
    add_entities(results, entities_of_clips(encoder, prompts, names, reader), names)
    if config.entity_crops:
        crops = entities_of_crops(encoder, prompts, names, reader, config.entity_crops)
        add_crops(results, crops, names, config.threshold)
