"""Intervals, paired differences and p values: tables worked out by hand, laws, and comparisons of
two evaluations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.stages.evaluation import statistics
from alpro.stages.evaluation.comparison import compare
from alpro.stages.evaluation.metrics import ACCURACY, ENTITY_ACCURACY, Metric, Queries, Score
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import (
    PERMUTATIONS,
    PairedDifference,
    bootstrap_counts,
    bootstrap_interval,
    exchanges,
    independent_videos,
    medians,
    paired_difference,
    resampled,
    value_of,
)

# Three queries of video 0 (values 0, 0, 30), one of video 1 (90), two of video 2 (60, 90).
VALUES = np.array([0.0, 0.0, 30.0, 90.0, 60.0, 90.0])
VIDEO = np.array([0, 0, 0, 1, 2, 2])
# how often each video is drawn, the mean and the median of its queries
DRAWN = [
    ([1, 1, 1], 45, 45),  # (30 + 90 + 150) / 6; between 30 and 60
    ([3, 0, 0], 10, 0),
    ([0, 3, 0], 90, 90),
    ([0, 1, 2], 78, 90),  # (90 + 300) / 5; 60 60 90 90 90
    ([2, 0, 1], 26.25, 15),  # (60 + 150) / 8; 0 0 0 0 30 30 60 90
]


@pytest.mark.parametrize(("counts", "mean", "median"), DRAWN)
def test_a_video_is_drawn_with_all_its_queries(counts, mean, median):
    drawn = np.array([counts], float)
    assert resampled(VALUES, VIDEO, drawn, "mean") == pytest.approx([mean])
    assert resampled(VALUES, VIDEO, drawn, "median") == pytest.approx([median])


def test_the_interval_of_two_videos_is_between_their_scores():
    """A quarter of the samples has only the first video, and a quarter only the second."""
    videos = np.array(["a", "a", "b", "b"], object)
    values = np.array([0.0, 0.0, 100.0, 50.0])
    assert bootstrap_interval(values, videos, "mean") == (0, 75)
    assert bootstrap_interval(values, videos, "median") == (0, 75)


@pytest.mark.parametrize(
    ("values", "videos"),
    [([100.0, 0.0], ["a", "a"]), ([100.0, 100.0, 100.0], ["a", "b", "c"]), ([5.0], ["a"])],
)
def test_there_is_no_interval_of_one_video_or_of_equal_values(values, videos):
    assert bootstrap_interval(np.array(values), np.array(videos, object), "mean") is None


def test_the_interval_of_a_share_is_the_binomial_one():
    """50 of 100 videos: sqrt(0.5 x 0.5 / 100) x 1.96 = 9.8 points. Ten questions of each video that
    are right or wrong together add nothing to it."""
    right = np.repeat([100.0, 0.0], 50)
    once = bootstrap_interval(right, np.arange(100), "mean")
    assert once == pytest.approx((40.2, 59.8), abs=1)
    assert bootstrap_interval(
        np.repeat(right, 10), np.repeat(np.arange(100), 10), "mean"
    ) == pytest.approx(once)
    independent = bootstrap_interval(np.repeat(right, 10), np.arange(1000), "mean")
    assert independent == pytest.approx((46.9, 53.1), abs=0.5)


queries = st.lists(st.tuples(st.integers(0, 6), st.integers(-4, 9)), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(queries, st.sampled_from(["mean", "median"]))
def test_an_interval_contains_its_score_whatever_the_order_and_names(rows, statistic):
    videos = np.array([f"v{v}" for v, _ in rows], object)
    values = np.array([float(x) for _, x in rows])
    interval = bootstrap_interval(values, videos, statistic)
    if interval is None:
        assert len(set(videos)) == 1 or len(set(values)) == 1
        return
    low, high = interval
    assert values.min() <= low <= value_of(values, statistic) <= high <= values.max()
    assert bootstrap_interval(values[::-1], videos[::-1], statistic) == pytest.approx(interval)
    assert bootstrap_interval(values * 2 + 1, videos, statistic) == pytest.approx(
        (low * 2 + 1, high * 2 + 1)
    )


@settings(max_examples=40, deadline=None)
@given(queries, st.sampled_from(["mean", "median"]), st.integers(-3, 9))
def test_a_difference_is_within_its_interval_and_turns_with_the_sides(rows, statistic, seed):
    """Equal results, where the seed is negative, do not differ."""
    videos = np.array([v for v, _ in rows])
    a = np.array([float(x) for _, x in rows])
    b = np.random.default_rng(seed).permutation(a) if seed >= 0 else a
    there = paired_difference(a, b, videos, statistic)
    back = paired_difference(b, a, videos, statistic)
    assert there.difference == there.b - there.a == -back.difference
    assert there.p == back.p
    assert 1 / (PERMUTATIONS + 1) <= there.p <= 1
    assert (there.difference, there.p) == (0, 1) or seed >= 0
    assert (there.low is None) == (len(set(videos)) == 1)
    if there.low is not None:
        assert (there.low, there.high) == (0, 0) or seed >= 0
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
        if statistic == "mean":
            assert there.low <= there.difference <= there.high


def test_the_p_value_is_the_share_of_exchanges_that_differ_as_much():
    """Six videos, all better by 10: of the 64 exchanges only none and all differ as much, with
    either sign."""
    a = np.arange(6) * 7.0
    actual = paired_difference(a, a + 10, np.arange(6), "mean")
    assert (actual.difference, actual.low, actual.high) == pytest.approx((10, 10, 10))
    assert actual.p == pytest.approx(2 / 64, abs=0.012)
    # Three questions of each video are exchanged together, so there is no more evidence.
    again = paired_difference(
        np.repeat(a, 3), np.repeat(a + 10, 3), np.repeat(np.arange(6), 3), "mean"
    )
    assert again == pytest.approx(actual)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=6))
def test_exchanges_that_differ_by_rounding_alone_count(rows):
    """All exchanges of one video have the same difference, with either sign, but not always to the
    last bit."""
    a, b = np.array(rows).T
    assert paired_difference(a, b, np.zeros(len(a)), "mean").p == 1


def test_draws_are_the_same_each_time_and_in_parts(monkeypatch):
    whole = np.concatenate(list(bootstrap_counts(30)))
    assert whole.shape == (statistics.RESAMPLES, 30)
    assert (whole.sum(axis=1) == 30).all()
    assert (whole == np.concatenate(list(bootstrap_counts(30)))).all()
    monkeypatch.setattr(statistics, "MAX_ELEMENTS", 1000)
    assert np.concatenate(list(bootstrap_counts(30))).shape == whole.shape
    parts = list(exchanges(30))
    assert len(parts) == -(-PERMUTATIONS // 33)
    assert np.concatenate(parts).mean() == pytest.approx(0.5, abs=0.02)
    values = np.arange(30.0)
    video = np.arange(30)
    assert medians(values, video, whole).tolist() == [
        np.median(np.repeat(values, r)) for r in whole.astype(int)
    ]


@pytest.mark.parametrize(
    ("queries", "videos"),
    [([1] * 5, 5.0), ([3] * 5, 5.0), ([27] + [1] * 27, 54**2 / (27**2 + 27)), ([40], 1.0)],
)
def test_videos_with_most_of_the_queries_count_for_less(queries, videos):
    ids = np.array([f"v{n}" for n, count in enumerate(queries) for _ in range(count)])
    assert independent_videos(ids) == pytest.approx(videos)


MDR = Metric("MdR", "MdR", "retrieval", unit="rank", higher_is_better=False, statistic="median")
QUESTIONS = Queries.of(["v0", "v0", "v1", "v2", "v2"], ["who?", "what?", "what?", "how?", "how?"])


def clips(*numbers: int, caption: str = "a ball | a red ball") -> Queries:
    return Queries.of([f"v{n}" for n in numbers], [caption] * len(numbers))


def evaluation(folder: Path, *scores: tuple[Metric, list[float], Queries]) -> Path:
    folder.mkdir(parents=True)
    results = Results("test", folder)
    for metric, values, queries in scores:
        results.add(Score(metric, np.array(values), 10.0, queries), "by hand", metric.table)
    results.outcome()
    return folder


def test_scores_are_compared_by_query_and_not_by_their_order(tmp_path):
    """The second "how?" of v2 is another question than the first: repeated queries are matched in
    their order."""
    turned = QUESTIONS.select(np.array([4, 2, 0, 1, 3]))
    a = evaluation(tmp_path / "a", (ACCURACY, [0, 100, 100, 0, 100], QUESTIONS))
    b = evaluation(tmp_path / "b", (ACCURACY, [0, 100, 0, 100, 100], turned))
    ((row, actual),) = compare(a, b).scores
    assert (row["name"], row["what"]) == ("qa/acc", "by hand")
    assert actual == PairedDifference(60, 60, 0, 0, 0, 1)


def test_each_score_has_both_values_and_the_difference(tmp_path):
    a = evaluation(
        tmp_path / "a", (ACCURACY, [0, 0, 100, 0, 0], QUESTIONS), (MDR, [9, 8, 1], clips(0, 1, 2))
    )
    b = evaluation(
        tmp_path / "b", (MDR, [2, 5, 1], clips(0, 1, 2)), (ACCURACY, [100, 0, 100, 0, 0], QUESTIONS)
    )
    compared = compare(a, b)
    assert [(row["name"], d.a, d.b, d.difference) for row, d in compared.scores] == [
        ("qa/acc", 20, 40, 20),
        ("retrieval/MdR", 8, 2, -6),
    ]
    # Video v0 alone has a question that differs, 1 of 2. A sample without it has no difference, one
    # of it alone has 50.
    accuracy = compared.scores[0][1]
    assert (accuracy.low, accuracy.high, accuracy.p) == (0, 50, 1)
    assert (compared.other_queries, compared.single) == ({}, 0)


def test_a_score_of_other_queries_is_left_out(tmp_path):
    """Such as entity accuracy with another vocabulary: only clips with a known entity count."""
    a = evaluation(
        tmp_path / "a",
        (ACCURACY, [0.0] * 5, QUESTIONS),
        (ENTITY_ACCURACY, [0, 100, 0], clips(0, 1, 2)),
        (MDR, [1], clips(0)),
    )
    b = evaluation(
        tmp_path / "b", (ACCURACY, [0.0] * 5, QUESTIONS), (ENTITY_ACCURACY, [100, 0], clips(1, 3))
    )
    compared = compare(a, b)
    assert [row["name"] for row, _ in compared.scores] == ["qa/acc"]
    assert compared.other_queries == {"entities/acc": (3, 2, 1)}
    assert compared.single == 1


def test_different_test_sets_are_a_mistake(tmp_path):
    """So are clips of the same names with other captions, as those of the sample with another
    seed."""
    mine = evaluation(tmp_path / "mine", (MDR, [9, 8, 1], clips(0, 1, 2)))
    seeded = evaluation(tmp_path / "seeded", (MDR, [9, 8, 1], clips(0, 1, 2, caption="a star")))
    with pytest.raises(InputError, match="retrieval/MdR has 3 and 3 queries, 0 of them shared"):
        compare(mine, seeded)
    a = evaluation(tmp_path / "evaluate" / "0123456789", (ACCURACY, [0.0] * 5, QUESTIONS))
    b = evaluation(
        tmp_path / "evaluate" / "abcdefghij",
        (ACCURACY, [0.0] * 3, QUESTIONS.select(np.array([0, 1, 3]))),
    )
    c = evaluation(tmp_path / "zero_shot" / "abcdefghij", (MDR, [1, 2], clips(0, 1)))
    (tmp_path / "pretrain").mkdir()
    for other, named in (
        (b, "abcdefgh.*qa/acc has 5 and 3 queries, 3"),
        (c, "abcdefgh"),
        (tmp_path / "pretrain", "pretrain"),
    ):
        with pytest.raises(InputError, match=named):
            compare(a, other)
