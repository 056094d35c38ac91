"""Scores of answers to questions."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from torch import Tensor

from alpro.stages.evaluation.gallery import Gallery, Question
from alpro.stages.evaluation.metrics import (
    ACCURACY,
    Metric,
    Score,
)


def score_answers(
    logits: Tensor,
    answers: Sequence[str],
    gallery: Gallery,
    training_questions: Sequence[Question] = (),
    contrasts: Sequence[tuple[str, str]] = (),
) -> tuple[list[Score], pa.Table]:
    """Return the accuracy of answers overall and by the type of the question, and two-way accuracy:
    of the questions answered by one of a pair, how many rank it above the other.

    A pair that nobody asks about, or of which the model does not know both answers, has no score.

    Args:
        logits: (Q, answers).
        answers: Answers of the model.
        gallery: Videos with the questions (Q).
        training_questions: Questions whose most frequent answers are the chance level.
        contrasts: Pairs of answers.

    Returns:
        The scores, and a table of the questions.
    """
    questions = gallery.questions
    queries = gallery.queries("t2v")
    truth = np.array([question["answer"] for question in questions], object)
    types = np.array([question["type"] for question in questions], object)
    predicted = np.array(answers, object)[logits.argmax(1).numpy()]
    guessed = np.array(predict_majority(training_questions, questions), object)
    right = predicted == truth

    subsets = [(ACCURACY, np.ones(len(types), bool))]
    for kind in sorted(set(types)):
        label = kind.replace("_", " ")
        of_type = replace(ACCURACY, key=f"{ACCURACY.key}_{kind}", label=label)
        subsets.append((of_type, types == kind))
    scores = []
    for metric, chosen in subsets:
        chance = float((guessed == truth)[chosen].mean() * 100)
        values = right[chosen] * 100.0
        scores.append(Score(metric, values, chance, queries.select(chosen)))

    for pair in contrasts:
        chosen = np.isin(truth, pair)
        if not chosen.any() or not set(pair) <= set(answers):
            continue
        columns = [answers.index(answer) for answer in pair]
        preferred = np.array(pair, object)[logits.numpy()[chosen][:, columns].argmax(1)]
        values = (preferred == truth[chosen]) * 100.0
        metric = Metric("_or_".join(pair), " against ".join(pair), "qa")
        # With two answers, chance is one half.
        scores.append(Score(metric, values, 50.0, queries.select(chosen)))

    table = {
        "id": queries.ids,
        "question": queries.texts,
        "answer": truth,
        "type": types,
        "predicted": predicted,
        "probability": logits.softmax(1).amax(1).tolist(),
        "right": right.astype(bool),
    }
    return scores, pa.table(table)


def predict_majority(
    training_questions: Sequence[Question], questions: Sequence[Question]
) -> list[str]:
    """Return for each question the most frequent training answer to questions of its type, or to
    all questions."""
    overall = Counter[str]()
    by_type = defaultdict[str, Counter[str]](Counter)
    for question in training_questions:
        overall[question["answer"]] += 1
        by_type[question["type"]][question["answer"]] += 1

    def guess(kind: str) -> str:
        counted = by_type[kind] or overall
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
        f"{count} of {len(questions)} questions ({share:.1%}) have an answer outside the "
        f"{len(answers)} of the model: accuracy is at most {1 - share:.1%}"
    ]
