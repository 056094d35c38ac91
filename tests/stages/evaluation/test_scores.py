"""Scores as pure functions, against tables worked out by hand and against what chance would reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpro.stages.evaluation.metrics import (
    RETRIEVAL,
    Queries,
    Ranks,
    accuracy_scores,
    chance_recalls,
    majority_baseline,
    mean_recall,
    ranking_scores,
    retrieval_metrics,
    retrieval_ranks,
)

# scores of one query, places of its right items, rank, chance to be among the first 1 and the first 2
RANKS = [
    ([0.9, 0.5, 0.1], [0], 1, 1, 1),
    ([0.5, 0.9, 0.1], [0], 2, 0, 1),
    ([0.1, 0.5, 0.9], [0], 3, 0, 0),
    ([0.9, 0.9, 0.1], [0], 1.5, 1 / 2, 1),
    ([0.5, 0.5, 0.5], [0], 2, 1 / 3, 2 / 3),
    ([0.5, 0.5, 0.9], [0], 2.5, 0, 1 / 2),
    ([0.1, 0.9, 0.5], [0, 2], 2, 0, 1),
    ([0.9, 0.5, 0.1], [0, 2], 1, 1, 1),
    ([0.1, 0.1, 0.9], [0, 1], 2, 0, 1),
    ([0.2, 0.1, 0.0], [0, 1, 2], 1, 1, 1),
]


@pytest.mark.parametrize(("scores", "right", "place", "first", "second"), RANKS)
def test_ranks_of_one_query(scores, right, place, first, second):
    relevant = np.isin(np.arange(len(scores)), right)[None]
    actual = Ranks.of(np.array([scores]), relevant)
    assert actual.expected.tolist() == [place]
    assert actual.recall(1) == pytest.approx([first])
    assert actual.recall(2) == pytest.approx([second])


scores_of = st.integers(2, 8).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.integers(-3, 3).map(float)))


@settings(max_examples=60)
@given(scores_of)
def test_ranks_see_the_order_of_scores_alone(scores):
    """Not their size, nor in which order the gallery stands."""
    before = retrieval_metrics(scores, np.arange(len(scores)))
    assert retrieval_metrics(np.exp(scores) * 7 - 100, np.arange(len(scores))) == pytest.approx(before)
    turned = np.roll(scores, 1, axis=1)
    assert retrieval_metrics(turned, (np.arange(len(scores)) + 1) % len(scores)) == pytest.approx(before)


@settings(max_examples=60)
@given(scores_of)
def test_a_tie_is_the_mean_over_the_places_that_it_may_end_in(scores):
    actual = Ranks.of(scores, np.eye(len(scores), dtype=bool))
    for query, row in enumerate(scores):
        first = 1 + (row > row[query]).sum()
        places = np.arange(first, first + (row == row[query]).sum())
        assert actual.expected[query] == places.mean()
        for k in range(1, len(scores) + 1):
            assert actual.recall(k)[query] == pytest.approx((places <= k).mean())


# Four captions of two videos, the first three of video 0, and scores in which v2t and t2v differ.
SEVERAL = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.3, 0.5]])
OWN = np.array([0, 0, 0, 1])


def chance_of(scores: np.ndarray, video_of_text: np.ndarray) -> dict[str, float]:
    """The chance level of every metric."""
    return {
        f"{way}/{metric.key}": metric.chance(chance_recalls(ranks.right, ranks.gallery))
        for way, ranks in retrieval_ranks(scores, video_of_text).items()
        for metric in RETRIEVAL
    }


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_chance_is_what_constant_scores_reach(video_of_text, more):
    """In both directions, with any number of captions a video, and videos without one."""
    of = np.sort(np.array(video_of_text))
    constant = np.zeros((len(of), of.max() + 1 + more))
    expected, actual = retrieval_metrics(constant, of), chance_of(constant, of)
    for way, ranks in retrieval_ranks(constant, of).items():
        for k in (1, 5, 10):
            assert actual[f"{way}/R{k}"] == pytest.approx(expected[f"{way}/R{k}"])
        reached = [ranks.recall(k).mean() for k in range(1, ranks.gallery + 1)]
        median = [next(k for k, r in enumerate(reached, 1) if r >= 0.5 - 1e-9)]
        median.append(next(k for k, r in enumerate(reached, 1) if r > 0.5 + 1e-9))
        assert actual[f"{way}/MdR"] == np.mean(median)
        missed = 1 - np.array([0.0, *reached])
        assert actual[f"{way}/MnR"] == pytest.approx(missed.sum())  # the sum of P(rank > k) over k from 0


def test_several_captions_of_a_video_in_both_directions():
    values, ranks = retrieval_metrics(SEVERAL, OWN), retrieval_ranks(SEVERAL, OWN)
    assert ranks["t2v"].expected.tolist() == [1, 2, 1, 1]  # the second caption prefers the other video
    assert ranks["v2t"].expected.tolist() == [1, 3]  # for video 1 two captions of video 0 score higher
    assert (values["t2v/R1"], values["v2t/R1"]) == (75.0, 50.0)
    assert (values["t2v/MdR"], values["v2t/MdR"]) == (1.0, 2.0)
    assert (ranks["t2v"].gallery, ranks["v2t"].gallery) == (2, 4)


def test_each_direction_has_scores_of_its_own():
    """Of two matrices, the first ranks videos for texts and the second texts for videos."""
    scores = np.stack([np.eye(2), 1 - np.eye(2)])
    ranks = retrieval_ranks(scores, np.arange(2))
    assert (ranks["t2v"].expected.tolist(), ranks["v2t"].expected.tolist()) == ([1, 1], [2, 2])


def test_a_video_without_a_caption_is_no_query_but_in_the_gallery():
    ranks = retrieval_ranks(np.array([[0.5, 0.9, 0.1], [0.9, 0.4, 0.5]]), np.array([0, 2]))
    assert ranks["t2v"].expected.tolist() == [2, 2]
    assert len(ranks["v2t"]) == 2


def test_scores_that_are_not_numbers_are_no_success():
    values = retrieval_metrics(np.full((10, 10), np.nan), np.arange(10))
    assert not values["t2v/R1"] > 10


def test_accuracies_have_their_labels_items_and_baselines():
    right, baseline = np.array([True, False, True]), np.array([True, True, False])
    scores = accuracy_scores(
        right,
        baseline,
        ["how_many", "how_many", "who"],
        Queries.of(["a", "a", "b"], ["1", "2", "3"]),
    )
    assert [(s.metric.key, s.metric.label, s.value, s.items, s.chance) for s in scores] == [
        ("acc", "all questions", pytest.approx(200 / 3), 3, pytest.approx(200 / 3)),
        ("acc_how_many", "how many", 50, 2, 100),
        ("acc_who", "who", 100, 1, 0),
    ]
    assert {s.metric.baseline for s in scores} == {"most frequent answer"}
    assert [s.queries.texts.tolist() for s in scores] == [["1", "2", "3"], ["1", "2"], ["3"]]


def test_the_majority_baseline_says_the_most_frequent_training_answer_of_the_type():
    train = [("what", "ball"), ("what", "ball"), ("what", "box"), ("how", "two"), ("how", "one"), ("who", "man")]
    test = [("what", "ball"), ("what", "box"), ("how", "one"), ("how", "two"), ("where", "ball"), ("where", "left")]
    # "how": a tie, so the first in the alphabet; "where": never seen, so the most frequent of all.
    assert majority_baseline(train, test).tolist() == [True, False, True, False, True, False]
    assert majority_baseline([], [("what", "ball")]).tolist() == [False]


def test_a_model_is_selected_by_the_recalls_of_both_directions():
    values = {f"t2v/R{k}": 10.0 for k in (1, 5, 10)} | {"v2t/R1": 70.0, "v2t/R5": 80.0, "v2t/R10": 90.0}
    assert mean_recall(values | {"t2v/MdR": 1000.0, "v2t/MdR": 1000.0}) == 45.0


@pytest.mark.parametrize(
    ("scores", "relevant", "precision", "gain"),
    [
        ([3, 2, 1], [1, 0, 0], 1, 1),
        ([3, 2, 1], [0, 0, 1], 1 / 3, 1 / np.log2(4)),
        ([3, 2, 1], [1, 0, 1], (1 + 2 / 3) / 2, (1 + 1 / 2) / (1 + 1 / np.log2(3))),
        ([2, 2, 1], [1, 1, 0], 1, 1),  # tied right items
        ([2, 2, 1], [1, 0, 0], 1 / 1.5, (1 + 1 / np.log2(3)) / 2),
        ([np.nan, 2, 1], [1, 0, 0], 1 / 3, 1 / 2),
        ([*range(12, 0, -1)], [0] * 9 + [1, 0, 0], 1 / 10, 1 / np.log2(11)),
        ([*range(12, 0, -1)], [0] * 10 + [1, 0], 1 / 11, 0),
    ],
)
def test_average_precision_and_ndcg_by_hand(scores, relevant, precision, gain):
    queries = Queries.of(["a"], ["x"])
    found = ranking_scores(np.array([scores], float), np.array([relevant], bool), queries)
    assert [score.metric.label for score in found] == ["mAP", "nDCG@10"]
    assert [score.value for score in found] == pytest.approx([100 * precision, 100 * gain])


def test_their_chance_levels_are_those_of_random_scores():
    rng, relevant = np.random.default_rng(0), np.array([[1, 1, 0, 0, 1, *[0] * 8], [1, *[0] * 12]], bool)
    queries = Queries.of(["a", "b"], ["x", "y"])
    drawn = [[s.value for s in ranking_scores(rng.random((2, 13)), relevant, queries)] for _ in range(4000)]
    expected = [score.chance for score in ranking_scores(rng.random((2, 13)), relevant, queries)]
    assert np.mean(drawn, axis=0) == pytest.approx(expected, rel=0.03)
