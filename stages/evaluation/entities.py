"""Entity accuracy of the prompter on clips and on crops, and that of the best constant prediction."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from alpro.models.alpro import Prompter
from alpro.models.folder import ModelFolder
from alpro.shards.reader import ShardReader
from alpro.stages.encoding.encode import encode_videos, sample_frames, similarities
from alpro.stages.evaluation.metrics import (
    CAPTIONS,
    CROP_ACCURACY,
    ENTITY_ACCURACY,
    KEPT_CROP_ACCURACY,
    KEPT_CROPS,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.training.masking import random_box

CROPS = "prompter on random crops, which may show no entity of the clip"


@dataclass
class Named:
    """The most likely entity of a clip, or of a crop of it, and the entities of the whole clip."""

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
    prompter: ModelFolder,
    prompts: Tensor,
    entities: list[str],
    folder: Path,
    split: str,
    exclude: Collection[str],
    device: torch.device,
) -> list[Named]:
    """The most likely entity of every video of a split with a known entity (`true_entities`). prompts: (M, E)."""
    reader = ShardReader(folder, split, "video", exclude)
    clips = known(reader, entities)
    if not clips:
        return []
    videos = encode_videos(prompter.normalized(device), reader, list(clips), device)
    best = similarities(videos.features, prompts).argmax(1).tolist()
    return [Named(*clip, entities[i]) for clip, i in zip(clips.values(), best, strict=True)]


def entities_of_crops(
    prompter: ModelFolder,
    prompts: Tensor,
    entities: list[str],
    folder: Path,
    split: str,
    exclude: Collection[str],
    device: torch.device,
    crops: int,
    batch: int = 32,
) -> list[Named]:
    """The most likely entities of `crops` random crops of every video with a known entity, each black outside as in PEM
    (paper, section 3.2.2), of 30 to 50 % of the frame, drawn with a fixed seed."""
    reader = ShardReader(folder, split, "video", exclude)
    clips = known(reader, entities)
    encoder, model = prompter.normalized(device), cast(Prompter, prompter.model)
    config, rng = model.config.video, np.random.default_rng([0, 59])
    found, numbers = [], list(clips)
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        frames = np.stack([sample_frames(reader[n], config) for n in some])
        pixels = encoder.pixels(torch.from_numpy(frames).to(device))
        for _ in range(crops):
            boxes = [random_box(config.grid, rng) for _ in some]
            labels = model.pseudo_labels(pixels, torch.tensor(boxes, device=device), prompts, encoder.black)
            best = labels.max(dim=1)
            for n, box, i, probability in zip(some, boxes, best.indices.tolist(), best.values.tolist(), strict=True):
                found.append(Named(*clips[n], entities[i], probability, box))
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
    """Adds the accuracy on all crops and on those that PEM keeps, with the best constant on the same crops, and the
    share that it keeps. The truth is what the clip shows: a crop may show none of it."""
    kept = np.array([crop.probability >= threshold for crop in crops], bool)
    right = np.array([crop.right for crop in crops], bool)
    queries = Queries.of([crop.id for crop in crops], [str(crop.box) for crop in crops])
    for metric, some in ((CROP_ACCURACY, np.ones_like(kept)), (KEPT_CROP_ACCURACY, kept)):
        if some.any():
            chance = best_constant([crop.truth for crop, taken in zip(crops, some, strict=True) if taken], entities)
            results.add(Score(metric, right[some] * 100.0, chance, queries.select(some)), CROPS, "entity_crops")
    if crops:
        results.add(Score(KEPT_CROPS, kept * 100.0, None, queries), CROPS, "entity_crops")
        columns = ("id", "box", "named", "probability", "truth", "right")
        rows = [{key: getattr(crop, key) for key in columns} for crop in crops]
        results.table("entity_crops", [row | {"kept": bool(keeps)} for row, keeps in zip(rows, kept, strict=True)])


def known(reader: ShardReader, entities: list[str]) -> dict[int, tuple[str, str, list[str]]]:
    """The id, the captions and the known entities of each sample that has some, by its number."""
    rows = ((n, reader[n].about) for n in range(len(reader)))
    truths = ((n, about, true_entities(about, entities)) for n, about in rows)
    return {n: (about["id"], CAPTIONS.join(about["captions"]), truth) for n, about, truth in truths if truth}


def best_constant(truths: list[list[str]], entities: list[str]) -> float:
    """The accuracy (%) of always predicting the entity that is in most clips."""
    return 100 * max(sum(entity in truth for truth in truths) for entity in entities) / len(truths)


def true_entities(about: dict, entities: list[str]) -> list[str]:
    """Those of `entities` that a sample shows: by the column `entities` of the manifest if it is a list, otherwise the
    words of the captions."""
    stated = about["meta"].get("entities")
    if isinstance(stated, list):
        return [e for e in stated if e in entities]
    words = set(re.findall(r"[a-z'-]+", " ".join(about["captions"]).lower()))
    return [entity for entity in entities if entity in words]
