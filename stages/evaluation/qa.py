"""Rows of results for question answering."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from alpro.stages.evaluation.metrics import ACCURACY, Queries, Score, accuracy_of, contrast_of
from alpro.stages.evaluation.results import Results

Question = dict[str, str]  # question, answer, type


def add_answers(
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
    """Adds accuracy by type, with that of the most frequent answer of `trained` as chance level, and two-way accuracy.

    logits (questions, answers): those of the questions `asked` about videos. contrasts: pairs of answers.
    """
    predicted = [answers[i] for i in logits.argmax(1).tolist()]
    baseline = majority_baseline(trained, asked)
    for score in accuracy_scores(predicted, baseline, asked, video_ids):
        results.add(score, what, name)
    truth, queries = np.array([question["answer"] for question in asked], object), queries_of(asked, video_ids)
    for pair in contrasts:
        some = np.isin(truth, pair)
        if some.any() and all(answer in answers for answer in pair):
            two = logits[some][:, [answers.index(answer) for answer in pair]].argmax(1).numpy()
            right = np.array(pair, object)[two] == truth[some]
            results.add(Score(contrast_of(pair), right * 100.0, 50.0, queries.select(some)), what, name)
    columns = zip(video_ids, asked, predicted, logits.softmax(1).amax(1).tolist(), strict=True)
    rows = [{"id": id, **question, "predicted": best, "probability": p} for id, question, best, p in columns]
    results.table(name, [row | {"right": row["predicted"] == row["answer"]} for row in rows])


def queries_of(asked: list[Question], video_ids: list[str]) -> Queries:
    return Queries.of(video_ids, [question["question"] for question in asked])


def accuracy_scores(
    predicted: list[str], baseline: list[str], asked: list[Question], video_ids: list[str]
) -> list[Score]:
    """Accuracy of predicted answers (Q,) overall and by type, with that of the baseline (Q,) as chance level."""
    truth, types = (np.array([question[key] for question in asked], object) for key in ("answer", "type"))
    right, guessed = (np.array(answers, object) == truth for answers in (predicted, baseline))
    metrics = [(ACCURACY, np.ones(len(asked), bool))]
    metrics += [(accuracy_of(kind), types == kind) for kind in sorted(set(types))]
    queries = queries_of(asked, video_ids)
    return [
        Score(metric, right[some] * 100.0, float(guessed[some].mean() * 100), queries.select(some))
        for metric, some in metrics
    ]


def majority_baseline(trained: list[Question], asked: list[Question]) -> list[str]:
    """The most frequent training answer to questions of the type of each question, or of all questions."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall = Counter(question["answer"] for question in trained)
    for question in trained:
        counts[question["type"]][question["answer"]] += 1

    def guess(kind: str) -> str:
        ranked = counts[kind] or overall
        return min(ranked, key=lambda answer: (-ranked[answer], answer)) if ranked else ""

    return [guess(question["type"]) for question in asked]
