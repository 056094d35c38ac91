"""Controls: what is left of a score if the model gets only a part of the input."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alpro.inference.encoding import Reorder
from alpro.stages.evaluation.gallery import Gallery, Questions
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.evaluation.scores import add_retrieval

ControlName = Literal["shuffled", "reversed", "single_frame", "text_only"]


class Control(NamedTuple):
    """How the results name a control, and what its scores show, in a sentence for the report."""

    label: str
    meaning: str


CONTROLS: dict[ControlName, Control] = {
    "shuffled": Control(
        "frames shuffled",
        "The same model sees the frames of each clip in random order; a score that stays the same "
        "does not rest on "
        "their order.",
    ),
    "reversed": Control(
        "frames reversed",
        "The same model sees each clip backwards; a score far below the one for shuffled frames "
        "shows that the model "
        "recognizes the direction of time.",
    ),
    "single_frame": Control(
        "best frame",
        "The model sees one frame as a still clip, and each pair has the score of the frame that "
        "fits it best, an "
        "optimistic choice that knows the text; what this reaches needs no video.",
    ),
    "text_only": Control(
        "text only",
        "The model answers from the question and a clip of one plain color; what exceeds the most "
        "frequent answer is "
        "learned from the wording of the questions.",
    ),
}


class Shuffle:
    """Shuffles frames, never to the original order; the seeded order differs from clip to clip."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 31])

    def __call__(self, frames: list[int]) -> list[int]:
        if len(set(frames)) < 2:
            return frames  # equal frames have no other order

        while True:
            # Drawn until it differs, so that all other orders are equally likely.
            order = [frames[i] for i in self.rng.permutation(len(frames))]
            if order != frames:
                return order


def still(index: int) -> Reorder:
    """A still clip of one frame: the frame at `index`, repeated."""
    return lambda frames: [frames[index]] * len(frames)


def order_of(control: ControlName, seed: int) -> Reorder:
    return Shuffle(seed) if control == "shuffled" else lambda frames: frames[::-1]


def add_retrieval_control(
    results: Results, control: ControlName, seed: int, model: Scorer, gallery: Gallery
) -> None:
    """Adds text-to-video retrieval by similarity under a control, which is not text_only."""
    if control == "single_frame":
        scores = best_single_frame(model, gallery)
    else:
        scores = model.similarity(gallery, order_of(control, seed))
    add_retrieval(
        results,
        f"control: {CONTROLS[control].label} by similarity",
        f"retrieval_{control}_vtc",
        scores=scores,
        labels=gallery.labels,
        directions=("t2v",),
        protocol=model.protocol(by_similarity=True),
    )


def best_single_frame(model: Scorer, gallery: Gallery) -> np.ndarray:
    """Similarities, each the maximum over the sampled frames as still clips (the atemporal probe of
    Buch et al., 2022, with the frame chosen for each pair by its score)."""
    of_frames = [model.similarity(gallery, still(index)) for index in range(model.frames)]
    return np.maximum.reduce(of_frames)


def answer_under(control: ControlName, seed: int, model: Scorer, questions: Questions) -> Tensor:
    """Logits of the answers (questions, answers) under a control.

    single_frame: log probabilities, each the maximum over the sampled frames as still clips; the
    best answer is that of the frame from which the model is most certain.
    """
    if control == "text_only":
        return model.answer(questions, blank=True)
    if control == "single_frame":
        # Log probabilities: the logits of two frames have no common scale.
        of_frames = [
            model.answer(questions, still(index)).log_softmax(1) for index in range(model.frames)
        ]
        return torch.stack(of_frames).amax(0)

    return model.answer(questions, order_of(control, seed))
