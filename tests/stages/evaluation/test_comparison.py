"""Two evaluations over the same queries, score by score."""

import numpy as np
import pytest

from alpro.errors import InputError
from alpro.stages.evaluation.comparison import compare
from alpro.stages.evaluation.metrics import (
    ACCURACY,
    ENTITY_ACCURACY,
    Metric,
    Queries,
    Score,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import PairedDifference

RECALL = Metric("R1", "R@1", "retrieval")
QUESTIONS = Queries.of(
    ["v0", "v0", "v1", "v2", "v2"], ["who?", "what?", "what?", "how?", "how?"]
)


def clips(*numbers, caption="a ball | a red ball"):
    return Queries.of([f"v{n}" for n in numbers], [caption] * len(numbers))


def evaluation(folder, *scores):
    folder.mkdir(parents=True)
    results = Results("mine")
    for metric, values, queries in scores:
        results.add(
            Score(metric, np.array(values), 10.0, queries), metric.table, "by hand"
        )
    results.write(folder, "test")
    return folder


def test_scores_are_compared_by_query_and_not_by_their_order(tmp_path):
    """The second "how?" of v2 is another question than the first: repeated queries are matched in
    their order."""
    turned = QUESTIONS.select(np.array([4, 2, 0, 1, 3]))
    a = evaluation(tmp_path / "a", (ACCURACY, [0, 100, 100, 0, 100], QUESTIONS))
    b = evaluation(tmp_path / "b", (ACCURACY, [0, 100, 0, 100, 100], turned))
    ((row, actual),) = compare(a, b).scores.values()
    assert row["name"] == "qa/acc"
    assert row["what"] == "by hand"
    assert actual == PairedDifference(60, 60, 0)


def test_each_score_has_both_values_and_the_difference(tmp_path):
    videos = clips(0, 1, 2, 3)
    accuracies = ([0, 0, 100, 0, 0], [100, 0, 100, 0, 0])
    recalls = ([0, 0, 100, 0], [100, 0, 100, 0])
    a, b = (
        evaluation(
            tmp_path / name, (ACCURACY, accuracy, QUESTIONS), (RECALL, recall, videos)
        )
        for name, accuracy, recall in zip("ab", accuracies, recalls, strict=True)
    )

    compared = compare(a, b)

    differences = {
        name: (d.a, d.b, d.difference) for name, (_, d) in compared.scores.items()
    }
    assert differences == {"qa/acc": (20, 40, 20), "retrieval/R1": (25, 50, 25)}
    # Video v0 alone has a question that differs, 1 of 2. A sample without it has no difference; a
    # sample with nothing else has 50.
    _, accuracy = compared.scores["qa/acc"]
    assert accuracy.low == 0
    assert accuracy.high == 50
    assert accuracy.p == 1
    assert compared.other_queries == {}


def test_a_score_of_other_queries_is_left_out(tmp_path):
    """Such as entity accuracy with another vocabulary: only clips with a known entity count."""
    a = evaluation(
        tmp_path / "a",
        (ACCURACY, [0.0] * 5, QUESTIONS),
        (ENTITY_ACCURACY, [0, 100, 0], clips(0, 1, 2)),
        (RECALL, [100], clips(0)),
    )
    b = evaluation(
        tmp_path / "b",
        (ACCURACY, [0.0] * 5, QUESTIONS),
        (ENTITY_ACCURACY, [100, 0], clips(1, 3)),
    )
    compared = compare(a, b)
    assert list(compared.scores) == ["qa/acc"]
    assert compared.other_queries == {"entities/acc": (3, 2)}


def test_different_test_sets_are_a_mistake(tmp_path):
    """So are clips of the same names with other captions, as those of the sample with another
    seed."""
    fewer = QUESTIONS.select(np.array([0, 1, 3]))
    mine = (ACCURACY, [0.0] * 5, QUESTIONS), (RECALL, [0, 0, 100, 0], clips(0, 1, 2, 3))
    a = evaluation(tmp_path / "evaluate" / "0123456789", *mine)
    b = evaluation(tmp_path / "evaluate" / "abcdefghij", (ACCURACY, [0.0] * 3, fewer))
    seeded = evaluation(
        tmp_path / "seeded", (RECALL, [0, 100], clips(0, 1, caption="a star"))
    )
    (tmp_path / "pretrain").mkdir()

    for other, named in (
        (b, r"abcdefgh.*the queries of qa/acc \(5 and 3\)"),
        (seeded, r"the queries of retrieval/R1 \(4 and 2\)"),
        (tmp_path / "pretrain", "pretrain"),
    ):
        with pytest.raises(InputError, match=named):
            compare(a, other)
