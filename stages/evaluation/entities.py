"""Entity accuracy of a prompter on videos and on crops, the accuracy of the best constant, and the
calibration of the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from alpro.inference.encoding import Videos, sample_frames, similarities
from alpro.models.alpro import Prompter
from alpro.models.words import find_entities
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import VIDEO_BATCH, LoadedModel
from alpro.stages.evaluation.metrics import (
    CALIBRATION_ERROR,
    CAPTIONS,
    CONFIDENT_CROP_ACCURACY,
    CONFIDENT_CROPS,
    CONFIDENT_PROBABILITY,
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    Metric,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results, list_rows
from alpro.stages.evaluation.statistics import calibration_error
from alpro.stages.training.batch import random_box

MIN_SHOWN_FRACTION = 0.5  # fraction of an object that must lie inside the crop
CROP_SEED = [0, 59]
ON_CROPS = "on random crops"


@dataclass(frozen=True)
class LabeledVideo:
    """A video of a gallery whose entities are known.

    Attributes:
        index: Its index in the gallery.
        metadata: What the corpus says of it.
        entities: Entities that it shows.
    """

    index: int
    metadata: Mapping[str, Any]
    entities: list[str]


@dataclass(frozen=True)
class CropLabel:
    """The most likely entity of a crop.

    Attributes:
        id: Id of the video.
        box: Left, top, width and height of the crop, in patches.
        named: The entity.
        probability: Its probability.
        entities: Entities that the crop shows.
    """

    id: str
    box: tuple[int, int, int, int]
    named: str
    probability: float
    entities: list[str]


def add_entities(results: Results, model: LoadedModel, gallery: Gallery, videos: Videos) -> None:
    """Add the accuracy of the most likely entity of each video with a known one, and the accuracy
    of the best constant."""
    labeled = find_labeled_videos(gallery, model.entities)
    if not labeled:
        return

    indices = torch.tensor([video.index for video in labeled], device=videos.features.device)
    features = videos.features[indices]
    # Videos and images have prompts of their own.
    best = {
        kind: similarities(features, prompts).argmax(1).tolist()
        for kind, prompts in model.prompts.items()
    }
    named = []
    for row, video in enumerate(labeled):
        kind = video.metadata["kind"]
        named.append(model.entities[best[kind if kind in best else "video"][row]])

    shown = [video.entities for video in labeled]
    right = [name in entities for name, entities in zip(named, shown, strict=True)]
    ids = [gallery.ids[video.index] for video in labeled]
    captions = [CAPTIONS.join(video.metadata["captions"]) for video in labeled]
    chance = best_constant(shown, model.entities)
    score = Score(ENTITY_ACCURACY, np.array(right) * 100.0, chance, Queries.of(ids, captions))
    results.add(score, "entities", "on whole clips")
    results.tables["entities"] = list_rows(id=ids, named=named, truth=shown, right=right)


def add_crops(
    results: Results, model: LoadedModel, gallery: Gallery, crops: int, threshold: float
) -> None:
    """Add the share of the crops that PEM keeps and the accuracy on them, which is 0 where a crop
    shows no entity.

    Of the crops that show one: the accuracy, the accuracy and share of confident labels, and the
    expected calibration error. Each accuracy has the accuracy of the best constant on the same
    crops.
    """
    labels = label_crops(model, gallery, crops)
    if not labels:
        return

    probability = np.array([label.probability for label in labels])
    right = np.array([label.named in label.entities for label in labels])
    shows_entity = np.array([bool(label.entities) for label in labels])
    kept = probability >= threshold
    confident = shows_entity & (probability >= CONFIDENT_PROBABILITY)
    # The box tells the crops of a video apart.
    queries = Queries.of([label.id for label in labels], [str(label.box) for label in labels])

    def add(metric: Metric, values: np.ndarray, subset: np.ndarray, chance: float | None) -> None:
        score = Score(metric, values[subset] * 100.0, chance, queries.select(subset))
        results.add(score, "entity_crops", ON_CROPS)

    for metric, subset in (
        (CROP_ACCURACY, shows_entity),
        (KEPT_CROP_ACCURACY, kept),
        (CONFIDENT_CROP_ACCURACY, confident),
    ):
        if subset.any():
            shown = [labels[index].entities for index in np.flatnonzero(subset)]
            add(metric, right, subset, best_constant(shown, model.entities))

    # PEM cannot know which crops show an entity: this share is of all.
    add(KEPT_CROPS, kept, np.ones(len(labels), bool), None)
    if shows_entity.any():
        add(CONFIDENT_CROPS, confident, shows_entity, None)
        error = calibration_error(probability[shows_entity], right[shows_entity])
        count = int(shows_entity.sum())
        results.add_value(CALIBRATION_ERROR, "entity_crops", ON_CROPS, error, count)

    results.tables["entity_crops"] = list_rows(
        id=queries.ids,
        box=[label.box for label in labels],
        named=[label.named for label in labels],
        probability=probability.tolist(),
        truth=[label.entities for label in labels],
        right=right.tolist(),
        kept=kept.tolist(),
    )


def label_crops(model: LoadedModel, gallery: Gallery, crops: int) -> list[CropLabel]:
    """Return the most likely entities of `crops` random crops of every video with a known one.

    Each crop is black outside as in PEM (paper, section 3.2.2), of 30 to 50 % of the frame, drawn
    with a fixed seed.
    """
    labeled = find_labeled_videos(gallery, model.entities) if crops else []
    if not labeled:
        return []
    prompter = cast(Prompter, model.encoder.model)
    config = prompter.config.video
    rng = np.random.default_rng(CROP_SEED)

    labels = []
    for start in range(0, len(labeled), VIDEO_BATCH):
        batch = labeled[start : start + VIDEO_BATCH]
        # Once for all crops of the batch.
        pixels = model.encoder.clip_pixels(
            sample_frames(gallery.sample(video.index), config) for video in batch
        )
        for _ in range(crops):
            boxes = [random_box(config.grid, rng) for _ in batch]
            probabilities, best = prompter.pseudo_labels(
                pixels,
                torch.tensor(boxes, device=pixels.device),
                model.prompts["video"],
                model.encoder.black,
            ).max(dim=1)
            for row, video in enumerate(batch):
                label = CropLabel(
                    gallery.ids[video.index],
                    boxes[row],
                    named=model.entities[int(best[row])],
                    probability=float(probabilities[row]),
                    entities=entities_in_crop(
                        video.metadata, video.entities, boxes[row], config.grid
                    ),
                )
                labels.append(label)
    return labels


def entities_in_crop(
    metadata: Mapping[str, Any], entities: list[str], box: Sequence[int], grid: int
) -> list[str]:
    """Return the entities of a video of which a crop shows at least half, over the times of the
    column `places`: squares (left, top, right, bottom; fractions of the frame) by entity. All of
    them if the video has no places.

    Args:
        metadata: What the corpus says of the video.
        entities: Entities of the video.
        box: Left, top, width and height in patches.
        grid: Patches of a side of the frame.
    """
    places = metadata["meta"].get("places")
    if not isinstance(places, dict):
        return entities

    start, size = np.array(box, float).reshape(2, 2) / grid

    def shown(name: str) -> float:
        squares = np.array(places.get(name, []), float)
        squares = squares.reshape(-1, 2, 2).clip(0, 1)  # (T, corner, x or y)
        inside = np.minimum(squares[:, 1], start + size) - np.maximum(squares[:, 0], start)
        whole = (squares[:, 1] - squares[:, 0]).prod(axis=1)
        # `inside` is negative where crop and square do not meet. Without a square nothing is
        # shown: 0 / 1e-9.
        return float(inside.clip(0).prod(axis=1).sum() / max(whole.sum(), 1e-9))

    return [name for name in entities if shown(name) >= MIN_SHOWN_FRACTION]


def find_labeled_videos(gallery: Gallery, entities: Sequence[str]) -> list[LabeledVideo]:
    """Return the videos of a gallery that show a known entity."""
    videos = []
    for index in range(len(gallery.ids)):
        metadata = gallery.metadata(index)
        shown = true_entities(metadata, entities)
        if shown:
            videos.append(LabeledVideo(index, metadata, shown))
    return videos


def best_constant(shown: Sequence[Sequence[str]], entities: Sequence[str]) -> float:
    """Return the accuracy (%) of always predicting the entity that most videos show.

    Args:
        shown: Entities that each video shows.
        entities: All entities.
    """
    counts = [sum(entity in one for one in shown) for entity in entities]
    return 100 * max(counts) / len(shown)


def true_entities(metadata: Mapping[str, Any], entities: Sequence[str]) -> list[str]:
    """Return the entities that a sample shows: those in the column `entities` of the manifest if it
    is a list, otherwise those in the words of the captions."""
    stated = metadata["meta"].get("entities")
    if isinstance(stated, list):
        return [entity for entity in stated if entity in entities]
    return find_entities(metadata["captions"], list(entities))
