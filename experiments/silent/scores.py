"""What a pre-trained model knows of the things in a still: their names, and where they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from alpro.inference.encoding import (
    Texts,
    encode_texts,
    encode_videos,
    float32,
    load_model,
    load_prompter,
    match_all,
    sample_frames,
    similarities,
)
from alpro.inference.prompts import read_prompts
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelBundle
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.entities import CONFIDENT, calibration, entities_in_crop
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.training.batch import random_box
from experiments.silent.labels import Things, things_of

CROP_SEED = 59
BATCH = 32


@torch.no_grad()
def scores_of(
    model_folder: Path, entities: list[str], corpus: Path, device: torch.device
) -> dict[str, tuple[float, float]]:
    """The scores (%) of a pre-trained model on the test split, each with its chance level.

    naming: the share of the four things of a still that are among the four entities which matching
    ranks first; naming_vtc: which similarity ranks first; pointing: how often the patch to which
    PEM's head gives the highest probability of an entity, without a text, lies in that thing,
    beside the share of the patches that do; R1: text to video by similarity.

    entities: those of the vocabulary, which a model without PEM's head does not know.
    """
    folder = load_model(model_folder, device)
    model = cast(Alpro, folder.model.eval())
    length = folder.preprocessing.max_text_tokens
    gallery = Gallery.of(corpus, "test")
    things = things_of(corpus, "test")
    things_of_items = [things[name] for name in gallery.ids]

    videos = encode_videos(folder.normalized(device), gallery.reader, gallery.sample_indices)
    texts = encode_texts(model, folder.tokenizer, gallery.texts, length)
    prompts = [f"a photo of a {entity}" for entity in entities]
    names = encode_texts(model, folder.tokenizer, prompts, length)

    shown = np.zeros((len(entities), len(things_of_items)), bool)
    for item, of_item in enumerate(things_of_items):
        for thing in of_item:
            if thing["kind"] in entities:
                shown[entities.index(thing["kind"]), item] = True
    similarity = similarities(names.features, videos.features).cpu().numpy()
    shares = {
        "naming": share_named(match_all(model, names, videos), shown),
        "naming_vtc": share_named(similarity, shown),
    }
    chance = 100 * float(shown.mean())
    scores = {name: (100 * float(share.mean()), chance) for name, share in shares.items()}

    ranked = similarities(texts.features, videos.features).cpu().numpy()
    ranks = retrieval_metrics(ranked, gallery.labels.relevant)
    scores["R1"] = ranks["t2v/R1"], 100 / len(gallery.ids)

    if model.pem_head:
        empty = encode_texts(model, folder.tokenizer, [""], length)
        scores["pointing"] = pointing(model, empty, videos.tokens, things_of_items, entities)
    return scores


@dataclass(frozen=True)
class Crops:
    """A random crop of each test still, drawn with a fixed seed as in PEM.

    ids: of the stills, in the order of `reader`; boxes (N, 4) in patches; shown: the entities of
    which a crop shows at least half.
    """

    reader: ShardReader
    ids: list[str]
    boxes: Tensor
    shown: list[list[str]]

    @classmethod
    def of(cls, corpus: Path, entities: list[str], grid: int) -> "Crops":
        reader = ShardReader(corpus, "test", "image")
        rng = np.random.default_rng(CROP_SEED)
        ids = []
        boxes = []
        shown = []
        for number in range(len(reader)):
            about = reader[number].metadata
            box = random_box(grid, rng)
            places = {
                thing["kind"]: [square(thing)]
                for thing in about["meta"]["things"]
                if thing["kind"] in entities
            }
            ids.append(about["id"])
            boxes.append(box)
            shown.append(entities_in_crop({"meta": {"places": places}}, [*places], box, grid))
        return cls(reader, ids, torch.tensor(boxes), shown)


def teacher_scores(
    prompter: Path, prompts: Path, entities: list[str], corpus: Path, device: torch.device
) -> dict[str, float]:
    """How good (%) a prompter's labels are on a crop of each test still; see `label_scores`."""
    folder = load_prompter(prompter, device)
    crops = Crops.of(corpus, entities, cast(Prompter, folder.model).config.video.grid)
    features = read_prompts(prompts)["image"].to(device)
    numbers = list(range(len(crops.ids)))
    labels = labels_of_boxes(folder, features, crops.reader, numbers, crops.boxes)
    return label_scores(labels, crops.shown, entities)


@torch.no_grad()
def labels_of_boxes(
    folder: ModelBundle, features: Tensor, reader: ShardReader, numbers: list[int], boxes: Tensor
) -> Tensor:
    """A prompter's labels (N, M) of boxes (N, 4) in the stills with these numbers, black outside.

    features (M, E): of the prompts.
    """
    device = features.device
    encoder = folder.normalized(device)
    model = cast(Prompter, folder.model.eval())
    parts = []
    for start in range(0, len(numbers), BATCH):
        part = numbers[start : start + BATCH]
        frames = [sample_frames(reader[number], model.config.video) for number in part]
        pixels = encoder.pixels(torch.from_numpy(np.stack(frames)).to(device))
        of_part = boxes[start : start + BATCH].to(device)
        parts.append(model.pseudo_labels(pixels, of_part, features, encoder.black).float().cpu())
    return torch.cat(parts)


def label_scores(labels: Tensor, shown: list[list[str]], entities: list[str]) -> dict[str, float]:
    """How good (%) labels (N, M) are, of the crops that show an entity.

    right: names a thing of which the crop shows at least half; kept, right_kept: the share with a
    probability of at least 0.2, and the right ones of these; sure, right_sure: of at least 0.6;
    ece: the expected calibration error.
    """
    probability = []
    right = []
    for label, names in zip(labels, shown, strict=True):
        if names:
            probability.append(float(label.max()))
            right.append(entities[int(label.argmax())] in names)
    probabilities = np.array(probability)
    is_right = np.array(right, bool)

    bins = calibration(probabilities, is_right)
    error = sum(count * abs(mean - accuracy) for count, mean, accuracy in bins) / len(is_right)
    values = {"right": is_right.mean(), "ece": error}
    for name, least in (("kept", 0.2), ("sure", CONFIDENT)):
        chosen = probabilities >= least
        values[name] = chosen.mean()
        values[f"right_{name}"] = is_right[chosen].mean() if chosen.any() else 0.0
    return {name: 100 * float(value) for name, value in values.items()}


def square(thing: dict[str, float]) -> list[float]:
    """Left, top, right and bottom of a thing, as fractions of the frame."""
    x = thing["x"]
    y = thing["y"]
    radius = thing["radius"]
    return [x - radius, y - radius, x + radius, y + radius]


def share_named(scores: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Share (items,) of the shown entities among as many with the highest scores.

    scores, shown: (entities, items).
    """
    order = (-scores).argsort(axis=0, kind="stable")
    rank = order.argsort(axis=0)
    count = shown.sum(axis=0)
    return ((rank < count) & shown).sum(axis=0) / count


def pointing(
    model: Alpro, text: Texts, videos: Tensor, things: list[Things], entities: list[str]
) -> tuple[float, float]:
    """How often (%) the best patch of an entity lies in its thing, and how often any patch does.

    things: those of each item; videos: the items' tokens (V, 1 + P, D); text: the one that is fused
    with each of them.
    """
    grid = model.config.video.grid
    pairs = []
    inside = []
    for item, of_item in enumerate(things):
        for thing in of_item:
            if thing["kind"] in entities:
                pairs.append((item, entities.index(thing["kind"])))
                inside.append(patches_of(thing, grid))
    is_inside = np.array(inside)

    best = best_patches(model, text, videos, np.array(pairs))
    hits = is_inside[np.arange(len(best)), best]
    return 100 * float(hits.mean()), 100 * float(is_inside.mean())


@torch.no_grad()
def best_patches(
    model: Alpro, text: Texts, videos: Tensor, pairs: np.ndarray, batch: int = 64
) -> np.ndarray:
    """The patch (N,) to which PEM's head gives the highest probability of an entity.

    pairs (N, 2): video and entity; videos: their tokens (V, 1 + P, D); text: the one that is fused
    with each of them.
    """
    assert model.pem_head
    best = []
    for start in range(0, len(pairs), batch):
        of_video, entity = torch.from_numpy(pairs[start : start + batch].T).to(videos.device)
        tokens = text.tokens.expand(len(entity), -1, -1)
        mask = text.mask.expand(len(entity), -1)
        fused = model.fused_patches(tokens, mask, videos[of_video])
        with float32(videos.device):
            probabilities = model.pem_head(fused.float()).softmax(2)  # (B, P, M)
        of_entity = probabilities[torch.arange(len(entity)), :, entity]
        best.append(of_entity.argmax(1))
    return torch.cat(best).cpu().numpy()


def patches_of(thing: dict, grid: int) -> np.ndarray:
    """The patches (grid * grid,) whose middle is inside a thing.

    thing: a circle with `x`, `y`, `radius` as fractions of the frame.
    """
    middles = (np.arange(grid) + 0.5) / grid
    down = middles[:, None] - thing["y"]
    across = middles - thing["x"]
    return (np.hypot(down, across) <= thing["radius"]).ravel()
