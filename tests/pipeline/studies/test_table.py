"""Means, intervals and paired differences over seeds, against tables worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpro.pipeline.reports.figures import study_figure
from alpro.pipeline.studies.table import interval, label, score_rows, study_table

# Two-sided 95 % quantiles of Student's distribution, from a printed table, by the number of values.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}


def row(name: str, value: float | None, chance: float | None = 10.0, items: int = 20, metric: str = "R@1") -> dict:
    shown = {"what": "retrieval", "direction": "t2v", "metric": metric, "unit": "%", "higher_is_better": True}
    return {"name": name, "value": value, "chance": chance, "items": items, **shown}


@pytest.mark.parametrize("count", STUDENT)
def test_the_interval_is_students(count):
    values = [0.0] * (count - 1) + [float(count)]  # variance: count ** 2 / count
    assert interval(values) == pytest.approx(STUDENT[count], rel=1e-3)


def test_one_value_has_no_interval():
    assert interval([]) is None
    assert interval([3.0]) is None


numbers = st.floats(-100, 100, allow_subnormal=False)


@given(st.lists(numbers, min_size=2, max_size=8), numbers, numbers)
def test_the_interval_scales_with_the_values_and_does_not_move_with_them(values, factor, shift):
    moved = interval([factor * value + shift for value in values])
    assert moved == pytest.approx(abs(factor) * interval(values), rel=1e-6, abs=1e-6)


@given(st.dictionaries(st.integers(0, 9), numbers, min_size=2), numbers)
def test_a_constant_gain_has_no_spread_whatever_the_seeds_do(values, gain):
    scores = {
        "base": {seed: [row("a", value)] for seed, value in values.items()},
        "better": {seed: [row("a", value + gain)] for seed, value in values.items()},
    }
    _, better = score_rows(scores)
    assert better["difference"] == pytest.approx(gain, abs=1e-9)
    assert better["difference_interval"] == pytest.approx(0, abs=1e-9)


def test_rows_against_a_table():
    """Seed 2 of the other variant failed, and only the base has the score b."""
    scores = {
        "base": {
            0: [row("a", 10.0, chance=5.0), row("b", 1.0, None)],
            1: [row("a", 20.0, chance=7.0), row("b", None)],
            2: [row("a", 60.0, chance=9.0, items=30), row("b", 3.0, None)],
        },
        "other": {0: [row("a", 14.0)], 1: [row("a", 22.0)]},
    }
    a, other, b = score_rows(scores)
    assert [(one["score"], one["variant"]) for one in (a, other, b)] == [("a", "base"), ("a", "other"), ("b", "base")]
    assert (a["seeds"], a["values"], a["items"]) == ([0, 1, 2], [10, 20, 60], [20, 20, 30])
    assert (a["mean"], a["chance"], a["difference"], a["difference_interval"]) == (30, 7, None, None)
    assert a["interval"] == pytest.approx(4.303 * (1400 / 2 / 3) ** 0.5, rel=1e-3)
    assert (other["seeds"], other["mean"], other["difference"]) == ([0, 1], 18, 3)  # of +4 and +2
    assert other["difference_interval"] == pytest.approx(12.706 * 1, rel=1e-3)
    assert (b["seeds"], b["values"], b["chance"]) == ([0, 2], [1, 3], None)


def test_no_scores_have_no_rows():
    assert score_rows({"base": {}, "other": {}}) == []


def test_variants_of_which_the_base_failed_have_no_differences():
    (only,) = score_rows({"base": {}, "other": {0: [row("a", 1.0)]}})
    assert (only["variant"], only["difference"]) == ("other", None)


def test_the_table_of_one_variant_has_no_columns_of_differences():
    rows = score_rows({"base": {0: [row("a", 10.0)], 1: [row("a", 20.0)]}})
    table = study_table("s", rows, "base")
    assert table.heads == ["score", "", "mean", "±", "each seed", "chance"]
    assert table.lines == [["retrieval, t2v R@1", "", "15.0 %", "± 63.5", "10.0 20.0", "10.0 %"]]


def test_a_table_of_two_variants():
    rows = score_rows({"base": {0: [row("a", 10.0)]}, "other": {0: [row("a", 8.5, None)]}})
    table = study_table("s", rows, "base")
    assert table.lines == [
        ["retrieval, t2v R@1", "base", "10.0 %", "", "", "", "10.0", "10.0 %"],
        ["retrieval, t2v R@1", "other", "8.5 %", "", "-1.5", "", "8.5", "-"],
    ]
    assert 'minus "base"' in table.note


def test_a_label_says_where_lower_is_better():
    rank = row("m", 3.0, metric="MdR") | {"unit": "rank", "higher_is_better": False}
    assert label(rank) == "retrieval, t2v MdR ↓"


@pytest.mark.parametrize("count", [1, 4])
def test_the_plot_has_a_panel_a_score_and_a_line_a_variant(count):
    runs = {seed: [row(f"score {i}", 10.0 * seed + i, 10.0) for i in range(count)] for seed in range(3)}
    rows = score_rows({"base": runs, "other": {0: runs[0]}})
    panels = [axes for axes in study_figure(rows).axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"score {i}" for i in range(count)]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["base", "other"]
    dots = [line for line in panels[0].lines if line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in dots] == [[0, 10, 20], [0]]


def test_variants_with_bases_of_their_own():
    """A seed that a base lacks is left out."""
    scores = {
        "weak": {0: [row("a", 10.0), row("x", 1.0)], 1: [row("a", 20.0), row("x", 3.0)]},
        "weak+": {0: [row("a", 13.0)], 1: [row("a", 21.0)]},
        "strong": {0: [row("a", 50.0), row("x", 8.0)]},
        "strong+": {0: [row("a", 40.0)], 1: [row("a", 90.0)]},
    }
    rows = score_rows(scores, {"weak+": "weak", "strong+": "strong"})
    differences = {one["variant"]: (one["base"], one["difference"]) for one in rows if one["score"] == "a"}
    assert differences == {
        "weak": (None, None),
        "weak+": ("weak", 2),
        "strong": (None, None),
        "strong+": ("strong", -10),
    }
    assert "minus its base" in study_table("s", rows, "weak").note
