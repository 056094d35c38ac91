"""Scores of answers to questions."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from alpro.stages.evaluation.gallery import Question
from alpro.stages.evaluation.metrics import (
    ACCURACY,
    Queries,
    Score,
    accuracy_of_type,
    contrast_metric,
)


def accuracy_scores(
    predicted: Sequence[str],
    guessed: Sequence[str],
    questions: Sequence[Question],
    queries: Queries,
) -> list[Score]:
    """Return the accuracy of answers overall and by the type of the question.

    Args:
        predicted: (Q,) answers of the model.
        guessed: (Q,) answers of the baseline, whose accuracy is the chance level.
        questions: (Q,) questions.
        queries: The same questions with their videos.
    """
    truth = np.array([question["answer"] for question in questions], object)
    types = np.array([question["type"] for question in questions], object)
    right = np.array(predicted, object) == truth
    guessed_right = np.array(guessed, object) == truth

    subsets = [(ACCURACY, np.ones(len(types), bool))]
    subsets += [(accuracy_of_type(kind), types == kind) for kind in sorted(set(types))]
    scores = []
    for metric, chosen in subsets:
        chance = float(guessed_right[chosen].mean() * 100)
        scores.append(
            Score(metric, right[chosen] * 100.0, chance, queries.select(chosen))
        )
    return scores


def contrast_scores(
    logits: np.ndarray,
    answers: Sequence[str],
    contrasts: Sequence[tuple[str, str]],
    questions: Sequence[Question],
    queries: Queries,
) -> list[Score]:
    """Return two-way accuracy: of the questions answered by one of a pair, how many rank it above
    the other.

    A pair that nobody asks about, or of which the model does not know both answers, has no score.

    Args:
        logits: (Q, answers).
    """
    truth = np.array([question["answer"] for question in questions], object)
    scores = []
    for pair in contrasts:
        chosen = np.isin(truth, pair)
        if not chosen.any() or not set(pair) <= set(answers):
            continue
        columns = [answers.index(answer) for answer in pair]
        preferred = np.array(pair, object)[logits[chosen][:, columns].argmax(1)]
        right = (preferred == truth[chosen]) * 100.0
        # With two answers, chance is one half.
        scores.append(Score(contrast_metric(pair), right, 50.0, queries.select(chosen)))
    return scores


def predict_majority(
    training_questions: Sequence[Question], questions: Sequence[Question]
) -> list[str]:
    """Return for each question the most frequent training answer to questions of its type, or to
    all questions."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in training_questions:
        counts[question["type"]][question["answer"]] += 1
    overall = sum(counts.values(), Counter[str]())

    def guess(kind: str) -> str:
        counted = counts[kind] or overall
        # Ties in alphabetical order, as the answers of `frequent_answers`.
        return min(counted, key=lambda answer: (-counted[answer], answer), default="")

    return [guess(question["type"]) for question in questions]


def describe_unanswerable(
    questions: Sequence[Question], answers: Sequence[str]
) -> list[str]:
    """Return a line on the questions whose answer the model cannot give, if there are any, with the
    percentage that accuracy cannot exceed."""
    known = set(answers)
    count = sum(question["answer"] not in known for question in questions)
    if not count:
        return []
    share = count / len(questions)
    return [
        f"{count} of {len(questions)} questions ({share:.1%}) have an answer that is none of the "
        f"{len(answers)} of the model: accuracy is at most {1 - share:.1%}"
    ]
