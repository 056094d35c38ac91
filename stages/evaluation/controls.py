"""Controls: what is left of a score if the model gets only a part of the input."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alpro.models.folder import Texts
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel, Reorder, similarities

ControlName = Literal["shuffled", "reversed", "single_frame", "text_only"]


# What results call each control. The template of the report says what its scores show.
CONTROLS: dict[ControlName, str] = {
    "shuffled": "frames shuffled",
    "reversed": "frames reversed",
    "single_frame": "best frame",
    "text_only": "text only",
}


def shuffle(seed: int) -> Reorder:
    """Return a function that shuffles frames, never to the original order. The seeded order differs
    from clip to clip."""
    rng = np.random.default_rng([seed, 31])

    def reorder(frames: list[int]) -> list[int]:
        order = frames
        # Drawn until it differs, so that all other orders are equally likely. Equal frames have no
        # other order.
        while order == frames and len(set(frames)) > 1:
            order = [frames[i] for i in rng.permutation(len(frames))]
        return order

    return reorder


def repeat_frame(index: int) -> Reorder:
    """Return the order of a still clip: the frame at `index`, repeated."""
    return lambda frames: [frames[index]] * len(frames)


def list_orders(
    control: ControlName | None, seed: int, frames: int
) -> list[Reorder | None]:
    """Return the orders of the frames under a control. Of several, the best score counts."""
    if control == "shuffled":
        return [shuffle(seed)]
    if control == "reversed":
        return [lambda frames: frames[::-1]]
    if control == "single_frame":
        return [repeat_frame(index) for index in range(frames)]
    return [None]


def compute_similarity_under(
    control: ControlName,
    seed: int,
    model: LoadedModel,
    gallery: Gallery,
    texts: Texts,
) -> np.ndarray:
    """Return the similarities (N, V) of the texts and videos of a gallery under a control.

    single_frame: each is the maximum over the sampled frames as still clips (the atemporal probe of
    Buch et al., 2022, with the frame chosen for each pair by its score).
    """
    scores = []
    for order in list_orders(control, seed, model.frames):
        _, videos = model.encode_videos(gallery, order)
        scores.append(similarities(texts.features, videos.features).cpu().numpy())
    return np.maximum.reduce(scores)


def answer_under(
    control: ControlName | None,
    seed: int,
    model: LoadedModel,
    gallery: Gallery,
) -> tuple[Gallery, Tensor]:
    """Answer the questions of a gallery under a control, if any, as `LoadedModel.answer`.

    single_frame: log probabilities, each the maximum over the sampled frames as still clips; the
    best answer is the one of the frame from which the model is most confident.
    """
    blank = control == "text_only"
    answered = [
        model.answer(gallery, order, blank)
        for order in list_orders(control, seed, model.frames)
    ]
    decoded, logits = answered[0]
    if control == "single_frame":
        # Log probabilities: the logits of two frames have no common scale.
        by_frame = [logits.log_softmax(1) for _, logits in answered]
        logits = torch.stack(by_frame).amax(0)
    return decoded, logits
