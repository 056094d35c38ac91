"""Intervals, paired differences and p values: tables worked out by hand, and laws."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.stages.evaluation.statistics import (
    bootstrap_interval,
    paired_difference,
)


@pytest.mark.parametrize(
    ("values", "videos"), [([9, 0], "aa"), ([9, 9, 9], "abc"), ([9, 0, 9, 0], "aabb")]
)
def test_there_is_no_interval_of_one_video_or_of_equal_ones(values, videos):
    values, videos = np.array(values), np.array([*videos])

    assert bootstrap_interval(values, videos) is None
    assert paired_difference(values, 2 * values, videos).low is None


def test_the_interval_of_few_videos_is_as_wide_as_students():
    """Percentiles alone would be a fifth narrower."""
    values = np.array([-7.0, -5, -3, -1, 1, 3, 5, 7])

    low, high = bootstrap_interval(values, np.arange(8))

    half_width = 2.365 * np.std(values, ddof=1) / np.sqrt(8)
    assert (-low, high) == pytest.approx((half_width, half_width), rel=0.1)


def test_the_interval_of_a_share_is_the_binomial_one():
    """50 of 100 videos: sqrt(0.5 x 0.5 / 100) x 1.96 = 9.8 points. Ten questions of each video that
    are right or wrong together add nothing to it."""
    right = np.repeat([100.0, 0.0], 50)

    once = bootstrap_interval(right, np.arange(100))
    together = bootstrap_interval(np.repeat(right, 10), np.repeat(np.arange(100), 10))

    assert once == pytest.approx((40.2, 59.8), abs=1)
    assert together == pytest.approx(once)


queries = st.lists(
    st.tuples(st.integers(0, 6), st.integers(-4, 9)), min_size=2, max_size=25
)


@settings(max_examples=30, deadline=None)
@given(queries)
def test_an_interval_contains_its_score_whatever_the_order(rows):
    videos = np.array([video for video, _ in rows])
    values = np.array([float(value) for _, value in rows])

    interval = bootstrap_interval(values, videos)

    assert bootstrap_interval(values[::-1], videos[::-1]) == pytest.approx(interval)
    if interval:
        low, high = interval
        assert (
            values.min() - 1e-9 <= low <= values.mean() <= high <= values.max() + 1e-9
        )


@settings(max_examples=30, deadline=None)
@given(queries, st.integers(0, 9))
def test_a_difference_turns_with_the_sides(rows, seed):
    videos = np.array([video for video, _ in rows])
    a = np.array([float(value) for _, value in rows])
    b = np.random.default_rng(seed).permutation(a)

    there = paired_difference(a, b, videos)
    back = paired_difference(b, a, videos)

    assert there.difference == there.b - there.a == -back.difference
    assert there.p == pytest.approx(back.p)
    if there.low is not None:
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=7)
)
def test_the_p_value_is_the_share_of_exchanges_that_differ_as_much(rows):
    """The oracle exchanges both values of each video in all ways. Equal differences count, also if
    rounding would tell them apart."""
    a, b = np.array(rows).round(3).T
    differences = [sum(signs * (b - a)) for signs in product([-1, 1], repeat=len(a))]
    observed = (b - a).sum()
    as_large = np.mean(
        [difference >= abs(observed) - 1e-6 for difference in differences]
    )

    assert paired_difference(a, b, np.arange(len(a))).p == pytest.approx(
        min(1, 2 * as_large)
    )


def test_the_p_value_is_exact_if_few_of_many_videos_differ():
    wins = np.repeat([100.0, 0.0], [6, 194])

    assert paired_difference(0 * wins, wins, np.arange(200)).p == 2 / 2**6


def test_questions_of_a_video_are_exchanged_together():
    a = np.arange(6) * 7.0

    once = paired_difference(a, a + 10, np.arange(6))
    repeated = paired_difference(
        np.repeat(a, 3), np.repeat(a + 10, 3), np.repeat(np.arange(6), 3)
    )

    assert repeated == pytest.approx(once)
