"""Entity accuracy of the prompter on clips and on crops, that of the best constant prediction, and its calibration."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from alpro.inference.encoding import encode_videos, sample_frames, similarities
from alpro.models.alpro import Prompter
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.metrics import (
    CALIBRATION_ERROR,
    CAPTIONS,
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    SURE_CROP_ACCURACY,
    SURE_CROPS,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.training.batch import random_box

CROPS = "prompter on random crops"
SURE = 0.6  # probability of the labels that are counted as sure
BINS = 10  # of the expected calibration error
LEAST_SHOWN = 0.5  # share of a thing that a crop must show to be right about it


@dataclass
class Named:
    """The most likely entity of a clip, or of a crop of it, and the entities that the clip or the crop shows."""

    id: str
    captions: str
    truth: list[str]
    named: str
    probability: float = 0.0  # of crops only
    box: tuple[int, int, int, int] | None = None  # left, top, width, height of the crop in patches

    @property
    def right(self) -> bool:
        return self.named in self.truth


def entities_of_clips(
    encoder: NormalizedModel, prompts: Tensor, entities: list[str], reader: ShardReader
) -> list[Named]:
    """The most likely entity of every sample with a known entity (`true_entities`). prompts: (M, E)."""
    clips = known(reader, entities)
    if not clips:
        return []
    best = (
        similarities(encode_videos(encoder, reader, list(clips)).features, prompts)
        .argmax(1)
        .tolist()
    )
    return [Named(*clip, entities[i]) for clip, i in zip(clips.values(), best, strict=True)]


def entities_of_crops(
    encoder: NormalizedModel,
    prompts: Tensor,
    entities: list[str],
    reader: ShardReader,
    crops: int,
    batch: int = 32,
) -> list[Named]:
    """The most likely entities of `crops` random crops of every sample with a known entity, each black outside as in
    PEM (paper, section 3.2.2), of 30 to 50 % of the frame, drawn with a fixed seed. Their truth: `entities_in_crop`."""
    clips, model, device = (
        known(reader, entities),
        cast(Prompter, encoder.model),
        encoder.mean.device,
    )
    config, rng = model.config.video, np.random.default_rng([0, 59])
    found, numbers = [], list(clips)
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        samples = [reader[n] for n in some]
        pixels = encoder.pixels_of(sample_frames(sample, config) for sample in samples)
        for _ in range(crops):
            boxes = [random_box(config.grid, rng) for _ in some]
            labels = model.pseudo_labels(
                pixels, torch.tensor(boxes, device=device), prompts, encoder.black
            )
            values, best = (part.tolist() for part in labels.max(dim=1))
            for sample, n, box, i, probability in zip(
                samples, some, boxes, best, values, strict=True
            ):
                shown = entities_in_crop(sample.about, clips[n][2], box, config.grid)
                found.append(Named(*clips[n][:2], shown, entities[i], probability, box))
    return found


def add_entities(results: Results, clips: list[Named], entities: list[str]) -> None:
    """Adds the accuracy on whole clips, with that of the best constant; nothing without a clip."""
    if clips:
        right = np.array([clip.right for clip in clips])
        queries = Queries.of([clip.id for clip in clips], [clip.captions for clip in clips])
        chance = best_constant([clip.truth for clip in clips], entities)
        results.add(Score(ENTITY_ACCURACY, right * 100.0, chance, queries), "prompter", "entities")
        rows = [{"id": c.id, "named": c.named, "truth": c.truth, "right": c.right} for c in clips]
        results.table("entities", rows)


def add_crops(results: Results, crops: list[Named], entities: list[str], threshold: float) -> None:
    """Adds the share of the crops that PEM keeps and the accuracy on them, which is 0 where a crop shows no entity. Of
    the crops that show one: the accuracy, that of the labels that the prompter is sure of and their share, the expected
    calibration error. Each accuracy has that of the best constant on the same crops."""
    if not crops:
        return
    probability = np.array([crop.probability for crop in crops])
    right = np.array([crop.right for crop in crops], bool)
    shows, kept = np.array([bool(crop.truth) for crop in crops]), probability >= threshold
    sure = shows & (probability >= SURE)
    queries = Queries.of([crop.id for crop in crops], [str(crop.box) for crop in crops])
    some_of = ((CROP_ACCURACY, shows), (KEPT_CROP_ACCURACY, kept), (SURE_CROP_ACCURACY, sure))
    for metric, some in some_of:
        if some.any():
            chance = best_constant(
                [crop.truth for crop, taken in zip(crops, some, strict=True) if taken], entities
            )
            results.add(
                Score(metric, right[some] * 100.0, chance, queries.select(some)),
                CROPS,
                "entity_crops",
            )
    results.add(Score(KEPT_CROPS, kept * 100.0, None, queries), CROPS, "entity_crops")
    if shows.any():
        results.add(
            Score(SURE_CROPS, sure[shows] * 100.0, None, queries.select(shows)),
            CROPS,
            "entity_crops",
        )
        bins = calibration(probability[shows], right[shows])
        error = (
            100 * sum(count * abs(mean - accuracy) for count, mean, accuracy in bins) / shows.sum()
        )
        results.add_value(CALIBRATION_ERROR, CROPS, "entity_crops", error, int(shows.sum()))
    columns = ("id", "box", "named", "probability", "truth", "right")
    rows = [{key: getattr(crop, key) for key in columns} for crop in crops]
    results.table(
        "entity_crops", [row | {"kept": bool(keeps)} for row, keeps in zip(rows, kept, strict=True)]
    )


def calibration(probability: np.ndarray, right: np.ndarray) -> list[tuple[int, float, float]]:
    """The number, mean probability and accuracy of the labels (N,) in each of BINS equal intervals of probability that
    has any (Guo et al., On Calibration of Modern Neural Networks, 2017)."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    some_of = [place == number for number in range(BINS)]
    return [
        (int(s.sum()), float(probability[s].mean()), float(right[s].mean()))
        for s in some_of
        if s.any()
    ]


def entities_in_crop(about: dict, truth: list[str], box: Sequence[int], grid: int) -> list[str]:
    """Those of `truth`, the entities of a clip, of which a crop shows at least half, over the times of the column
    `places`: squares (left, top, right, bottom; fractions of the frame) by entity. All of them if it has no places.

    box: left, top, width, height in patches.
    """
    places = about["meta"].get("places")
    if not isinstance(places, dict):
        return truth
    start, size = np.array(box, float).reshape(2, 2) / grid

    def shown(name: str) -> float:
        squares = (
            np.array(places.get(name, []), float).reshape(-1, 2, 2).clip(0, 1)
        )  # (T, corner, x or y)
        inside = np.minimum(squares[:, 1], start + size) - np.maximum(squares[:, 0], start)
        whole = (squares[:, 1] - squares[:, 0]).prod(axis=1)
        return float(inside.clip(0).prod(axis=1).sum() / max(whole.sum(), 1e-9))

    return [name for name in truth if shown(name) >= LEAST_SHOWN]


def known(reader: ShardReader, entities: list[str]) -> dict[int, tuple[str, str, list[str]]]:
    """The id, the captions and the known entities of each sample that has some, by its number."""
    rows = ((n, reader[n].about) for n in range(len(reader)))
    truths = ((n, about, true_entities(about, entities)) for n, about in rows)
    return {
        n: (about["id"], CAPTIONS.join(about["captions"]), truth)
        for n, about, truth in truths
        if truth
    }


def best_constant(truths: list[list[str]], entities: list[str]) -> float:
    """The accuracy (%) of always predicting the entity that is in most clips."""
    return 100 * max(sum(entity in truth for truth in truths) for entity in entities) / len(truths)


def true_entities(about: dict, entities: list[str]) -> list[str]:
    """Those of `entities` that a sample shows: by the column `entities` of the manifest if it is a list, otherwise the
    words of the captions."""
    stated = about["meta"].get("entities")
    if isinstance(stated, list):
        return [e for e in stated if e in entities]
    words = set(re.findall(r"[^\W\d_]+", " ".join(about["captions"]).lower()))
    return [entity for entity in entities if entity in words]
