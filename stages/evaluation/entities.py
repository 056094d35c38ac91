"""Entity accuracy of the prompter on clips and on crops, and that of the best constant prediction."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.shards.reader import ShardReader
from alpro.stages.encoding.encode import Texts, encode_videos, float32, sample_frames, similarities
from alpro.stages.evaluation.metrics import CAPTIONS
from alpro.stages.training.masking import random_box


@dataclass
class EntityScore:
    """Accuracy (%) of the most likely entity over clips with known entities, and the prediction for each clip with its
    captions."""

    accuracy: float
    best_constant: float
    ids: list[str]
    named: list[str]
    truth: list[list[str]]
    captions: list[str]

    @property
    def right(self) -> np.ndarray:
        """Whether the prediction for each clip is right: (clips,) boolean."""
        return np.array([name in truth for name, truth in zip(self.named, self.truth, strict=True)])


def entity_accuracy(
    prompter: ModelFolder,
    prompts: dict[str, Tensor],
    entities: list[str],
    folder: Path,
    split: str,
    device: torch.device,
    exclude: Collection[str] = (),
) -> EntityScore | None:
    """Predicts the most likely entity of every video of a split. None if no video has a known entity.

    The true entities are those in the manifest's column `entities` if present, otherwise those in the captions.
    """
    reader = ShardReader(folder, split, "video", exclude)
    truths = known_entities(reader, entities)
    if not truths:
        return None
    numbers = list(truths)
    videos = encode_videos(prompter.normalized(device), reader, numbers, device)
    best = similarities(videos.features, prompts["video"].to(device)).argmax(1).tolist()
    named = [entities[i] for i in best]
    right = float(np.mean([name in truths[n] for n, name in zip(numbers, named, strict=True)]) * 100)
    constant, ids = best_constant(list(truths.values()), entities), reader.column("id").to_pylist()
    captions = [CAPTIONS.join(reader[n].about["captions"]) for n in numbers]
    return EntityScore(right, constant, [ids[n] for n in numbers], named, list(truths.values()), captions)


@dataclass
class Crop:
    """The most likely entity of a random crop of a clip, and the entities of the whole clip."""

    id: str
    box: tuple[int, int, int, int]  # left, top, width, height in patches
    named: str
    probability: float
    truth: list[str]

    @property
    def right(self) -> bool:
        return self.named in self.truth


def entities_of_crops(
    prompter: ModelFolder,
    prompts: dict[str, Tensor],
    entities: list[str],
    folder: Path,
    split: str,
    crops: int,
    device: torch.device,
    exclude: Collection[str] = (),
    batch: int = 32,
) -> list[Crop]:
    """The prompter's entities on `crops` random crops of every video with known entities, each black outside as in PEM
    (paper, section 3.2.2), of 30 to 50 % of the frame, drawn with a fixed seed."""
    reader = ShardReader(folder, split, "video", exclude)
    truths, ids = known_entities(reader, entities), reader.column("id").to_pylist()
    encoder, model = prompter.normalized(device), cast(Prompter, prompter.model)
    config, rng = model.config.video, np.random.default_rng([0, 59])
    found = []
    numbers = list(truths)
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        frames = np.stack([sample_frames(reader[n], config) for n in some])
        pixels = encoder.pixels(torch.from_numpy(frames).to(device))
        for _ in range(crops):
            boxes = [random_box(config.grid, rng) for _ in some]
            labels = model.pseudo_labels(
                pixels, torch.tensor(boxes, device=device), prompts["video"].to(device), encoder.black
            )
            best = labels.max(dim=1)
            found += [
                Crop(ids[n], box, entities[entity], probability, truths[n])
                for n, box, entity, probability in zip(
                    some, boxes, best.indices.tolist(), best.values.tolist(), strict=True
                )
            ]
    return found


@torch.no_grad()
def points_at(model: Alpro, text: Texts, videos: Tensor, pairs: np.ndarray, batch: int = 64) -> np.ndarray:
    """The patch (N,) where the PEM head gives the highest probability to an entity in a video, for pairs (N, 2) of
    video and entity. videos: their tokens (V, 1 + P, D). text: the one that is fused with each of them."""
    assert model.pem_head
    best = []
    for start in range(0, len(pairs), batch):
        of_video, entity = torch.from_numpy(pairs[start : start + batch].T).to(videos.device)
        both = text.tokens.expand(len(entity), -1, -1), text.mask.expand(len(entity), -1)
        fused = model.fused_patches(*both, videos[of_video])
        with float32(videos.device):
            probabilities = model.pem_head(fused.float()).softmax(2)  # (B, P, M)
        best.append(probabilities[torch.arange(len(entity)), :, entity].argmax(1))
    return torch.cat(best).cpu().numpy()


def patches_of(thing: dict[str, Any], grid: int) -> np.ndarray:
    """The patches (grid * grid,) whose middle is inside a thing, a circle with `x`, `y`, `radius` as fractions of the
    frame."""
    middles = (np.arange(grid) + 0.5) / grid
    return (np.hypot(middles[:, None] - thing["y"], middles - thing["x"]) <= thing["radius"]).ravel()


def known_entities(reader: ShardReader, entities: list[str]) -> dict[int, list[str]]:
    """The known entities of each sample that has some, by its number."""
    return {n: truth for n in range(len(reader)) if (truth := true_entities(reader[n].about, entities))}


def best_constant(truths: list[list[str]], entities: list[str]) -> float:
    """The accuracy (%) of always predicting the entity that is in most clips."""
    return 100 * max(sum(entity in truth for truth in truths) for entity in entities) / len(truths)


def true_entities(about: dict, entities: list[str]) -> list[str]:
    stated = about["meta"].get("entities")
    if isinstance(stated, list):
        return [e for e in stated if e in entities]
    words = set(re.findall(r"[a-z'-]+", " ".join(about["captions"]).lower()))
    return [entity for entity in entities if entity in words]
