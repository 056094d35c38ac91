"""Rows of results for text-video retrieval and for question answering."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alpro.stages.evaluation.gallery import Labels
from alpro.stages.evaluation.metrics import (
    ACCURACY,
    DIRECTIONS,
    Queries,
    Ranks,
    Score,
    accuracy_of,
    by_direction,
    contrast_of,
    retrieval_scores,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.scorer import Scorer


def add_rankers(
    results: Results,
    what: str,
    name: str,
    model: Scorer,
    labels: Labels,
    scored: tuple[np.ndarray, np.ndarray],
) -> None:
    """Adds retrieval by similarity as <name>_vtc, which `alpro search` ranks by, and by matching as
    `name`. scored: by matching and by similarity, as of `Scorer.score`."""
    matching, similarity = scored
    add_retrieval(
        results,
        f"{what} by similarity",
        f"{name}_vtc",
        scores=similarity,
        labels=labels,
        protocol=model.protocol(by_similarity=True),
    )
    add_retrieval(
        results,
        f"{what} by matching",
        name,
        scores=matching,
        labels=labels,
        protocol=model.protocol(),
    )


def add_retrieval(
    results: Results,
    what: str,
    name: str,
    scores: np.ndarray,
    labels: Labels,
    directions: tuple[str, ...] = DIRECTIONS,
    protocol: str = "all pairs",
) -> None:
    """Adds the metrics of retrieval, and writes the rank of every query with the best items of its
    gallery. scores: as of `by_direction`."""
    for direction in directions:
        ranked, relevant = by_direction(scores, labels.relevant)[direction]
        ranks = Ranks.of(ranked, relevant)
        queries = labels.queries(direction)
        for score in retrieval_scores(ranks, queries):
            results.add(score, what, name, direction, protocol)

        items = np.array(labels.ids if direction == "t2v" else labels.texts, object)
        best = ranked.argsort(axis=1)[:, ::-1][:, :5]
        columns = {
            "id": queries.ids,
            "text": queries.texts,
            "rank": ranks.expected.tolist(),
            "best": items[best].tolist(),
            "best_scores": np.take_along_axis(ranked, best, axis=1).tolist(),
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        results.table(f"{name}_{direction}", rows)


Question = dict[str, str]  # question, answer, type


def add_answers(  # noqa: PLR0913 - predictions, answers and controls of one table
    results: Results,
    what: str,
    name: str,
    logits: Tensor,
    answers: Sequence[str],
    asked: list[Question],
    video_ids: list[str],
    trained: list[Question],
    contrasts: Sequence[tuple[str, str]] = (),
) -> None:
    """Adds accuracy by type, with that of the most frequent answer of `trained` as chance level,
    and two-way accuracy.

    logits (questions, answers): those of the questions `asked` about videos. contrasts: pairs of
    answers.
    """
    predicted = [answers[int(index)] for index in logits.argmax(1)]
    baseline = majority_baseline(trained, asked)
    for score in accuracy_scores(predicted, baseline, asked, video_ids):
        results.add(score, what, name)

    truth = np.array([question["answer"] for question in asked], object)
    queries = queries_of(asked, video_ids)
    for pair in contrasts:
        concerned = np.isin(truth, pair)
        # Nobody asks about this pair, or the model does not know both answers.
        if not concerned.any() or not set(pair) <= set(answers):
            continue
        columns = [answers.index(answer) for answer in pair]
        chosen = logits[torch.from_numpy(concerned)][:, columns].argmax(1).numpy()
        right = np.array(pair, object)[chosen] == truth[concerned]
        # Of two answers, chance gets a half right.
        score = Score(contrast_of(pair), right * 100.0, 50.0, queries.select(concerned))
        results.add(score, what, name)

    probabilities = logits.softmax(1).amax(1).tolist()
    rows = []
    for video_id, question, answer, probability in zip(
        video_ids, asked, predicted, probabilities, strict=True
    ):
        row = {"id": video_id, **question, "predicted": answer, "probability": probability}
        rows.append(row | {"right": answer == question["answer"]})
    results.table(name, rows)


def unanswerable(asked: list[Question], answers: Sequence[str]) -> list[str]:
    """A line on the questions whose answer the model cannot give, if there are any: the share that
    accuracy cannot exceed, and how many answers are in the list but for case or a final dot."""
    known = set(answers)
    missing = [question["answer"] for question in asked if question["answer"] not in known]
    if not missing:
        return []

    folded = {folded_answer(answer) for answer in answers}
    alike = sum(folded_answer(answer) in folded for answer in missing)
    share = len(missing) / len(asked)
    spelled = f", {alike} of which only by case or a final dot" if alike else ""
    return [
        f"{len(missing)} of {len(asked)} questions ({share:.1%}) have an answer that is none of "
        f"the "
        f"{len(answers)} of the model{spelled}: accuracy is at most {1 - share:.1%}"
    ]


def folded_answer(answer: str) -> str:
    return answer.casefold().rstrip(".")


def queries_of(asked: list[Question], video_ids: list[str]) -> Queries:
    return Queries.of(video_ids, [question["question"] for question in asked])


def accuracy_scores(
    predicted: Sequence[str],
    baseline: Sequence[str],
    asked: list[Question],
    video_ids: list[str],
) -> list[Score]:
    """Accuracy of predicted answers (Q,) overall and by type, with that of the baseline (Q,) as
    chance level."""
    truth = np.array([question["answer"] for question in asked], object)
    types = np.array([question["type"] for question in asked], object)
    right = np.array(predicted, object) == truth
    guessed = np.array(baseline, object) == truth
    queries = queries_of(asked, video_ids)

    of_metric = [(ACCURACY, np.ones(len(asked), bool))]
    of_metric += [(accuracy_of(kind), types == kind) for kind in sorted(set(types))]

    scores = []
    for metric, concerned in of_metric:
        chance = float(guessed[concerned].mean() * 100)
        values = right[concerned] * 100.0
        scores.append(Score(metric, values, chance, queries.select(concerned)))
    return scores


def majority_baseline(trained: list[Question], asked: list[Question]) -> list[str]:
    """The most frequent training answer to questions of the type of each question, or of all
    questions."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall = Counter(question["answer"] for question in trained)
    for question in trained:
        counts[question["type"]][question["answer"]] += 1

    def guess(kind: str) -> str:
        ranked = counts[kind] or overall
        # Ties in alphabetical order, as the answers of `frequent_answers`.
        return min(ranked, key=lambda answer: (-ranked[answer], answer)) if ranked else ""

    return [guess(question["type"]) for question in asked]
