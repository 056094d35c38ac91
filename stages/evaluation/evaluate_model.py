"""Score a model on a gallery: the only way to do so, for the stage `evaluate`, the validation of
trainings and `alpro eval`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from alpro.inference.matching import Videos, match, match_all
from alpro.models.alpro import Alpro
from alpro.models.folder import Texts
from alpro.stages.evaluation.answers import (
    describe_unanswerable,
    score_answers,
)
from alpro.stages.evaluation.controls import (
    CONTROLS,
    ControlName,
    answer_under,
    compute_similarity_under,
)
from alpro.stages.evaluation.entities import add_crops, add_entities
from alpro.stages.evaluation.gallery import Gallery, Question
from alpro.stages.evaluation.loaded_model import LoadedModel, similarities
from alpro.stages.evaluation.metrics import (
    DIRECTIONS,
    Ranks,
    average_precision,
    by_query,
    retrieval_scores,
)
from alpro.stages.evaluation.results import Results

SHOWN_ITEMS = 5  # items that a table of queries lists
SIMILARITY = "similarity"
MATCHING = "matching"


@dataclass(frozen=True)
class Asked:
    """How a model is asked about a gallery.

    Attributes:
        top_k: Most similar pairs of each query that are scored by matching; 0: all.
        matched: Directions of retrieval by matching.
        controls: Controls to score besides, in order.
        seed: Seed of the shuffled frames.
        contrasts: Pairs of answers to compare.
        training_questions: Questions whose most frequent answers are the chance level.
        entity_crops: Random crops of each video whose entities are scored; 0: whole videos only.
        threshold: Minimum probability of a label that PEM keeps.
    """

    top_k: int = 0
    matched: Sequence[str] = DIRECTIONS
    controls: Sequence[ControlName] = ()
    seed: int = 0
    contrasts: Sequence[tuple[str, str]] = ()
    training_questions: Sequence[Question] = ()
    entity_crops: int = 0
    threshold: float = 0.2


@torch.no_grad()
def evaluate_model(model: LoadedModel, gallery: Gallery, asked: Asked) -> Results:
    """Score a model on a gallery.

    Args:
        model: The model.
        gallery: Videos with captions, for retrieval, or with questions.
        asked: What to score.

    Returns:
        Its scores: retrieval by similarity and, of a model with a multimodal encoder, by matching;
        answers; entities, of a model with prompts; and controls. Empty if the model can do nothing
        that the gallery has labels for.
    """
    results = Results(model.name, gallery)
    if gallery.questions and model.bundle.answers:
        add_answers(results, model, gallery, asked)

    # Questions are about a video and do not describe it, so they are no queries.
    ranks = gallery.texts and not gallery.questions
    if ranks or model.bundle.prompts:
        decoded, videos = model.encode_videos(gallery)
        results.gallery = gallery = gallery.select(decoded)
        if ranks and decoded:
            add_retrieval(results, model, gallery, videos, asked)
        if model.bundle.prompts and decoded:
            add_entities(results, model, gallery, videos)
            if asked.entity_crops:
                add_crops(results, model, gallery, asked.entity_crops, asked.threshold)
    return results


def add_retrieval(
    results: Results,
    model: LoadedModel,
    gallery: Gallery,
    videos: Videos,
    asked: Asked,
) -> None:
    """Add retrieval by each score of a model, and by similarity under the controls.

    Search ranks by similarity.
    """
    texts = model.encode_texts(gallery.texts)
    similarity = similarities(texts.features, videos.features).cpu().numpy()
    protocol = model.describe_protocol()
    both = {"t2v": similarity, "v2t": similarity}
    add_ranking(results, SIMILARITY, "by similarity", both, gallery, protocol)

    matched = asked.matched
    if model.alpro and matched:
        if asked.top_k:
            scores = match_top_k(model.alpro, texts, videos, asked.top_k, matched)
            ranked = dict(zip(matched, scores, strict=True))
        else:
            ranked = dict.fromkeys(matched, match_all(model.alpro, texts, videos))
        add_ranking(
            results,
            MATCHING,
            "by matching",
            ranked,
            gallery,
            model.describe_protocol(asked.top_k),
        )

    for control in asked.controls:
        if control != "text_only":  # without the video, retrieval is chance
            scores = compute_similarity_under(
                control, asked.seed, model, gallery, texts
            )
            what = f"control: {CONTROLS[control]}, by similarity"
            name = f"{SIMILARITY}_{control}"
            add_ranking(results, name, what, {"t2v": scores}, gallery, protocol)


def add_ranking(
    results: Results,
    name: str,
    what: str,
    scores: Mapping[str, np.ndarray],
    gallery: Gallery,
    protocol: str,
) -> None:
    """Add the metrics of retrieval, and the rank of every query with the best items.

    Args:
        scores: (N, V) of each direction, higher is better.
    """
    has_several = (gallery.relevant.sum(1) > 1).any()
    for direction, matrix in scores.items():
        ranked, relevant = by_query(matrix, gallery.relevant, direction)
        ranks = Ranks.of(ranked, relevant)
        queries = gallery.queries(direction)
        for score in retrieval_scores(ranks, queries):
            results.add(score, name, what, direction, protocol)
        # Recall counts only the best of several right videos.
        if has_several and name == SIMILARITY:
            precision = average_precision(ranked, relevant, queries)
            results.add(precision, name, what, direction, protocol)

        items = np.array(gallery.ids if direction == "t2v" else gallery.texts, object)
        best = ranked.argsort(axis=1)[:, ::-1][:, :SHOWN_ITEMS]
        results.tables[f"{name}_{direction}"] = pa.table(
            {
                "id": queries.ids,
                "text": queries.texts,
                "rank": ranks.expected,
                "best": items[best].tolist(),
                "best_scores": np.take_along_axis(ranked, best, axis=1).tolist(),
            }
        )


def add_answers(
    results: Results, model: LoadedModel, gallery: Gallery, asked: Asked
) -> None:
    """Add the accuracy of answers overall and by type, and two-way accuracy, also under the
    controls, with the most frequent answers of training as the chance level."""
    # No training lifts the limit that the list of answers sets.
    answers = model.bundle.answers
    results.warnings += describe_unanswerable(gallery.questions, answers)
    for control in (None, *asked.controls):
        decoded, logits = answer_under(control, asked.seed, model, gallery)
        results.gallery = decoded
        name = "qa"
        what = "question answering"
        if control:
            name = f"qa_{control}"
            what = f"control: {CONTROLS[control]}"

        scores, results.tables[name] = score_answers(
            logits,
            answers,
            decoded,
            training_questions=asked.training_questions,
            contrasts=asked.contrasts,
        )
        for score in scores:
            results.add(score, name, what)


def match_top_k(
    model: Alpro,
    texts: Texts,
    videos: Videos,
    k: int,
    directions: Sequence[str] = DIRECTIONS,
) -> np.ndarray:
    """Match the most similar pairs of each direction, and rank the others below by similarity.

    Args:
        k: Number of videos that are matched with each text (t2v), or texts with each video (v2t).

    Returns:
        Scores (directions, texts, videos). The score of a matched pair is margin + similarity.
    """
    similarity = similarities(texts.features, videos.features).cpu()
    is_chosen = torch.zeros(len(directions), *similarity.shape, dtype=torch.bool)
    for direction, of_direction in zip(directions, is_chosen, strict=True):
        axis = 1 if direction == "t2v" else 0

        best = similarity.topk(min(k, similarity.shape[axis]), dim=axis).indices
        of_direction.scatter_(axis, best, True)

    # A pair that both directions choose is matched once.
    is_matched = is_chosen.any(0)
    pairs = is_matched.nonzero().numpy()
    margins = torch.zeros_like(similarity)
    margins[is_matched] = match(model, texts, videos, pairs).cpu()

    # Below margin + similarity, which is at least margin - 1.
    lowest = margins[is_matched].min() - 10
    others = similarity - similarity.max() + lowest
    return torch.where(is_chosen, margins + similarity, others).numpy()
