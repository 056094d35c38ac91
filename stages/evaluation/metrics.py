"""The table of all metrics of evaluation, and pure functions that compute the metrics of
retrieval.

Without ties, recall and mAP equal those of ranx 0.3.21 and torchmetrics 1.9.0 to 1e-8. With ties, theirs
are of the one order that their sort leaves; ours are the mean over all orders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

DIRECTIONS = ("t2v", "v2t")
CAPTIONS = " | "  # between the captions of a video that is a query


@dataclass(frozen=True)
class Ranks:
    """For each query: the number of wrong items with a higher score than its best right item, of
    the wrong and right items with an equal score, and of all right items."""

    better: np.ndarray  # (Q,)
    tied_wrong: np.ndarray  # (Q,)
    tied_right: np.ndarray  # (Q,) at least 1
    right: np.ndarray  # (Q,) at least 1
    gallery: int

    @classmethod
    def of(cls, scores: np.ndarray, relevant: np.ndarray) -> "Ranks":
        """Ranks of queries in a gallery. scores (Q, G); relevant (Q, G) boolean, at least one right
        item per query.

        A query with several right items is ranked by the best of them.

        >>> Ranks.of(np.array([[0.9, 0.1, 0.9]]), np.array([[True, False, False]])).expected
        array([1.5])
        """
        best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
        better = scores > best  # all of these items are wrong
        tied = scores == best
        return cls(
            better=better.sum(axis=1),
            tied_wrong=(tied & ~relevant).sum(axis=1),
            tied_right=(tied & relevant).sum(axis=1),
            right=relevant.sum(axis=1),
            gallery=scores.shape[1],
        )

    def recall(self, k: int) -> np.ndarray:
        """Recall at k (Q,): the probability that a right item is among the first k, with ties in
        random order."""
        # Places among the first k that are left for tied items.
        slots = np.clip(k - self.better, 0, None)

        # The probability that wrong items take all slots: they are drawn without replacement.
        missed = np.ones(len(slots))
        for drawn in range(int(slots.max(initial=0))):
            wrong = np.clip(self.tied_wrong - drawn, 0, None)
            remaining = np.maximum(self.tied_wrong + self.tied_right - drawn, 1)
            missed = np.where(drawn < slots, missed * wrong / remaining, missed)
        return 1 - missed

    @property
    def expected(self) -> np.ndarray:
        """Expected rank (Q,) of the best right item, from 1; with one right item a tie counts as
        half."""
        tied = self.tied_wrong + self.tied_right
        # The first of r right items among t tied ones is at place (t + 1) / (r + 1) on average.
        return self.better + (tied + 1) / (self.tied_right + 1)


@dataclass(frozen=True)
class Queries:
    """What the queries of a score are, in any evaluation: the id of each one's video, which
    intervals resample, and its text. If a video is the query, its captions: ids alone may be the
    same in another corpus."""

    ids: np.ndarray  # (Q,)
    texts: np.ndarray  # (Q,)

    @classmethod
    def of(cls, ids: Sequence[str], texts: Sequence[str]) -> "Queries":
        """Return queries by lists of equal length."""
        return cls(np.array(ids, object), np.array(texts, object))

    def select(self, chosen: np.ndarray) -> "Queries":
        """Select some of the queries: (Q,) boolean."""
        return Queries(self.ids[chosen], self.texts[chosen])


@dataclass(frozen=True)
class Metric:
    """A metric as the readers of results see it. `baseline` names what its chance level is the
    score of; `statistic` makes a score of the values of queries."""

    key: str  # in the names of results.json and MLflow, which allow no "@"
    label: str  # in tables
    table: str  # the table of results that shows it
    baseline: str = "chance"
    unit: Literal["%", "rank"] = "%"
    higher_is_better: bool = True
    statistic: Literal["mean", "median"] = "mean"


class Score(NamedTuple):
    """The values (Q,) of a metric for queries, and the chance level of the metric (None:
    undefined). Without queries it has a single value, which is of so many items."""

    metric: Metric
    values: np.ndarray
    chance: float | None = None
    queries: Queries | None = None
    items: int = 0

    @property
    def value(self) -> float:
        """The score: the mean or the median of the values."""
        summary = getattr(np, self.metric.statistic)
        return float(summary(self.values))


RECALLS = {k: Metric(f"R{k}", f"R@{k}", "retrieval") for k in (1, 5, 10)}
MEDIAN_RANK = Metric(
    "MdR",
    "MdR",
    "retrieval",
    unit="rank",
    higher_is_better=False,
    statistic="median",
)
RETRIEVAL = (*RECALLS.values(), MEDIAN_RANK)
# Part of the version of the stages that write results.json, so that another metric makes them run
# again.
TABLE_VERSION = " ".join(metric.key for metric in RETRIEVAL)
MEAN_AVERAGE_PRECISION = Metric("mAP", "mAP", "retrieval")
ACCURACY = Metric("acc", "all questions", "qa", baseline="most frequent answer")
ENTITY_ACCURACY = Metric("acc", "entity accuracy", "entities", baseline="best constant")
CROP_ACCURACY = replace(ENTITY_ACCURACY, label="crops that show an entity")
KEPT_CROP_ACCURACY = replace(
    ENTITY_ACCURACY, key="acc_kept", label="crops that PEM keeps"
)
KEPT_CROPS = replace(ENTITY_ACCURACY, key="kept", label="share that PEM keeps")
CALIBRATION_ERROR = Metric(
    "ece",
    "expected calibration error",
    "entities",
    higher_is_better=False,
    baseline="",
)


def by_query(
    scores: np.ndarray, relevant: np.ndarray, direction: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the right items, both (Q, G), of the queries of a direction: of texts
    (t2v), or of the videos that have a text (v2t). NaN becomes the lowest score.

    Args:
        scores: (texts, videos), higher is better.
        relevant: (texts, videos) boolean: which videos are right for a text.
    """
    # Comparisons with NaN are false: such an item would have none before it and rank first.
    scores = np.where(np.isnan(scores), -np.inf, scores)
    if direction == "t2v":
        return scores, relevant
    # A video without a text is in the gallery of t2v, but is no query of v2t.
    with_text = relevant.any(axis=0)
    return scores.T[with_text], relevant.T[with_text]


def retrieval_scores(ranks: Ranks, queries: Queries) -> list[Score]:
    """Compute the metrics of RETRIEVAL for the queries of one direction: R@k (%), the share of queries with
    a right item among the first k, and the median rank."""
    chance = chance_recalls(ranks.right, ranks.gallery)
    scores = []
    for k, metric in RECALLS.items():
        chance_at_k = chance[min(k, ranks.gallery) - 1]
        scores.append(Score(metric, ranks.recall(k) * 100, chance_at_k * 100, queries))

    # `chance` is the cumulative distribution of a random rank at 1..G. Its median lies between the
    # first rank that reaches a half and the first that exceeds it, which differ if one is a half.
    lower = int(np.argmax(chance >= 0.5 - 1e-9))
    upper = int(np.argmax(chance > 0.5 + 1e-9))
    median = 1 + (lower + upper) / 2
    return [*scores, Score(MEDIAN_RANK, ranks.expected, median, queries)]


def average_precision(
    scores: np.ndarray, relevant: np.ndarray, queries: Queries
) -> Score:
    """mAP, which counts every right item of a query and not only the best. Arguments as of
    `Ranks.of`. With ties it is the mean over their orders."""
    gallery = scores.shape[1]
    harmonic = (1 / np.arange(1, gallery + 1)).sum()
    values = np.array([*map(expected_precision, scores, relevant)]) * 100

    # The probability that another item is right, too.
    others = (relevant.sum(axis=1) - 1) / max(1, gallery - 1)
    # At rank i, precision is (1 + (i - 1) others) / i on average; all ranks are as likely.
    chance = (others * (gallery - harmonic) + harmonic) / gallery
    return Score(MEAN_AVERAGE_PRECISION, values, float(chance.mean() * 100), queries)


def expected_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Compute the average precision of a query, its mean over all orders of tied items. scores (G,), right
    (G,) boolean, at least one.

    Of t tied items, r of them right, behind b better ones, B of them right, the one at rank i (from
    1) is right with probability r / t, and then (i - 1) (r - 1) / (t - 1) of those before it are
    right on average: it adds r / t * (B + 1 + (i - 1) (r - 1) / (t - 1)) / (b + i).
    """
    order = np.argsort(-scores, kind="stable")
    _, first, tied = np.unique(-scores[order], return_index=True, return_counts=True)

    # B and r of each group of ties.
    right_until = np.concatenate([[0], np.cumsum(right[order])])
    right_before = right_until[first]
    tied_right = right_until[first + tied] - right_before

    # The group of ties of each rank, and the terms of the equation above.
    level = np.repeat(np.arange(len(first)), tied)
    before = np.arange(len(scores)) - first[level]  # i - 1
    also_right = before * (tied_right - 1)[level] / np.maximum(tied - 1, 1)[level]
    right_here = right_before[level] + 1 + also_right
    terms = (tied_right / tied)[level] * right_here / np.arange(1, len(scores) + 1)
    return float(terms.sum() / right.sum())


def chance_recalls(right: np.ndarray, gallery: int) -> np.ndarray:
    """Mean recall (G,) at 1..G of random ranks; right (Q,): the number of right items of each query
    among G.

    None of c right items is among the first k with probability (G - c)/G x (G - c - 1)/(G - 1) x
    ..., k factors.
    """
    drawn = np.arange(gallery)
    # Queries with equally many right items have equal terms: most galleries have few such numbers.
    right_counts, query_counts = np.unique(right, return_counts=True)
    wrong_left = np.clip(gallery - right_counts[:, None] - drawn, 0, None)
    recalls = 1 - np.cumprod(wrong_left / (gallery - drawn), axis=1)
    return (query_counts[:, None] * recalls).sum(axis=0) / len(right)
