"""Uncertainty of scores over test videos: bootstrap intervals, paired differences and permutation tests.

The captions or questions of a video are not independent, so whole videos are resampled (cluster bootstrap): a video is
drawn with all its queries. The gallery of retrieval stays as it is: the ranks of the queries are fixed. Seeds are
fixed, so equal scores have equal intervals. These intervals say nothing about other training seeds.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Statistic = Literal["mean", "median"]
RESAMPLES = 1000
PERMUTATIONS = 2000
TAILS = (0.025, 0.975)  # of a 95 % percentile interval
MAX_ELEMENTS = 4_000_000  # of an array: a million questions need no more memory than a thousand


class PairedDifference(NamedTuple):
    """Two scores over the same queries: their values, b - a with its 95 % interval, and the two-sided p value."""

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float


def independent_videos(videos: np.ndarray) -> float:
    """How many videos with one query each say as much as these queries (Q,), by the ids of their videos: fewer than
    there are videos if some have most of the queries (Kish, 1965).

    >>> independent_videos(np.array(["a", "b", "c"])), independent_videos(np.array(["a", "a", "a", "b", "c", "d"]))
    (3.0, 3.0)
    """
    _, counts = np.unique(videos, return_counts=True)
    return float(counts.sum() ** 2 / (counts**2).sum())


def value_of(values: np.ndarray, statistic: Statistic) -> float:
    """The score of values (Q,) of queries."""
    return float(np.median(values) if statistic == "median" else np.mean(values))


def bootstrap_interval(
    values: np.ndarray, videos: np.ndarray, statistic: Statistic
) -> tuple[float, float] | None:
    """The 95 % percentile interval of the score of values (Q,) of queries; videos (Q,): the id of each one's video.

    None for fewer than two videos, and if all values are equal: resampling says nothing then.
    """
    number, video = numbered(videos)
    if number < 2 or (values == values[0]).all():
        return None
    scores = np.concatenate(
        [resampled(values, video, counts, statistic) for counts in bootstrap_counts(number)]
    )
    low, high = np.quantile(scores, TAILS)
    return float(low), float(high)


def paired_difference(
    a: np.ndarray, b: np.ndarray, videos: np.ndarray, statistic: Statistic
) -> PairedDifference:
    """Compares values a and b (Q,) of the same queries; videos (Q,): the id of each query's video.

    The interval is that of a paired bootstrap: both scores of a resample are over the same videos; None for fewer than
    two videos. The p value is that of a permutation test: if a and b do not differ, the results of a video can be
    exchanged. It is the share of exchanges (for means: sign flips of each video's difference) with a difference at
    least as large, the observed one included, and therefore at least 1 / (PERMUTATIONS + 1).
    """
    number, video = numbered(videos)
    first, second = value_of(a, statistic), value_of(b, statistic)
    low = high = None
    if number > 1:
        draws = [
            resampled(b, video, counts, statistic) - resampled(a, video, counts, statistic)
            for counts in bootstrap_counts(number)
        ]
        low, high = (float(bound) for bound in np.quantile(np.concatenate(draws), TAILS))
    both, twice = np.concatenate([a, b]), np.concatenate([video, video + number])
    as_large = 1
    for swap in exchanges(number):
        kept = 1 - swap
        ours = resampled(both, twice, np.hstack([kept, swap]), statistic)
        theirs = resampled(both, twice, np.hstack([swap, kept]), statistic)
        as_large += int((abs(theirs - ours) >= abs(second - first) - 1e-9).sum())
    return PairedDifference(first, second, second - first, low, high, as_large / (PERMUTATIONS + 1))


def numbered(videos: np.ndarray) -> tuple[int, np.ndarray]:
    """The number of distinct videos, and the number (Q,) of each query's video."""
    distinct, video = np.unique(videos, return_inverse=True)
    return len(distinct), video


def resampled(
    values: np.ndarray, video: np.ndarray, counts: np.ndarray, statistic: Statistic
) -> np.ndarray:
    """The scores (R,) of values (Q,) whose video (Q,) occurs as often as counts (R, V) says.

    >>> resampled(np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([[1, 1], [0, 2], [2, 0]]), "mean")
    array([0.33333333, 1.        , 0.        ])
    """
    if statistic == "median":
        return medians(values, video, counts)
    size = counts.shape[1]
    return (counts @ np.bincount(video, values, size)) / (
        counts @ np.bincount(video, minlength=size)
    )


def medians(values: np.ndarray, video: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The medians (R,) of values (Q,) whose video (Q,) occurs as often as counts (R, V) says: the mean of the two
    middle values if their number is even."""
    order = np.argsort(values)
    ordered, columns = values[order], video[order]
    parts = []
    for few in np.array_split(counts, -(-len(counts) * len(values) // MAX_ELEMENTS)):
        upto = few.astype(np.int32)[:, columns].cumsum(axis=1)
        total = upto[:, -1:]
        lower, upper = ((upto > middle).argmax(axis=1) for middle in ((total - 1) // 2, total // 2))
        parts.append((ordered[lower] + ordered[upper]) / 2)
    return np.concatenate(parts)


def bootstrap_counts(videos: int) -> Iterator[np.ndarray]:
    """How often each video is in each of RESAMPLES samples with replacement, in parts (R, V)."""
    for part, size in parts_of(RESAMPLES, videos):
        yield drawn_counts(videos, part, size)


@lru_cache(maxsize=2)  # most scores of an evaluation are of the same videos
def drawn_counts(videos: int, part: int, size: int) -> np.ndarray:
    """A part (size, V) of the counts, as floats, which numpy multiplies faster."""
    return (
        np.random.default_rng([videos, part])
        .multinomial(videos, np.full(videos, 1 / videos), size)
        .astype(float)
    )


def exchanges(videos: int) -> Iterator[np.ndarray]:
    """Whether the results of each video are exchanged (0 or 1) in each of PERMUTATIONS permutations, in parts (R, V)"""
    for part, size in parts_of(PERMUTATIONS, videos):
        yield np.random.default_rng([videos, part]).integers(0, 2, (size, videos)).astype(float)


def parts_of(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The number and the rows of the parts of an array that is too large at once."""
    most = max(1, MAX_ELEMENTS // columns)
    for part, start in enumerate(range(0, rows, most)):
        yield part, min(most, rows - start)
