"""The labels of PEM that an arm trains with: a prompter's, true ones, and mixtures of them."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from alpro.shards.reader import ShardReader

# prompter: its labels. permuted: those of the next sample of the batch. true: the share of each
# entity in what a crop shows. mixed: a share of the true ones stays, the others are those of the
# next sample. errors: true ones, but the prompter's where it names nothing that the crop shows.
Labels = Literal["prompter", "permuted", "true", "mixed", "errors"]
Things = list[dict[str, Any]]  # each with `kind`, and `x`, `y`, `radius` as fractions of the frame


class TrueLabels:
    """The true labels of crops.

    entities: the names of the classes; things: those of each still, by its id; grid: patches in a
    row of the frame.
    """

    def __init__(self, entities: Sequence[str], things: dict[str, Things], grid: int):
        self.indices = {name: index for index, name in enumerate(entities)}
        self.things = things
        self.grid = grid

    def of(self, ids: Sequence[str], boxes: Tensor) -> Tensor:
        """The labels (B, M) of crops of stills, on the device of `boxes` (B, 4)."""
        rows = [
            true_labels(self.things[still], box, self.grid, self.indices)
            for still, box in zip(ids, boxes.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).to(boxes.device)


def arm_labels(labels: Labels, true: Tensor, of_prompter: Tensor, kept: Tensor) -> Tensor:
    """The labels (B, M) of an arm, made of the true ones and the prompter's.

    kept (B,): which true labels a mixture keeps.
    """
    if labels == "true":
        return true
    if labels == "mixed":
        return torch.where(kept[:, None], true, true.roll(1, 0))
    if labels == "errors":
        named = of_prompter.argmax(dim=1, keepdim=True)
        return torch.where(true.gather(1, named) > 0, true, of_prompter.to(true.dtype))
    return of_prompter.roll(1, 0) if labels == "permuted" else of_prompter


def kept_by_mixture(ids: Sequence[str], boxes: Tensor, share: float) -> Tensor:
    """Which crops (B,) keep their true label in a mixture. It depends on still and box alone."""
    uniforms = []
    for still, box in zip(ids, boxes.tolist(), strict=True):
        rng = np.random.default_rng([zlib.crc32(still.encode()), *box])
        uniforms.append(rng.random())
    return torch.tensor(uniforms, device=boxes.device) < share


def true_labels(things: Things, box: list[int], grid: int, entities: dict[str, int]) -> np.ndarray:
    """The share (M,) of each entity in the area of the things that a crop shows.

    Zeros if the crop shows none. Each thing counts as a square. box: left, top, width, height in
    patches. entities: their positions by name.
    """
    start, size = np.array(box).reshape(2, 2) / grid
    labels = np.zeros(len(entities), np.float32)

    for thing in things:
        if thing["kind"] not in entities:
            continue
        center = np.array([thing["x"], thing["y"]])
        upper = np.minimum(center + thing["radius"], start + size)
        lower = np.maximum(center - thing["radius"], start)
        labels[entities[thing["kind"]]] += np.maximum(upper - lower, 0).prod()

    return labels / (labels.sum() or 1)


def things_of(corpus: Path, split: str) -> dict[str, Things]:
    """The things of each still of a split, by its id."""
    reader = ShardReader(corpus, split, "image")
    abouts = (reader[number].metadata for number in range(len(reader)))
    return {about["id"]: about["meta"]["things"] for about in abouts}
