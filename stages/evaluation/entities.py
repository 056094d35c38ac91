"""Entity accuracy of the prompter, and that of the best constant prediction."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alpro.models.folder import ModelFolder
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.encode import encode_videos
from alpro.stages.evaluation.metrics import CAPTIONS


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
    truths = {n: truth for n in range(len(reader)) if (truth := true_entities(reader[n].about, entities))}
    if not truths:
        return None
    numbers = list(truths)
    videos = encode_videos(NormalizedModel.from_folder(prompter, device), reader, numbers, device)
    best = (videos.features @ prompts["video"].to(device).T).argmax(1).tolist()
    named = [entities[i] for i in best]
    right = [name in truths[n] for n, name in zip(numbers, named, strict=True)]
    constant = max(sum(entity in truth for truth in truths.values()) for entity in entities) / len(truths)
    ids = reader.column("id").to_pylist()
    return EntityScore(
        float(np.mean(right) * 100),
        constant * 100,
        [ids[n] for n in numbers],
        named,
        [truths[n] for n in numbers],
        [CAPTIONS.join(reader[n].about["captions"]) for n in numbers],
    )


def true_entities(about: dict, entities: list[str]) -> list[str]:
    """The known entities of a sample."""
    stated = about["meta"].get("entities")
    if isinstance(stated, list):
        return [e for e in stated if e in entities]
    words = set(re.findall(r"[a-z'-]+", " ".join(about["captions"]).lower()))
    return [entity for entity in entities if entity in words]
