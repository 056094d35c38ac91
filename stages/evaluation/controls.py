"""Controls: what is left of a score if the model gets only a part of the input."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder
from alpro.stages.encoding.encode import Reorder, Videos, encode_texts, similarities
from alpro.stages.encoding.pairs import score
from alpro.stages.evaluation.protocol import EvaluationConfig, length_of, protocol_of, score_pairs
from alpro.stages.evaluation.qa import Questions, answer_head, answer_logits
from alpro.stages.evaluation.results import Results, add_retrieval
from alpro.stages.evaluation.retrieval import Gallery

ControlName = Literal["shuffled", "reversed", "single_frame", "text_only"]


class Control(NamedTuple):
    """How the results name a control, and what its scores show, in a sentence for the report."""

    label: str
    meaning: str


CONTROLS: dict[ControlName, Control] = {
    "shuffled": Control(
        "frames shuffled",
        "The same model sees the frames of each clip in random order; a score that stays the same does not rest on "
        "their order.",
    ),
    "reversed": Control(
        "frames reversed",
        "The same model sees each clip backwards; a score far below the one for shuffled frames shows that the model "
        "recognizes the direction of time.",
    ),
    "single_frame": Control(
        "best single frame",
        "The model sees one frame as a still clip, and each pair has the score of the frame that fits it best, an "
        "optimistic choice that knows the text; what this reaches needs no video.",
    ),
    "text_only": Control(
        "text only",
        "The model answers from the question and a clip of one plain color; what exceeds the most frequent answer is "
        "learned from the wording of the questions.",
    ),
}


def reverse(frames: list[int]) -> list[int]:
    return frames[::-1]


class Shuffle:
    """Shuffles frames, never to the original order; the seeded order differs from clip to clip."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 31])

    def __call__(self, frames: list[int]) -> list[int]:
        if len(set(frames)) < 2:
            return frames
        while True:
            order = [frames[i] for i in self.rng.permutation(len(frames))]
            if order != frames:
                return order


def still(place: int) -> Reorder:
    """A still clip of one frame: the frame at `place`, repeated."""
    return lambda frames: [frames[place]] * len(frames)


def add_retrieval_controls(
    results: Results,
    config: EvaluationConfig,
    controls: tuple[ControlName, ...],
    seed: int,
    folder: ModelFolder,
    gallery: Gallery,
    device: torch.device,
) -> None:
    """Adds text-to-video retrieval from frames in another order, and from the best single frame."""

    def add(name: str, label: str, scores: np.ndarray, protocol: str) -> None:
        add_retrieval(results, f"control: {label}", f"retrieval_{name}", scores, gallery, ("t2v",), protocol)

    protocol = protocol_of(config, folder)
    orders: dict[ControlName, Reorder] = {"shuffled": Shuffle(seed), "reversed": reverse}
    for name, reorder in orders.items():
        if name in controls:
            scores, _, _ = score_pairs(folder, gallery, config, device, reorder)
            add(name, CONTROLS[name].label, scores, protocol)
    if "single_frame" in controls:
        label = CONTROLS["single_frame"].label
        scores, similarity = best_single_frame(folder, gallery, config, device)
        add("single_frame", label, scores, protocol)
        all_pairs = protocol_of(config, folder, by_similarity=True)
        add("single_frame_vtc", f"{label}, by similarity", similarity, all_pairs)


def best_single_frame(
    folder: ModelFolder, gallery: Gallery, config: EvaluationConfig, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by the protocol and by similarity, each the maximum over the sampled frames as still clips (the atemporal
    probe of Buch et al., 2022, with the frame chosen for each pair by its score).

    With the protocol `top_k`, a pair has its best matching score among the frames that select it.
    """
    matched, similar = [], []
    for place in range(folder.model.config.video.frames):
        scores, texts, videos = score_pairs(folder, gallery, config, device, still(place))
        matched.append(scores)
        similar.append(similarities(texts.features, videos.features).cpu().numpy())
    return np.maximum.reduce(matched), np.maximum.reduce(similar)


Answers = Callable[[], Tensor]  # returns logits (questions, answers)


def answers_under_controls(
    controls: tuple[ControlName, ...],
    seed: int,
    config: EvaluationConfig,
    folder: ModelFolder,
    questions: Questions,
    device: torch.device,
) -> dict[str, tuple[str, Answers]]:
    """The label of each control of question answering, by the name of its results, and how it answers."""
    length = length_of(config, folder)
    answer = partial(answer_logits, folder.normalized(device), questions, folder.tokenizer, length, device)
    under: dict[ControlName, Answers] = {
        "shuffled": partial(answer, reorder=Shuffle(seed)),
        "reversed": partial(answer, reorder=reverse),
        "single_frame": partial(answer_from_best_frame, answer, folder.model.config.video.frames),
        "text_only": partial(answer_without_video, folder, questions, length, device),
    }
    return {f"qa_{name}": (f"control: {CONTROLS[name].label}", under[name]) for name in CONTROLS if name in controls}


def answer_from_best_frame(answer: Callable[..., Tensor], frames: int) -> Tensor:
    """Log probabilities of the answers (questions, answers), each the maximum over the sampled frames as still clips:
    the best answer is that of the frame from which the model is most certain."""
    of_frames = [answer(reorder=still(place)).log_softmax(1) for place in range(frames)]
    return torch.stack(of_frames).amax(0)


@torch.no_grad()
def answer_without_video(
    folder: ModelFolder, questions: Questions, length: int, device: torch.device, batch: int = 256
) -> Tensor:
    """Logits of the answers (questions, answers) for a clip without content: all pixels have the mean color of the
    training frames, zero after normalization. This depends on no video of the split, unlike the mean of its tokens,
    and is closer to what the encoder knows than black."""
    model = cast(Alpro, folder.model)
    shape = model.config.video
    video = model.encode_video(torch.zeros(1, shape.frames, 3, shape.image_size, shape.image_size, device=device))
    parts = []
    for start in range(0, len(questions.texts), batch):
        texts = encode_texts(model, folder.tokenizer, questions.texts[start : start + batch], length, device)
        pairs = np.stack([np.arange(len(texts.tokens)), np.zeros(len(texts.tokens), int)], axis=1)
        parts.append(score(model, answer_head(model), texts, Videos(video, video[:, 0]), pairs).cpu())
    return torch.cat(parts)
