"""Zero-shot evaluation: retrieval by the pre-trained model, entity accuracy of the prompter (paper, section 4.2)."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field

from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder
from alpro.stages.cache_prompts import read_entities, read_prompts
from alpro.stages.encoding.encode import Videos, encode_texts, load_prompter, similarities
from alpro.stages.evaluation.entities import (
    Crop,
    best_constant,
    entities_of_crops,
    entity_accuracy,
    known_entities,
    patches_of,
    points_at,
)
from alpro.stages.evaluation.metrics import (
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    ENTITY_RECALL,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    POINTING,
    TABLE_VERSION,
    Queries,
    Score,
)
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded, load_for_evaluation
from alpro.stages.evaluation.results import Results, add_rankers, evaluating
from alpro.stages.evaluation.retrieval import Gallery, match_all
from alpro.stages.execution.interface import Outcome, Resources

VERSION = f"5 {TABLE_VERSION}"


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
    _, _, (_, videos) = add_rankers(results, "zero-shot", "zero_shot", folder, gallery, config, device)
    if config.name_entities:
        named_entities(folder, gallery, videos, results, device)


def named_entities(
    folder: ModelFolder, gallery: Gallery, videos: Videos, results: Results, device: torch.device
) -> None:
    """Adds the share of the known entities of each item that are among as many that the pre-trained model ranks first,
    by matching and by similarity."""
    truths = known_entities(gallery.reader, folder.entities)
    items = [item for item, number in enumerate(gallery.numbers) if number in truths]
    if not items:
        return
    shown = np.array([[e in truths[gallery.numbers[i]] for i in items] for e in folder.entities])
    kind = gallery.reader[gallery.numbers[items[0]]].about["kind"]
    texts = [f"a {'photo' if kind == 'image' else 'video'} of a {entity}" for entity in folder.entities]
    length = folder.preprocessing.max_text_tokens
    model, some = cast(Alpro, folder.model), Videos(videos.tokens[items], videos.features[items])
    encoded = encode_texts(model, folder.tokenizer, texts, length, device)
    similarity = similarities(encoded.features, some.features).cpu().numpy()
    queries = gallery.queries("v2t").select(np.isin(np.arange(len(gallery.ids)), items))
    for what, name, scores in (
        ("pre-trained model by matching", "named", match_all(model, encoded, some)),
        ("pre-trained model by similarity", "named_vtc", similarity),
    ):
        share = recall_of_shown(scores, shown)
        results.add(Score(ENTITY_RECALL, share * 100, 100 * float(shown.mean()), queries), what, name)
    pointing(folder, gallery, videos, results, device)


def pointing(folder: ModelFolder, gallery: Gallery, videos: Videos, results: Results, device: torch.device) -> None:
    """Adds how often the patch to which the PEM head gives the highest probability of an entity, without a text, lies
    inside that thing; of things with a place (`x`, `y`, `radius`) in the manifest, if the model has a PEM head."""
    model, grid, known = cast(Alpro, folder.model), folder.model.config.video.grid, folder.entities
    things = [
        (item, thing)
        for item, number in enumerate(gallery.numbers)
        for thing in gallery.reader[number].about["meta"].get("things", ())
        if thing.get("kind") in known and thing.keys() >= {"x", "y", "radius"}
    ]
    if not things or not model.pem_head:
        return
    items = [item for item, _ in things]
    inside = np.array([patches_of(thing, grid) for _, thing in things])
    empty = encode_texts(model, folder.tokenizer, [""], folder.preprocessing.max_text_tokens, device)
    pairs = np.array([(item, known.index(thing["kind"])) for item, thing in things])
    best = points_at(model, empty, videos.tokens, pairs)
    queries = Queries.of([gallery.ids[item] for item in items], [thing["kind"] for _, thing in things])
    hits = 100.0 * inside[np.arange(len(best)), best]
    results.add(Score(POINTING, hits, 100 * float(inside.mean()), queries), "pre-trained model by region", "named")


def recall_of_shown(scores: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Share (items,) of the true entities among as many with the highest scores. scores, shown: (entities, items)."""
    place = (-scores).argsort(axis=0, kind="stable").argsort(axis=0)
    count = shown.sum(axis=0)
    return ((place < count) & shown).sum(axis=0) / count


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
