"""What a pre-trained model knows of the things in a still: which ones it names, and where PEM's head finds them."""

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
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.entities import SURE, calibration, entities_in_crop
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.training.batch import random_box
from experiments.silent.arms import Things, things_of


@torch.no_grad()
def scores_of(
    model_folder: Path, entities: list[str], corpus: Path, device: torch.device
) -> dict[str, tuple[float, float]]:
    """The scores (%) of a pre-trained model on the test split of a corpus, each with its chance level. entities: those
    of the vocabulary, which a model without PEM's head does not know.

    naming: the share of the four things of a still that are among the four entities which matching ranks first;
    naming_vtc: which similarity ranks first; pointing: how often the patch to which PEM's head gives the highest
    probability of an entity, without a text, lies in that thing, beside the share of the patches that do; R1: text to
    video by similarity.
    """
    folder = load_model(model_folder, device)
    model, length = cast(Alpro, folder.model.eval()), folder.preprocessing.max_text_tokens
    gallery = Gallery.of(corpus, "test")
    things = things_of(corpus, "test")
    videos = encode_videos(folder.normalized(device), gallery.reader, gallery.numbers)
    texts = encode_texts(model, folder.tokenizer, gallery.texts, length)
    names = encode_texts(
        model, folder.tokenizer, [f"a photo of a {entity}" for entity in entities], length
    )
    of_items = [things[name] for name in gallery.ids]
    shown = np.array(
        [[entity in {t["kind"] for t in of_item} for of_item in of_items] for entity in entities]
    )
    similarity = similarities(names.features, videos.features).cpu().numpy()
    found = {
        "naming": share_named(match_all(model, names, videos), shown),
        "naming_vtc": share_named(similarity, shown),
    }
    scores = {
        name: (100 * float(share.mean()), 100 * float(shown.mean()))
        for name, share in found.items()
    }
    ranks = retrieval_metrics(
        similarities(texts.features, videos.features).cpu().numpy(), gallery.labels.relevant
    )
    scores["R1"] = ranks["t2v/R1"], 100 / len(gallery.ids)
    if model.pem_head:
        empty = encode_texts(model, folder.tokenizer, [""], length)
        scores["pointing"] = pointing(model, empty, videos.tokens, of_items, entities)
    return scores


@torch.no_grad()
def teacher_scores(
    prompter: Path, prompts: Path, entities: list[str], corpus: Path, device: torch.device
) -> dict[str, float]:
    """How good (%) the labels of a prompter are on a crop of each test still, drawn with a fixed seed as in PEM.

    right: names a thing of which the crop shows at least half, of the crops that show one; kept, right_kept: the same
    with a probability of at least 0.2, and the share of these; sure, right_sure: of at least 0.6; ece: the expected
    calibration error.
    """
    folder = load_prompter(prompter, device)
    encoder, model = folder.normalized(device), cast(Prompter, folder.model.eval())
    reader, features = (
        ShardReader(corpus, "test", "image"),
        read_prompts(prompts)["image"].to(device),
    )
    grid, rng = model.config.video.grid, np.random.default_rng(59)
    probability, right = [], []
    for number in range(len(reader)):
        box = random_box(grid, rng)
        things = [t for t in reader[number].about["meta"]["things"] if t["kind"] in entities]
        places = {t["kind"]: [square(t)] for t in things}
        shown = entities_in_crop({"meta": {"places": places}}, [*places], box, grid)
        pixels = encoder.pixels(
            torch.from_numpy(sample_frames(reader[number], model.config.video)[None]).to(device)
        )
        label = model.pseudo_labels(
            pixels, torch.tensor([box], device=device), features, encoder.black
        )[0]
        if shown:
            probability.append(float(label.max()))
            right.append(entities[int(label.argmax())] in shown)
    p, r = np.array(probability), np.array(right, bool)
    values = {
        "right": r.mean(),
        "ece": sum(n * abs(a - b) for n, a, b in calibration(p, r)) / len(r),
    }
    for name, least in (("kept", 0.2), ("sure", SURE)):
        some = p >= least
        values |= {name: some.mean(), f"right_{name}": r[some].mean() if some.any() else 0.0}
    return {name: 100 * float(value) for name, value in values.items()}


def square(thing: dict[str, float]) -> list[float]:
    """Left, top, right and bottom of a thing, as fractions of the frame."""
    x, y, radius = thing["x"], thing["y"], thing["radius"]
    return [x - radius, y - radius, x + radius, y + radius]


def share_named(scores: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Share (items,) of the shown entities among as many with the highest scores. scores, shown: (entities, items)."""
    place = (-scores).argsort(axis=0, kind="stable").argsort(axis=0)
    count = shown.sum(axis=0)
    return ((place < count) & shown).sum(axis=0) / count


def pointing(
    model: Alpro, text: Texts, videos: Tensor, things: list[Things], entities: list[str]
) -> tuple[float, float]:
    """How often (%) the best patch of an entity lies in its thing, and how often a random patch does. things: those of
    each item; videos: the items' tokens (V, 1 + P, D); text: the one that is fused with each of them."""
    grid = model.config.video.grid
    known = [
        (item, thing)
        for item, some in enumerate(things)
        for thing in some
        if thing["kind"] in entities
    ]
    inside = np.array([patches_of(thing, grid) for _, thing in known])
    pairs = np.array([(item, entities.index(thing["kind"])) for item, thing in known])
    best = best_patches(model, text, videos, pairs)
    return 100 * float(inside[np.arange(len(best)), best].mean()), 100 * float(inside.mean())


@torch.no_grad()
def best_patches(
    model: Alpro, text: Texts, videos: Tensor, pairs: np.ndarray, batch: int = 64
) -> np.ndarray:
    """The patch (N,) to which PEM's head gives the highest probability of an entity, for pairs (N, 2) of video and
    entity. videos: their tokens (V, 1 + P, D). text: the one that is fused with each of them."""
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


def patches_of(thing: dict, grid: int) -> np.ndarray:
    """The patches (grid * grid,) whose middle is inside a thing, a circle with `x`, `y`, `radius` as fractions of the
    frame."""
    middles = (np.arange(grid) + 0.5) / grid
    return (
        np.hypot(middles[:, None] - thing["y"], middles - thing["x"]) <= thing["radius"]
    ).ravel()
