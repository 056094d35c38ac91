"""Scores as pure functions, against tables worked out by hand and against what chance would
reach."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpro.stages.evaluation.answers import (
    describe_unanswerable,
    predict_majority,
    score_answers,
)
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import (
    Queries,
    Ranks,
    average_precision,
    by_query,
    retrieval_scores,
)

# scores of one query, places of its right items, rank, chance to be among the first 1 and the first
# 2
RANKS = [
    ([0.9, 0.9, 0.1], [0], 1.5, 1 / 2, 1),
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


scores_of = st.integers(2, 8).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.integers(-3, 3).map(float))
)


def relevant_of(video_of_text, videos=0):
    """Each text is right for its own video alone."""
    own = np.asarray(video_of_text)
    return own[:, None] == np.arange(videos or own.max() + 1)


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


def ranks_of(scores, relevant):
    return {way: Ranks.of(*by_query(scores, relevant, way)) for way in ("t2v", "v2t")}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_chance_is_what_constant_scores_reach(video_of_text, more):
    """In both directions, with any number of captions a video, and videos without one."""
    relevant = relevant_of(video_of_text, max(video_of_text) + 1 + more)
    constant = np.zeros(relevant.shape)
    for ranks in ranks_of(constant, relevant).values():
        scores = retrieval_scores(ranks, Queries.of([], []))
        chance = {score.metric.key: score.chance for score in scores}
        for score in scores[:3]:
            assert score.chance == pytest.approx(score.value)
        reached = [ranks.recall(k).mean() for k in range(1, ranks.gallery + 1)]
        median = [next(k for k, r in enumerate(reached, 1) if r >= 0.5 - 1e-9)]
        median.append(next(k for k, r in enumerate(reached, 1) if r > 0.5 + 1e-9))
        assert chance["MdR"] == np.mean(median)


def test_accuracies_have_their_labels_items_and_baselines():
    asked = [
        {"question": "1", "answer": "x", "type": "how_many"},
        {"question": "2", "answer": "y", "type": "how_many"},
        {"question": "3", "answer": "z", "type": "who"},
    ]
    gallery = Gallery([], ["a", "b"], [asked[:2], asked[2:]])
    training = [
        {"answer": "y", "type": "who"},
        {"answer": "x", "type": "how_many"},
    ]
    logits = torch.eye(3)[[0, 0, 2]]

    scores, _ = score_answers(logits, [*"xyz"], gallery, training)

    labels = {score.metric.key: score.metric.label for score in scores}
    assert labels == {
        "acc": "all questions",
        "acc_how_many": "how many",
        "acc_who": "who",
    }
    assert [score.value for score in scores] == pytest.approx([200 / 3, 50, 100])
    assert [score.chance for score in scores] == pytest.approx([100 / 3, 50, 0])
    assert ["".join(score.queries.texts) for score in scores] == ["123", "12", "3"]
    assert scores[1].queries.ids.tolist() == ["a", "a"]


def test_the_predict_majority_says_the_most_frequent_training_answer_of_the_type():
    """ "how": a tie, so the first in the alphabet; "where": never seen, so the most frequent of
    all."""
    answers = {"what": "ball ball box", "how": "two one", "who": "box box box"}
    trained = []
    for kind, words in answers.items():
        trained += [{"type": kind, "answer": word} for word in words.split()]
    asked = [{"type": kind} for kind in ("what", "how", "where", "who")]

    assert predict_majority(trained, asked) == ["ball", "one", "box", "box"]
    assert predict_majority([], asked[:1]) == [""]


def test_the_share_of_answers_that_the_model_cannot_give_is_said():
    asked = [
        {"question": "is it?", "answer": answer}
        for answer in ("yes", "Yes.", "blue", "no")
    ]

    (line,) = describe_unanswerable(asked, ["yes", "no"])

    assert "2 of 4 questions (50.0%)" in line
    assert describe_unanswerable(asked[:1], ["yes", "no"]) == []


def test_average_precision_with_ties_is_the_mean_over_all_orders():
    """By brute force: the items in each order of the tied ones."""
    rng = np.random.default_rng(0)
    queries = Queries.of(["a"], ["x"])
    for size in range(1, 7):
        for levels in (1, 2, 4):
            scores = rng.integers(0, levels, size).astype(float)
            right = rng.random(size) < 0.5
            right[rng.integers(size)] = True
            precisions = []
            for order in map(list, permutations(range(size))):
                if (np.diff(scores[order]) <= 0).all():
                    precision = np.cumsum(right[order]) / np.arange(1, size + 1)
                    precisions.append(precision[right[order]].mean())
            actual = average_precision(scores[None], right[None], queries).value
            assert actual == pytest.approx(100 * np.mean(precisions))


def test_its_chance_level_is_that_of_random_scores():
    rng = np.random.default_rng(0)
    relevant = np.array([[1, 1, 0, 0, 1, *[0] * 8], [1, *[0] * 12]], bool)
    queries = Queries.of(["a", "b"], ["x", "y"])
    scores = [
        average_precision(rng.random((2, 13)), relevant, queries) for _ in range(4000)
    ]
    assert np.mean([score.value for score in scores]) == pytest.approx(
        scores[0].chance, rel=0.01
    )
