"""Uncertainty of scores over test videos: bootstrap intervals, paired differences and permutation
tests.

The captions or questions of a video are not independent, so whole videos are resampled (cluster
bootstrap): a video is drawn with all its queries. The gallery of retrieval stays as it is: the
ranks of the queries are fixed. Seeds are fixed, so equal scores have equal intervals. These
intervals say nothing about other training seeds.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Statistic = Literal["mean", "median"]
RESAMPLES = 1000
PERMUTATIONS = 2000
TAILS = (0.025, 0.975)  # of a 95 % percentile interval
BINS = 10  # of the expected calibration error
MAX_ELEMENTS = 4_000_000  # of an array: a million questions need no more memory than a thousand


class PairedDifference(NamedTuple):
    """Two scores over the same queries: their values, b - a with its 95 % interval, and the
    two-sided p value."""

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float


def independent_videos(videos: np.ndarray) -> float:
    """How many videos with one query each say as much as these queries (Q,), by the ids of their
    videos: fewer than there are videos if some have most of the queries (Kish, 1965).

    >>> independent_videos(np.array(["a", "b", "c"])), independent_videos(np.array(["a", "a", "a", "b", "c", "d"]))
    (3.0, 3.0)
    """
    _, counts = np.unique(videos, return_counts=True)
    # (sum of n)^2 / (sum of n^2) for n queries of each video.
    return float(counts.sum() ** 2 / (counts**2).sum())


def value_of(values: np.ndarray, statistic: Statistic) -> float:
    """The score of values (Q,) of queries."""
    return float(np.median(values) if statistic == "median" else np.mean(values))


def bootstrap_interval(
    values: np.ndarray, videos: np.ndarray, statistic: Statistic
) -> tuple[float, float] | None:
    """The 95 % percentile interval of the score of values (Q,) of queries; videos (Q,): the id of
    each one's video.

    None for fewer than two videos, and if all values are equal: resampling says nothing then.
    """
    n_videos, video_of_query = enumerate_videos(videos)
    if n_videos < 2 or (values == values[0]).all():
        return None

    draws = [
        resampled(values, video_of_query, counts, statistic)
        for counts in bootstrap_counts(n_videos)
    ]
    low, high = np.quantile(np.concatenate(draws), TAILS)
    return float(low), float(high)


def paired_difference(
    a: np.ndarray, b: np.ndarray, videos: np.ndarray, statistic: Statistic
) -> PairedDifference:
    """Compares values a and b (Q,) of the same queries; videos (Q,): the id of each query's video.

    The interval is that of a paired bootstrap: both scores of a resample are over the same videos;
    None for fewer than two videos. The p value is that of a permutation test: if a and b do not
    differ, the results of a video can be exchanged. It is the share of exchanges (for means: sign
    flips of each video's difference) with a difference at least as large, the observed one
    included, and therefore at least 1 / (PERMUTATIONS + 1).
    """
    n_videos, video_of_query = enumerate_videos(videos)
    score_a = value_of(a, statistic)
    score_b = value_of(b, statistic)
    observed = score_b - score_a

    low = high = None
    if n_videos > 1:
        draws = []
        for counts in bootstrap_counts(n_videos):
            resampled_a = resampled(a, video_of_query, counts, statistic)
            resampled_b = resampled(b, video_of_query, counts, statistic)
            draws.append(resampled_b - resampled_a)
        low, high = (float(bound) for bound in np.quantile(np.concatenate(draws), TAILS))

    # An exchange counts a video's values of a for b and those of b for a: b's videos follow a's.
    values = np.concatenate([a, b])
    video_of_value = np.concatenate([video_of_query, video_of_query + n_videos])
    as_large = 1  # the observed difference itself
    for swap in exchanges(n_videos):
        kept = 1 - swap
        exchanged_a = resampled(values, video_of_value, np.hstack([kept, swap]), statistic)
        exchanged_b = resampled(values, video_of_value, np.hstack([swap, kept]), statistic)
        # Rounding must not make an equal difference a smaller one.
        as_large += int((abs(exchanged_b - exchanged_a) >= abs(observed) - 1e-9).sum())

    p = as_large / (PERMUTATIONS + 1)
    return PairedDifference(score_a, score_b, observed, low, high, p)


def calibration_error(probability: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error of predictions (N,), in percent: the mean distance of
    probability and accuracy."""
    distances = [
        count * abs(mean - accuracy) for count, mean, accuracy in calibration(probability, correct)
    ]
    return 100 * sum(distances) / len(probability)


def calibration(probability: np.ndarray, correct: np.ndarray) -> list[tuple[int, float, float]]:
    """Return the number, mean probability and accuracy of the predictions (N,) in each of BINS
    equal intervals of probability that has any (Guo et al., On Calibration of Modern Neural
    Networks, 2017).

    >>> calibration(np.array([0.75, 0.75, 0.25]), np.array([1, 0, 0]))
    [(1, 0.25, 0.0), (2, 0.75, 0.5)]
    """
    # A probability of 1 belongs to the last interval.
    bin_of_label = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = bin_of_label == number
        if inside.any():
            mean = float(probability[inside].mean())
            accuracy = float(correct[inside].mean())
            bins.append((int(inside.sum()), mean, accuracy))
    return bins


def enumerate_videos(videos: np.ndarray) -> tuple[int, np.ndarray]:
    """The number of distinct videos, and the index (Q,) of each query's video among them."""
    distinct, video_of_query = np.unique(videos, return_inverse=True)
    return len(distinct), video_of_query


def resampled(
    values: np.ndarray, video: np.ndarray, counts: np.ndarray, statistic: Statistic
) -> np.ndarray:
    """The scores (R,) of values (Q,) whose video (Q,) occurs as often as counts (R, V) says.

    >>> resampled(np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([[1, 1], [0, 2], [2, 0]]), "mean")
    array([0.33333333, 1.        , 0.        ])
    """
    if statistic == "median":
        return medians(values, video, counts)

    n_videos = counts.shape[1]
    # By video first: a product over V columns instead of one over all Q values.
    sums = counts @ np.bincount(video, values, n_videos)
    sizes = counts @ np.bincount(video, minlength=n_videos)
    return sums / sizes


def medians(values: np.ndarray, video: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The medians (R,) of values (Q,) whose video (Q,) occurs as often as counts (R, V) says: the
    mean of the two middle values if their number is even."""
    order = np.argsort(values)
    ordered = values[order]
    video_of_ordered = video[order]

    # Each part holds the counts of all values at once, at most MAX_ELEMENTS of them.
    n_parts = -(-len(counts) * len(values) // MAX_ELEMENTS)
    medians_of_parts = []
    for rows in np.array_split(counts, n_parts):
        # How many values of the resample are among the first 1..Q of the sorted ones.
        cumulative = rows.astype(np.int32)[:, video_of_ordered].cumsum(axis=1)
        total = cumulative[:, -1:]
        lower = (cumulative > (total - 1) // 2).argmax(axis=1)
        upper = (cumulative > total // 2).argmax(axis=1)
        medians_of_parts.append((ordered[lower] + ordered[upper]) / 2)
    return np.concatenate(medians_of_parts)


def bootstrap_counts(videos: int) -> Iterator[np.ndarray]:
    """How often each video is in each of RESAMPLES samples with replacement, in parts (R, V)."""
    for part, size in parts_of(RESAMPLES, videos):
        yield drawn_counts(videos, part, size)


@lru_cache(maxsize=2)  # most scores of an evaluation are of the same videos
def drawn_counts(videos: int, part: int, size: int) -> np.ndarray:
    """A part (size, V) of the counts, as floats, which numpy multiplies faster."""
    rng = np.random.default_rng([videos, part])
    equal = np.full(videos, 1 / videos)
    # V draws with replacement from V videos.
    return rng.multinomial(videos, equal, size).astype(float)


def exchanges(videos: int) -> Iterator[np.ndarray]:
    """Whether the results of each video are exchanged (0 or 1) in each of PERMUTATIONS
    permutations, in parts (R, V)"""
    for part, size in parts_of(PERMUTATIONS, videos):
        # By the number of videos alone: equal scores have equal p values.
        rng = np.random.default_rng([videos, part])
        yield rng.integers(0, 2, (size, videos)).astype(float)


def parts_of(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The index and the number of rows of each part of an array that is too large at once."""
    max_rows = max(1, MAX_ELEMENTS // columns)
    for part, start in enumerate(range(0, rows, max_rows)):
        yield part, min(max_rows, rows - start)
