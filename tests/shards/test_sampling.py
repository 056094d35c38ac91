"""Which frames of a clip, and which samples in which order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sampling import frames_at_random, frames_in_halves, grouped_order, segment_starts

few = settings(max_examples=50, deadline=None)
available = st.integers(1, 60)
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize(
    ("available", "count", "starts"),
    [
        (8, 4, [0, 2, 4, 6]),
        (10, 4, [0, 2, 5, 7]),  # segments of 2.5 frames begin at 0, 2.5, 5, 7.5
        (4, 4, [0, 1, 2, 3]),
        (3, 4, [0, 0, 1, 2]),
        (1, 3, [0, 0, 0]),
        (5, 1, [0]),
    ],
)
def test_segment_starts_against_a_table(available: int, count: int, starts: list[int]):
    assert segment_starts(available, count) == starts


@few
@given(available, st.integers(1, 20))
def test_segments_are_in_order_equal_and_repeat_only_where_frames_are_too_few(available: int, count: int):
    starts = segment_starts(available, count)
    assert len(starts) == count
    assert starts[0] == 0
    assert starts[-1] < available
    steps = np.diff([*starts, available])
    assert steps.min() >= 0
    assert steps.max() - steps.min() <= 1
    assert (len(set(starts)) == count) == (available >= count)


@few
@given(available, st.integers(1, 10).map(lambda half: 2 * half), seeds)
def test_half_the_frames_come_from_each_half_of_the_clip(available: int, count: int, seed: int):
    frames = frames_in_halves(available, count, np.random.default_rng(seed))
    assert frames == sorted(frames)
    assert len(frames) == count
    assert set(frames) <= set(range(available))
    if available >= count:
        assert len(set(frames)) == count
        assert sum(frame < available // 2 for frame in frames) == count // 2


def test_frames_come_twice_only_where_there_are_too_few():
    assert all(len(set(frames_in_halves(5, 5, np.random.default_rng(seed)))) == 5 for seed in range(5))


def test_halves_take_every_frame_in_turn():
    rng = np.random.default_rng(0)
    drawn = [frames_in_halves(10, 4, rng) for _ in range(300)]
    counts = np.bincount(np.ravel(drawn), minlength=10)
    # 1,200 draws of 10 frames: 120 each, standard deviation 8.5 (two of five in a half: sqrt(300 * .4 * .6)).
    assert np.abs(counts - 120).max() < 35


@few
@given(available, st.integers(1, 20), seeds)
def test_frames_at_random_are_in_order_and_repeat_only_where_there_are_too_few(available: int, count: int, seed: int):
    frames = frames_at_random(available, count, np.random.default_rng(seed))
    assert frames == sorted(frames)
    assert len(frames) == count
    assert set(frames) <= set(range(available))
    if available >= count:
        assert len(set(frames)) == count


@few
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=40), seeds)
def test_a_grouped_order_is_a_permutation_in_which_groups_stand_together(groups: list[int], seed: int):
    order = grouped_order(np.array(groups), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(groups)))
    ordered = np.array(groups)[order]
    assert (np.diff(ordered) != 0).sum() + 1 == len(set(groups))
    assert np.array_equal(order, grouped_order(np.array(groups), np.random.default_rng(seed)))


def test_groups_and_their_members_are_in_another_order_each_time():
    groups = np.repeat(np.arange(10), 4)
    rng = np.random.default_rng(0)
    first, second = grouped_order(groups, rng), grouped_order(groups, rng)
    assert groups[first].tolist() != groups[second].tolist()
    members = [order[groups[order] == 0].tolist() for order in (grouped_order(groups, rng) for _ in range(5))]
    assert len({tuple(m) for m in members}) > 1
