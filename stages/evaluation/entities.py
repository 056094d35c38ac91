"""Entity accuracy of a prompter on videos and on crops, the accuracy of the best constant, and the
calibration of the labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import cast

import numpy as np
import pyarrow as pa
import regex
import torch

from alpro.inference.clips import read_frames
from alpro.inference.matching import Videos
from alpro.models.alpro import Prompter
from alpro.models.words import find_words
from alpro.shards.schema import KINDS
from alpro.shards.transforms import random_box
from alpro.stages.evaluation.gallery import Gallery, Labels
from alpro.stages.evaluation.loaded_model import VIDEO_BATCH, LoadedModel, similarities
from alpro.stages.evaluation.metrics import (
    CALIBRATION_ERROR,
    CAPTIONS,
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    Metric,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results, Row
from alpro.stages.evaluation.statistics import calibration_error

MIN_SHOWN_FRACTION = 0.5  # fraction of an object that must lie inside the crop
CROP_SEED = [0, 59]
# First letter of a word in a script that is written without spaces.
WITHOUT_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)


def add_entities(
    results: Results, model: LoadedModel, gallery: Gallery, videos: Videos
) -> None:
    """Add the accuracy of the most likely entity of each video with a known one, and the accuracy
    of the best constant."""
    shown = find_shown_entities(gallery, model.bundle.entities)
    if not shown:
        return

    features = videos.features[[*shown]]
    # Videos and images have prompts of their own.
    best = {
        kind: similarities(features, prompts).argmax(1).tolist()
        for kind, prompts in model.bundle.prompts.items()
    }
    rows = []
    captions = []
    for row, (index, truth) in enumerate(shown.items()):
        metadata = gallery.videos[index].metadata
        indices = best.get(metadata["kind"], best["video"])
        named = model.bundle.entities[indices[row]]
        captions.append(CAPTIONS.join(metadata["captions"]))
        right = named in truth
        rows.append(
            {"id": gallery.ids[index], "named": named, "truth": truth, "right": right}
        )

    score = accuracy(ENTITY_ACCURACY, rows, captions)
    results.add(score, "entities", "on whole clips")
    results.tables["entities"] = pa.Table.from_pylist(rows)


def accuracy(metric: Metric, rows: list[Row], texts: list[str]) -> Score:
    """Return the accuracy of what rows name, beside that of the best constant.

    Args:
        metric: Name of the accuracy.
        rows: Rows with `id`, `truth` and `right`.
        texts: Tell the rows of a video apart.
    """
    right = np.array([row["right"] for row in rows]) * 100.0
    # The best constant is the entity that most of them show.
    counts = Counter(chain.from_iterable({*row["truth"]} for row in rows))
    chance = 100 * max(counts.values(), default=0) / len(rows)
    return Score(metric, right, chance, Queries.of([row["id"] for row in rows], texts))


def add_crops(
    results: Results,
    model: LoadedModel,
    gallery: Gallery,
    crops: int,
    threshold: float,
) -> None:
    """Add the share of the crops that PEM keeps, the accuracy on them and the expected calibration
    error of all crops. PEM cannot know which of them show an entity: without one, no label is right.

    Of the crops that show one: the accuracy. Each accuracy has the accuracy of the best constant on
    the same crops.
    """
    rows = label_crops(model, gallery, crops)
    if not rows:
        return
    for row in rows:
        row["kept"] = row["probability"] >= threshold
    showing = [row for row in rows if row["truth"]]
    kept = [row for row in rows if row["kept"]]

    scores = []
    for metric, subset in ((CROP_ACCURACY, showing), (KEPT_CROP_ACCURACY, kept)):
        if subset:
            scores.append(accuracy(metric, subset, describe_boxes(subset)))
    results.tables["entity_crops"] = table = pa.Table.from_pylist(rows)
    queries = Queries.of(table["id"].to_pylist(), describe_boxes(rows))
    is_kept = table["kept"].to_numpy() * 100.0
    scores.append(Score(KEPT_CROPS, is_kept, queries=queries))
    error = calibration_error(
        table["probability"].to_numpy(), table["right"].to_numpy()
    )
    # No mean over queries: it has no interval.
    scores.append(Score(CALIBRATION_ERROR, np.array([error]), items=len(rows)))
    for score in scores:
        results.add(score, "entity_crops", "on random crops")


def describe_boxes(rows: list[Row]) -> list[str]:
    """Return the boxes of crops as texts, which tell the crops of a video apart."""
    return [str(row["box"]) for row in rows]


def label_crops(model: LoadedModel, gallery: Gallery, crops: int) -> list[Row]:
    """Return the most likely entities of `crops` random crops of every video with a known one.

    Each crop is black outside as in PEM (paper, section 3.2.2), of 30 to 50 % of the frame, drawn
    with a fixed seed.

    Returns:
        Rows with the id of the video, the box (left, top, width and height of the crop in patches),
        the entity that is named, its probability, and the entities that the crop shows.
    """
    shown = find_shown_entities(gallery, model.bundle.entities)
    if not shown:
        return []
    prompter = cast(Prompter, model.encoder.model)
    config = prompter.config.video
    rng = np.random.default_rng(CROP_SEED)

    rows = []
    # Videos and images have prompts of their own.
    for kind in KINDS:
        prompts = model.bundle.prompts.get(kind, model.bundle.prompts["video"])
        indices = [i for i in shown if gallery.videos[i].metadata["kind"] == kind]
        for start in range(0, len(indices), VIDEO_BATCH):
            batch = indices[start : start + VIDEO_BATCH]
            # Once for all crops of the batch.
            pixels = model.encoder.clip_pixels(
                read_frames(gallery.sample(index), config.frames, config.image_size)
                for index in batch
            )
            for _ in range(crops):
                boxes = [random_box(config.grid, rng) for _ in batch]
                probabilities, best = prompter.pseudo_labels(
                    pixels,
                    torch.tensor(boxes, device=pixels.device),
                    prompts,
                    model.encoder.black,
                ).max(dim=1)
                for row, index in enumerate(batch):
                    named = model.bundle.entities[int(best[row])]
                    metadata = gallery.videos[index].metadata
                    truth = entities_in_crop(
                        metadata, shown[index], boxes[row], config.grid
                    )
                    rows.append(
                        {
                            "id": gallery.ids[index],
                            "box": boxes[row],
                            "named": named,
                            "probability": float(probabilities[row]),
                            "truth": truth,
                            "right": named in truth,
                        }
                    )
    return rows


def entities_in_crop(
    metadata: Labels,
    entities: list[str],
    box: Sequence[int],
    grid: int,
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
        squares = np.array(places.get(name, []), float).reshape(-1, 2, 2).clip(0, 1)
        first, last = squares.swapaxes(0, 1)  # corners (T, x or y)
        inside = np.minimum(last, start + size) - np.maximum(first, start)
        whole = (last - first).prod(axis=1)
        # `inside` is negative where crop and square do not meet. Without a square nothing is
        # shown: 0 / 1e-9.
        return float(inside.clip(0).prod(axis=1).sum() / max(whole.sum(), 1e-9))

    return [name for name in entities if shown(name) >= MIN_SHOWN_FRACTION]


def find_shown_entities(
    gallery: Gallery, entities: Sequence[str]
) -> dict[int, list[str]]:
    """Return the entities that each video of a gallery shows, for the videos that show any."""
    shown = {}
    for index, video in enumerate(gallery.videos):
        truth = true_entities(video.metadata, entities)
        if truth:
            shown[index] = truth
    return shown


def true_entities(metadata: Labels, entities: Sequence[str]) -> list[str]:
    """Return the entities that a sample shows: those in the column `entities` of the manifest if it
    is a list, otherwise those in the words of the captions."""
    stated = metadata["meta"].get("entities")
    if isinstance(stated, list):
        return [entity for entity in stated if entity in entities]
    return find_entities(metadata["captions"], entities)


def find_entities(texts: Iterable[str], entities: Iterable[str]) -> list[str]:
    """Return the entities that texts contain as whole words, in their order.

    An entity of several words must be one phrase.

    >>> find_entities(["An ice cream.", "two balls"], ["cream", "ice cream", "ball"])
    ['cream', 'ice cream']
    """
    # Spaces around each word distinguish it from a part of another word. A phrase cannot cross the
    # line break between two texts.
    searched = "\n".join(f" {' '.join(find_words(text))} " for text in texts)
    return [
        entity for entity in entities if (key := _phrase(entity)) and key in searched
    ]


@lru_cache(maxsize=4096)  # each sample is searched for the same entities
def _phrase(entity: str) -> str:
    """Return the text that `find_entities` looks for; empty for an entity without letters."""
    words = " ".join(find_words(entity))
    if not words or WITHOUT_SPACES.match(words):
        return words
    return f" {words} "
