"""Zero-shot evaluation: retrieval by the pre-trained model, entity accuracy of the prompter (paper, section 4.2)."""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from alpro.stages.cache_prompts import read_entities, read_prompts
from alpro.stages.encoding.encode import load_prompter
from alpro.stages.evaluation.entities import Crop, best_constant, entities_of_crops, entity_accuracy
from alpro.stages.evaluation.metrics import (
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    TABLE_VERSION,
    Queries,
    Score,
)
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded, load_for_evaluation
from alpro.stages.evaluation.results import Results, add_rankers, evaluating
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.interface import Outcome, Resources

VERSION = f"4 {TABLE_VERSION}"


class Config(EvaluationConfig):
    """Zero-shot evaluation; its keys are set in `[evaluate]`, except `threshold`, which is that of `[pretrain]`."""

    threshold: float = Field(0.2, ge=0, le=1, description="minimum probability of the pseudo-labels that PEM keeps")


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


def retrieval(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Retrieval by the pre-trained model, by each of its scores."""
    folder = load_for_evaluation(config, inputs["pretrained"], device)
    corpus = inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    add_rankers(results, "zero-shot", "zero_shot", folder, gallery, config, device)


def entities(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Accuracy of the prompter's most likely entity per clip, and on random crops of the clips."""
    prompter = load_prompter(inputs.get("prompter", inputs["prompts"]), device)
    folder = inputs[config.retrieval or config.qa]
    prompts, names = read_prompts(inputs["prompts"]), read_entities(inputs["vocabulary"])
    left_out = excluded(config, folder)
    score = entity_accuracy(prompter, prompts, names, folder, config.split, device, left_out)
    if score:
        accuracy = Score(
            ENTITY_ACCURACY, score.right * 100.0, score.best_constant, Queries.of(score.ids, score.captions)
        )
        results.add(accuracy, "prompter", "entities")
        rows = zip(score.ids, score.named, score.truth, score.right.tolist(), strict=True)
        results.table("entities", [{"id": i, "named": n, "truth": t, "right": r} for i, n, t, r in rows])
    if score and config.entity_crops:
        crops = entities_of_crops(prompter, prompts, names, folder, config.split, config.entity_crops, device, left_out)
        add_crops(results, crops, names, config.threshold)


def add_crops(results: Results, crops: list[Crop], entities: list[str], threshold: float) -> None:
    """Adds the accuracy on all crops and on those that PEM keeps, with the best constant on the same crops, and the
    share that it keeps. The truth is what the clip shows: a crop may show none of it."""
    kept = np.array([crop.probability >= threshold for crop in crops])
    right = np.array([crop.right for crop in crops])
    queries = Queries.of([crop.id for crop in crops], [str(crop.box) for crop in crops])
    scores = []
    for metric, some in ((CROP_ACCURACY, np.ones_like(kept)), (KEPT_CROP_ACCURACY, kept)):
        if some.any():
            chance = best_constant([crop.truth for crop, taken in zip(crops, some, strict=True) if taken], entities)
            scores.append(Score(metric, right[some] * 100.0, chance, queries.select(some)))
    scores.append(Score(KEPT_CROPS, kept * 100.0, None, queries))
    for score in scores:
        results.add(score, "prompter on random crops, which may show no entity of the clip", "entity_crops")
    rows = zip(crops, kept.tolist(), strict=True)
    results.table("entity_crops", [vars(crop) | {"kept": keeps, "right": crop.right} for crop, keeps in rows])
