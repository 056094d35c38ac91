"""Entity accuracy of the prompter on clips and on crops, that of the best constant prediction, and
its calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from alpro.inference.encoding import encode_videos, sample_frames, similarities
from alpro.models.alpro import Prompter
from alpro.models.frames import NormalizedModel
from alpro.models.words import find_entities
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
    Metric,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import calibration_error
from alpro.stages.training.batch import random_box

CROPS = "prompter on random crops"
CONFIDENT = 0.6  # probability from which a label counts as confident
MIN_SHOWN_SHARE = 0.5  # share of a thing that a crop must show to be right about it


class KnownClip(NamedTuple):
    """A clip whose entities are known."""

    id: str
    captions: str
    truth: list[str]


@dataclass
class EntityPrediction:
    """The most likely entity of a clip, or of a crop of it, and the entities that it shows."""

    id: str
    captions: str
    truth: list[str]
    named: str
    probability: float = 0.0  # of crops only
    box: tuple[int, int, int, int] | None = None  # left, top, width, height of the crop in patches

    @property
    def correct(self) -> bool:
        return self.named in self.truth


def entities_of_clips(
    encoder: NormalizedModel, prompts: Tensor, entities: list[str], reader: ShardReader
) -> list[EntityPrediction]:
    """The most likely entity of every sample with a known entity (`true_entities`). prompts: (M,
    E)."""
    clips = clips_with_entities(reader, entities)
    if not clips:
        return []

    videos = encode_videos(encoder, reader, list(clips))
    best = similarities(videos.features, prompts).argmax(1).tolist()
    return [
        EntityPrediction(clip.id, clip.captions, truth=clip.truth, named=entities[i])
        for clip, i in zip(clips.values(), best, strict=True)
    ]


def entities_of_crops(
    encoder: NormalizedModel,
    prompts: Tensor,
    entities: list[str],
    reader: ShardReader,
    crops: int,
    batch: int = 32,
) -> list[EntityPrediction]:
    """The most likely entities of `crops` random crops of every sample with a known entity, each
    black outside as in PEM (paper, section 3.2.2), of 30 to 50 % of the frame, drawn with a fixed
    seed. Their truth: `entities_in_crop`."""
    clips = clips_with_entities(reader, entities)
    model = cast(Prompter, encoder.model)
    device = encoder.mean.device
    config = model.config.video
    rng = np.random.default_rng([0, 59])

    predictions = []
    indices = list(clips)
    for start in range(0, len(indices), batch):
        of_batch = indices[start : start + batch]
        samples = [reader[index] for index in of_batch]
        # Once for all crops of the batch.
        pixels = encoder.clip_pixels(sample_frames(sample, config) for sample in samples)
        for _ in range(crops):
            boxes = [random_box(config.grid, rng) for _ in of_batch]
            labels = model.pseudo_labels(
                pixels, torch.tensor(boxes, device=device), prompts, encoder.black
            )
            probabilities, best = labels.max(dim=1)
            for row, index in enumerate(of_batch):
                clip = clips[index]
                prediction = EntityPrediction(
                    clip.id,
                    clip.captions,
                    truth=entities_in_crop(
                        samples[row].metadata, clip.truth, boxes[row], config.grid
                    ),
                    named=entities[int(best[row])],
                    probability=float(probabilities[row]),
                    box=boxes[row],
                )
                predictions.append(prediction)
    return predictions


def add_entities(results: Results, clips: list[EntityPrediction], entities: list[str]) -> None:
    """Adds the accuracy on whole clips, with that of the best constant; nothing without a clip."""
    if not clips:
        return

    correct = np.array([clip.correct for clip in clips])
    queries = Queries.of([clip.id for clip in clips], [clip.captions for clip in clips])
    chance = best_constant([clip.truth for clip in clips], entities)
    score = Score(ENTITY_ACCURACY, correct * 100.0, chance, queries)
    results.add(score, "prompter", "entities")

    rows = [
        {"id": clip.id, "named": clip.named, "truth": clip.truth, "right": clip.correct}
        for clip in clips
    ]
    results.table("entities", rows)


def add_crops(
    results: Results, crops: list[EntityPrediction], entities: list[str], threshold: float
) -> None:
    """Adds the share of the crops that PEM keeps and the accuracy on them, which is 0 where a crop
    shows no entity.

    Of the crops that show one: the accuracy, that of the labels that the prompter is confident of
    and their share, the expected calibration error. Each accuracy has that of the best constant on
    the same crops.
    """
    if not crops:
        return

    probability = np.array([crop.probability for crop in crops])
    correct = np.array([crop.correct for crop in crops], bool)
    shows_entity = np.array([bool(crop.truth) for crop in crops])
    kept = probability >= threshold
    confident = shows_entity & (probability >= CONFIDENT)
    # The box tells the crops of a clip apart.
    queries = Queries.of([crop.id for crop in crops], [str(crop.box) for crop in crops])

    def add(metric: Metric, values: np.ndarray, subset: np.ndarray, chance: float | None) -> None:
        score = Score(metric, values[subset] * 100.0, chance, queries.select(subset))
        results.add(score, CROPS, "entity_crops")

    for metric, subset in (
        (CROP_ACCURACY, shows_entity),
        (KEPT_CROP_ACCURACY, kept),
        (SURE_CROP_ACCURACY, confident),
    ):
        if subset.any():
            truths = [crop.truth for crop, chosen in zip(crops, subset, strict=True) if chosen]
            add(metric, correct, subset, best_constant(truths, entities))

    # PEM cannot know which crops show an entity: this share is of all.
    add(KEPT_CROPS, kept, np.ones(len(crops), bool), None)
    if shows_entity.any():
        add(SURE_CROPS, confident, shows_entity, None)
        error = calibration_error(probability[shows_entity], correct[shows_entity])
        count = int(shows_entity.sum())
        results.add_value(CALIBRATION_ERROR, CROPS, "entity_crops", error, count)

    rows = [
        {
            "id": crop.id,
            "box": crop.box,
            "named": crop.named,
            "probability": crop.probability,
            "truth": crop.truth,
            "right": crop.correct,
            "kept": bool(keeps),
        }
        for crop, keeps in zip(crops, kept, strict=True)
    ]
    results.table("entity_crops", rows)


def entities_in_crop(metadata: dict, truth: list[str], box: Sequence[int], grid: int) -> list[str]:
    """Those of `truth`, the entities of a clip, of which a crop shows at least half, over the times
    of the column `places`: squares (left, top, right, bottom; fractions of the frame) by entity.
    All of them if it has no places.

    box: left, top, width, height in patches.
    """
    places = metadata["meta"].get("places")
    if not isinstance(places, dict):
        return truth

    start, size = np.array(box, float).reshape(2, 2) / grid

    def shown(name: str) -> float:
        squares = np.array(places.get(name, []), float)
        squares = squares.reshape(-1, 2, 2).clip(0, 1)  # (T, corner, x or y)
        inside = np.minimum(squares[:, 1], start + size) - np.maximum(squares[:, 0], start)
        whole = (squares[:, 1] - squares[:, 0]).prod(axis=1)
        # `inside` is negative where crop and square do not meet. Without a square nothing is
        # shown: 0 / 1e-9.
        return float(inside.clip(0).prod(axis=1).sum() / max(whole.sum(), 1e-9))

    return [name for name in truth if shown(name) >= MIN_SHOWN_SHARE]


def clips_with_entities(reader: ShardReader, entities: list[str]) -> dict[int, KnownClip]:
    """The samples that show a known entity, by their index in the reader."""
    clips = {}
    for index in range(len(reader)):
        metadata = reader[index].metadata
        truth = true_entities(metadata, entities)
        if truth:
            captions = CAPTIONS.join(metadata["captions"])
            clips[index] = KnownClip(metadata["id"], captions, truth)
    return clips


def best_constant(truths: list[list[str]], entities: list[str]) -> float:
    """The accuracy (%) of always predicting the entity that is in most clips."""
    counts = [sum(entity in truth for truth in truths) for entity in entities]
    return 100 * max(counts) / len(truths)


def true_entities(metadata: dict, entities: list[str]) -> list[str]:
    """Those of `entities` that a sample shows: by the column `entities` of the manifest if it is a
    list, otherwise the words of the captions."""
    stated = metadata["meta"].get("entities")
    if isinstance(stated, list):
        return [e for e in stated if e in entities]
    return find_entities(metadata["captions"], entities)
