"""Shortcut tests of fine-tuned models, on any corpus: frames in another order, one frame, no video, swapped words."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder
from alpro.models.frames import NormalizedModel
from alpro.stages.encoding.encode import Texts, Videos, encode_texts, encode_videos, similarities
from alpro.stages.encoding.pairs import score
from alpro.stages.evaluation.controls.columns import words_only
from alpro.stages.evaluation.controls.counterfactual import PARTS, swap_words
from alpro.stages.evaluation.controls.settings import (
    CONTROLS,
    WORD_LABEL,
    ControlName,
    ControlsConfig,
    Shuffle,
    reverse,
    still,
)
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.protocol import length_of, protocol_of, score_pairs
from alpro.stages.evaluation.qa import Questions, answer_head, answer_logits
from alpro.stages.evaluation.results import Results, add_retrieval
from alpro.stages.evaluation.retrieval import Gallery, match
from alpro.stages.vocabulary.nouns import tag_texts

RANKERS = {"vtm": "matching", "vtc": "similarity"}


@dataclass(frozen=True)
class RetrievalControls:
    """The controls of retrieval. texts, videos: those of the gallery, encoded."""

    results: Results
    config: ControlsConfig
    folder: ModelFolder
    gallery: Gallery
    texts: Texts
    videos: Videos
    device: torch.device

    def add(self) -> None:
        """Adds the results of the controls that are configured."""
        config, folder = self.config, self.folder
        protocol, all_pairs = protocol_of(config, folder), protocol_of(config, folder, by_similarity=True)
        for name, paths in config.word_controls.items():
            self.add_ranks(WORD_LABEL.format(name.replace("_", " ")), f"{name}_only", words_only(self.gallery, paths))
        for name, reorder in (("shuffled", Shuffle(config.seed)), ("reversed", reverse)):
            if name in config.controls:
                scores, _, _ = score_pairs(folder, self.gallery, config, self.device, reorder)
                self.add_ranks(f"frames {name}", f"retrieval_{name}", scores, protocol)
        if "single_frame" in config.controls:
            label = CONTROLS["single_frame"].label
            scores, similarity = best_single_frame(folder, self.gallery, config, self.device)
            self.add_ranks(label, "retrieval_single_frame", scores, protocol)
            self.add_ranks(f"{label}, by similarity", "retrieval_single_frame_vtc", similarity, all_pairs)
        if "clip_or_reversed" in config.controls:
            self.clip_or_reversed()
        if "counterfactual" in config.controls:
            self.counterfactual()

    def add_ranks(self, label: str, name: str, scores: np.ndarray, protocol: str = "all pairs") -> None:
        add_retrieval(self.results, f"control: {label}", name, scores, self.gallery, ("t2v",), protocol)

    def clip_or_reversed(self) -> None:
        """For each caption, which of its clip and the reversed clip fits it, as in RTime (Du et al., 2024)."""
        gallery, texts, videos = self.gallery, self.texts, self.videos
        encoder = self.folder.normalized(self.device)
        backwards = encode_videos(encoder, gallery.reader, gallery.numbers, self.device, reorder=reverse)
        pairs = np.stack([np.arange(len(gallery.texts)), gallery.video_of_text], axis=1)
        right, wrong = (
            pair_scores(cast(Alpro, self.folder.model), texts, clips, pairs) for clips in (videos, backwards)
        )
        ids = [gallery.ids[video] for video in gallery.video_of_text]
        columns = {"id": ids, "caption": gallery.texts} | both_scores(right, wrong, "reversed")
        self.results.table("clip_or_reversed", rows_of(columns))
        for ranker in RANKERS:
            fits = two_way(right[ranker], wrong[ranker])
            add_two_way(self.results, "clip_or_reversed", ranker, RANKERS[ranker], fits, gallery.queries("t2v"))

    def counterfactual(self) -> None:
        """How often a caption fits its clip better than with one word swapped, for each part of speech."""
        gallery, texts, videos = self.gallery, self.texts, self.videos
        swaps = swap_words(gallery.texts, gallery.video_of_text.tolist(), tag_texts(gallery.texts), self.config.seed)
        if not swaps:
            return
        model, length = cast(Alpro, self.folder.model), length_of(self.config, self.folder)
        swapped = encode_texts(model, self.folder.tokenizer, [swap.caption for swap in swaps], length, self.device)
        of_text = np.array([swap.text for swap in swaps])
        video = gallery.video_of_text[of_text]
        right = pair_scores(model, texts, videos, np.stack([of_text, video], axis=1))
        wrong = pair_scores(model, swapped, videos, np.stack([np.arange(len(swaps)), video], axis=1))
        columns = {
            "id": [gallery.ids[v] for v in video],
            "part": [swap.part for swap in swaps],
            "caption": [gallery.texts[i] for i in of_text],
            "counterfactual": [swap.caption for swap in swaps],
            "word": [swap.word for swap in swaps],
            "replacement": [swap.replacement for swap in swaps],
        }
        self.results.table("counterfactual", rows_of(columns | both_scores(right, wrong, "counterfactual")))
        parts, queries = np.array(columns["part"]), Queries.of(columns["id"], columns["counterfactual"])
        for part in PARTS:
            for ranker in RANKERS if (parts == part).any() else ():
                fits = two_way(right[ranker], wrong[ranker])[parts == part]
                label = f"{part}, {RANKERS[ranker]}"
                add_two_way(
                    self.results, "counterfactual", f"{part}_{ranker}", label, fits, queries.select(parts == part)
                )


def best_single_frame(
    folder: ModelFolder, gallery: Gallery, config: ControlsConfig, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (texts, videos) by the protocol and by similarity, each the maximum over the sampled frames as still clips
    (the atemporal probe of Buch et al., 2022, with the frame chosen for each pair by its score).

    With the protocol `top_k`, a pair has its best matching score among the frames that select it.
    """
    best: tuple[np.ndarray, np.ndarray] | None = None
    for place in range(folder.model.config.video.frames):
        scores, texts, videos = score_pairs(folder, gallery, config, device, still(place))
        similarity = similarities(texts.features, videos.features).cpu().numpy()
        best = (np.maximum(best[0], scores), np.maximum(best[1], similarity)) if best else (scores, similarity)
    assert best is not None
    return best


def pair_scores(model: Alpro, texts: Texts, videos: Videos, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """The scores (P,) of pairs (P, 2) of text and video, by each of RANKERS: logit margins and similarities."""
    text, video = torch.from_numpy(pairs).to(texts.features.device).unbind(1)
    margins = match(model, texts, videos, pairs)
    similarity = (texts.features[text] * videos.features[video]).sum(1)
    return {"vtm": margins.cpu().numpy(), "vtc": similarity.cpu().numpy()}


def two_way(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Which of two scores is higher (P,): 1 the right one's, 0 the wrong one's, 0.5 neither. NaN is the lowest."""
    right, wrong = (np.where(np.isnan(scores), -np.inf, scores) for scores in (right, wrong))
    return np.where(right == wrong, 0.5, right > wrong)


def add_two_way(
    results: Results, control: ControlName, key: str, label: str, fits: np.ndarray, queries: Queries
) -> None:
    """Adds how often the right one of two fits better. fits (P,): as of `two_way`; chance is one half."""
    metric = Metric(key, f"by {label}" if label in RANKERS.values() else label, "controls")
    results.add(Score(metric, fits * 100.0, 50.0, queries), f"control: {CONTROLS[control].label}", control)


def both_scores(right: dict[str, np.ndarray], wrong: dict[str, np.ndarray], suffix: str) -> dict[str, list[float]]:
    """Columns of both scores of each pair, by each of RANKERS."""
    columns: dict[str, list[float]] = {}
    for ranker, name in RANKERS.items():
        columns |= {name: right[ranker].tolist(), f"{name}_{suffix}": wrong[ranker].tolist()}
    return columns


def rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of columns of equal lengths."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


Answers = Callable[[], Tensor]  # returns logits (questions, answers)


def answers_under_controls(
    config: ControlsConfig, folder: ModelFolder, questions: Questions, device: torch.device
) -> dict[str, tuple[str, Answers]]:
    """The label of each control of question answering, by the name of its results, and how it answers."""
    encoder, tokenizer, length = folder.normalized(device), folder.tokenizer, length_of(config, folder)
    under: dict[str, Answers] = {
        name: partial(answer_logits, encoder, questions, tokenizer, length, device, reorder=reorder)
        for name, reorder in (("shuffled", Shuffle(config.seed)), ("reversed", reverse))
    }
    under["single_frame"] = partial(answer_from_best_frame, encoder, questions, tokenizer, length, device)
    under["text_only"] = partial(answer_without_video, encoder, questions, tokenizer, length, device)
    asked = [name for name in CONTROLS if name in under and name in config.controls]
    return {f"qa_{name}": (f"control: {CONTROLS[name].label}", under[name]) for name in asked}


def answer_from_best_frame(
    encoder: NormalizedModel, questions: Questions, tokenizer: Tokenizer, length: int, device: torch.device
) -> Tensor:
    """Log probabilities of the answers (questions, answers), each the maximum over the sampled frames as still clips:
    the best answer is that of the frame from which the model is most certain."""
    best: Tensor | None = None
    for place in range(encoder.model.config.video.frames):
        logits = answer_logits(encoder, questions, tokenizer, length, device, reorder=still(place)).log_softmax(1)
        best = logits if best is None else torch.maximum(best, logits)
    assert best is not None
    return best


@torch.no_grad()
def answer_without_video(
    encoder: NormalizedModel,
    questions: Questions,
    tokenizer: Tokenizer,
    length: int,
    device: torch.device,
    batch: int = 256,
) -> Tensor:
    """Logits of the answers (questions, answers) for a clip without content: all pixels have the mean color of the
    training frames, zero after normalization. This depends on no video of the split, unlike the mean of its tokens,
    and is closer to what the encoder knows than black."""
    model = cast(Alpro, encoder.model)
    size = model.config.video.image_size
    video = model.encode_video(torch.zeros(1, model.config.video.frames, 3, size, size, device=device))
    parts = []
    for start in range(0, len(questions.texts), batch):
        texts = encode_texts(model, tokenizer, questions.texts[start : start + batch], length, device)
        pairs = np.stack([np.arange(len(texts.tokens)), np.zeros(len(texts.tokens), int)], axis=1)
        parts.append(score(model, answer_head(model), texts, Videos(video, video[:, 0]), pairs).cpu())
    return torch.cat(parts)
