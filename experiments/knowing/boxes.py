"""What fused patches of true boxes say of their things: a linear probe, PEM's head, its teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.inference.encoding import (
    encode_texts,
    encode_videos,
    float32,
    load_model,
    load_prompter,
)
from alpro.inference.prompts import read_prompts
from alpro.models.alpro import Alpro, mean_inside
from alpro.models.losses import box_mask
from alpro.shards.reader import ShardReader
from experiments.silent.scores import Crops, labels_of_boxes, square

# The probe learns from boxes of the first stills of the test split, and answers for the others.
PROBE_STILLS = 200
PROBE_BOXES = (50, 200)
PROBE_REPEATS = 10
PROBE_SEED = 61


@dataclass(frozen=True)
class Boxes:
    """The box of every thing of the test stills.

    numbers: of the stills in `reader`; boxes (N, 4): left, top, width, height in patches; entities
    (N,): the true ones.
    """

    reader: ShardReader
    numbers: list[int]
    boxes: Tensor
    entities: np.ndarray

    @classmethod
    def of(cls, corpus: Path, entities: list[str], grid: int) -> "Boxes":
        reader = ShardReader(corpus, "test", "image")
        numbers = []
        boxes = []
        kinds = []
        for number in range(len(reader)):
            for thing in reader[number].metadata["meta"]["things"]:
                if thing["kind"] in entities:
                    numbers.append(number)
                    boxes.append(box_of(thing, grid))
                    kinds.append(entities.index(thing["kind"]))
        return cls(reader, numbers, torch.tensor(boxes), np.array(kinds))


def box_of(thing: dict, grid: int) -> tuple[int, int, int, int]:
    """The square of a thing, rounded to patches, of at least one: left, top, width, height."""
    left, top, right, bottom = (round(side * grid) for side in square(thing))
    left = min(max(left, 0), grid - 1)
    top = min(max(top, 0), grid - 1)
    width = max(1, min(right, grid) - left)
    height = max(1, min(bottom, grid) - top)
    return left, top, width, height


@torch.no_grad()
def box_scores(
    model_folder: Path,
    teacher: tuple[Path, Path] | None,
    entities: list[str],
    corpus: Path,
    device: torch.device,
) -> dict[str, tuple[float, float]]:
    """Scores (%) of a frozen model on the boxes of the test stills, each with its chance level.

    probe_50, probe_200: a linear probe that learned from so many boxes, on the mean fused patch, of
    a still without a text; head: PEM's head on the same boxes as the probe; teacher: the prompter
    on these, black outside; head_crops: PEM's head on the crops of `Crops` that show an entity.

    teacher: the prompter and its prompts, of which PEM's head learned; None: no such scores.
    """
    folder = load_model(model_folder, device)
    model = cast(Alpro, folder.model.eval())
    grid = model.config.video.grid
    boxes = Boxes.of(corpus, entities, grid)
    crops = Crops.of(corpus, entities, grid)

    # Training always shows a caption; a box is named without one, as in naming and pointing.
    stills = list(range(len(boxes.reader)))
    videos = encode_videos(folder.normalized(device), boxes.reader, stills).tokens
    empty = encode_texts(model, folder.tokenizer, [""], folder.preprocessing.max_text_tokens)
    fused = torch.cat(
        [
            model.fused_patches(
                empty.tokens.expand(len(part), -1, -1), empty.mask.expand(len(part), -1), part
            ).float()
            for part in videos.split(64)
        ]
    )
    inside = box_mask(boxes.boxes.to(device), grid)
    features = mean_inside(fused[boxes.numbers], inside)
    learned = np.array(boxes.numbers) < min(PROBE_STILLS, len(stills) // 2)
    asked = ~learned

    kinds = len(set(boxes.entities.tolist()))
    scores = {}
    for count in PROBE_BOXES:
        right = probe(features.cpu(), boxes.entities, learned, count)
        scores[f"probe_{count}"] = 100 * right, 100 / kinds
    if model.pem_head is None or teacher is None:
        return scores

    chance = 100 / len(entities)
    with float32(device):
        of_boxes = model.pem_head(features).argmax(1).cpu().numpy()
        of_crops = model.pem_head(mean_inside(fused, box_mask(crops.boxes.to(device), grid)))
    scores["head"] = 100 * float((of_boxes == boxes.entities)[asked].mean()), chance

    prompter, prompts = teacher
    prompt_features = read_prompts(prompts)["image"].to(device)
    chosen = np.flatnonzero(asked)
    labels = labels_of_boxes(
        load_prompter(prompter, device),
        prompt_features,
        boxes.reader,
        [boxes.numbers[index] for index in chosen],
        boxes.boxes[chosen],
    )
    named = labels.argmax(1).numpy()
    scores["teacher"] = 100 * float((named == boxes.entities[asked]).mean()), chance

    hits = [
        entities[int(best)] in shown
        for best, shown in zip(of_crops.argmax(1), crops.shown, strict=True)
        if shown
    ]
    scores["head_crops"] = 100 * float(np.mean(hits)), chance
    return scores


def probe(features: Tensor, entities: np.ndarray, learned: np.ndarray, count: int) -> float:
    """The accuracy of a linear probe on the boxes that are not `learned` (N,), over PROBE_REPEATS.

    Each repeat draws `count` of the learned boxes, the kinds as equal as they can be. features
    (N, D); entities (N,).
    """
    rng = np.random.default_rng(PROBE_SEED)
    asked = torch.from_numpy(np.flatnonzero(~learned))
    truth = torch.from_numpy(entities)
    accuracies = []
    for _ in range(PROBE_REPEATS):
        chosen = torch.from_numpy(balanced(entities, learned, count, rng))
        mean = features[chosen].mean(0)
        deviation = features[chosen].std(0) + 1e-6
        scaled = (features - mean) / deviation
        weights = logistic_regression(scaled[chosen], truth[chosen], int(entities.max()) + 1)
        named = with_bias(scaled[asked]) @ weights
        accuracies.append(float((named.argmax(1) == truth[asked]).float().mean()))
    return float(np.mean(accuracies))


def balanced(
    entities: np.ndarray, learned: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Indices of `count` learned boxes, in random order: one of each kind, then a second, ..."""
    shuffled = rng.permutation(np.flatnonzero(learned))
    seen: dict[int, int] = {}
    turns = []
    for index in shuffled:
        kind = int(entities[index])
        turns.append(seen.get(kind, 0))
        seen[kind] = turns[-1] + 1
    order = np.argsort(turns, kind="stable")
    return shuffled[order][:count]


@torch.enable_grad()
def logistic_regression(features: Tensor, classes: Tensor, count: int) -> Tensor:
    """Weights (D + 1, C) that minimize the summed cross-entropy + |W|^2 / 2, without the bias.

    It is scikit-learn's default (C = 1).
    """
    inputs = with_bias(features)
    weights = torch.zeros(inputs.shape[1], count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights, classes, reduction="sum")
        value = value + weights[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type] - the closure returns the loss as a tensor
    return weights.detach()


def with_bias(features: Tensor) -> Tensor:
    return F.pad(features, (0, 1), value=1.0)
