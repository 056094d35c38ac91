"""Which frames of a clip, and which samples in which order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.shards import sampling
from alpro.shards.sampling import frames_at_random, frames_between, frames_in_halves, grouped_order

few = settings(max_examples=50, deadline=None)
available = st.integers(1, 60)
seeds = st.integers(0, 2**31)


@few
@given(available, st.integers(1, 20))
def test_segments_are_ordered_equal_and_repeat_only_if_there_are_too_few_frames(available: int, count: int):
    starts = sampling.segment_starts(available, count)
    assert len(starts) == count
    assert starts[0] == 0
    assert starts[-1] < available
    steps = np.diff([*starts, available])
    assert steps.min() >= 0
    assert steps.max() - steps.min() <= 1
    assert (len(set(starts)) == count) == (available >= count)


def test_frames_between_against_a_table():
    tenths, pause = np.arange(10) / 10, np.array([0.0, 0.1, 0.2, 10.2, 10.3])
    cases = [(tenths, None, None, (0, 10)), (tenths, 0.2, 0.5, (2, 5)), (tenths, 0.24, 0.46, (2, 5))]  # the nearest
    cases += [(tenths, 0.26, 0.44, (3, 4)), (tenths, 0.61, 0.63, (6, 7)), (tenths, 0.5, 0.5, (5, 5))]  # short ones
    cases += [(tenths, 0.94, None, (9, 10)), (tenths, 0.5, 7.0, (5, 10))]
    cases += [(tenths, 0.96, None, (10, 10))]  # half a frame and more behind the last
    cases += [(pause, 4.0, 6.0, (2, 3)), (pause, 6.0, 10.3, (3, 4))]  # what is shown during the pause
    cases += [(tenths[:1], 0.0, 0.2, (0, 1)), (tenths[:1], 3.0, None, (1, 1))]
    for times, start, end, expected in cases:
        assert frames_between(times, start, end) == expected


def test_the_last_frame_lasts_as_long_as_most_of_the_16_before_it():
    for steps, seconds in (([1.0] * 20 + [0.1] * 16, 0.1), ([0.1, 0.1, 5.0], 0.1), ([2.0], 2.0), ([], 1.0)):
        assert sampling.last_frame_seconds(np.cumsum([0.0, *steps])) == pytest.approx(seconds)


@few
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.lists(st.floats(0, 5), min_size=1, max_size=5))
def test_consecutive_windows_partition_the_frames(steps: list[int], cuts: list[float]):
    times = np.concatenate([[0.0], np.cumsum(steps) / 1000])
    cuts = sorted({round(cut, 2) for cut in cuts if cut < times[-1]})
    bounds = [None, *cuts, None]
    windows = [frames_between(times, start, end) for start, end in pairwise(bounds)]
    for start, (first, _) in zip(bounds, windows, strict=False):
        if start is not None:
            assert abs(times[first] - start) <= np.abs(times - start).min() + 2e-6
    # One shorter than a frame has the frame nearest to its start, which the next has too.
    lengths = [last - first for first, last in windows]
    assert windows[0][0] == 0
    assert windows[-1][1] == len(times)
    for (_, last), (first, _), length in zip(windows, windows[1:], lengths, strict=False):
        assert first == last or (length == 1 and first == last - 1)


@few
@given(st.sampled_from([frames_in_halves, frames_at_random]), available, st.integers(1, 20), seeds)
def test_drawn_frames_are_ordered_and_repeat_only_if_there_are_too_few(draw, available: int, count: int, seed: int):
    """Half of them are from each half of the clip, or from anywhere."""
    frames = draw(available, count, np.random.default_rng(seed))
    assert frames == sorted(frames)
    assert len(frames) == count
    assert set(frames) <= set(range(available))
    if available >= count:
        assert len(set(frames)) == count
    if available >= count > 1 and draw is frames_in_halves:
        early = (available + count % 2) // 2  # if odd, the extra frame is from the first half
        assert sum(frame < early for frame in frames) == count - count // 2


@pytest.mark.parametrize("count", [1, 4])
def test_all_frames_are_sampled_over_time(count):
    rng = np.random.default_rng(0)
    drawn = [frames_in_halves(10, count, rng) for _ in range(1200 // count)]
    counts = np.bincount(np.ravel(drawn), minlength=10)
    # 1,200 draws of 10 frames: 120 each, standard deviation 8.5 (two of five in a half: sqrt(300 * .4 * .6)) or 10.4.
    assert np.abs(counts - 120).max() < 35


@few
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=40), seeds)
def test_a_grouped_order_is_a_permutation_with_adjacent_groups(groups: list[int], seed: int):
    order = grouped_order(np.array(groups), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(groups)))
    ordered = np.array(groups)[order]
    assert (np.diff(ordered) != 0).sum() + 1 == len(set(groups))
    assert np.array_equal(order, grouped_order(np.array(groups), np.random.default_rng(seed)))


def test_groups_and_their_members_are_shuffled_each_time():
    groups = np.repeat(np.arange(10), 4)
    rng = np.random.default_rng(0)
    first, second = grouped_order(groups, rng), grouped_order(groups, rng)
    assert groups[first].tolist() != groups[second].tolist()
    members = [order[groups[order] == 0].tolist() for order in (grouped_order(groups, rng) for _ in range(5))]
    assert len({tuple(m) for m in members}) > 1
