"""Tables of results: every number under its head. All numbers of the rows differ, so that no two can be confused."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from alpro.files import write_json
from alpro.pipeline.reports.comparison import comparison_table
from alpro.pipeline.reports.results import (
    ResultTable,
    results,
    small_sample_note,
    tables,
)
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.statistics import PairedDifference

BASELINES = {"retrieval": "chance", "qa": "most frequent answer", "entities": "best constant", "decoded": ""}


def rows_of(table: str, what: str, key: str, metrics: list[str], numbers: Iterator[int], items: int, way: str = ""):
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    return [
        {
            "name": f"{key}/{way}/{metric}",
            "table": table,
            "what": what,
            "direction": way,
            "protocol": f"all pairs, {items} frames" if table == "retrieval" else "",
            "metric": metric,
            "value": next(numbers) + 0.25,
            "low": None,
            "high": None,
            "unit": "rank" if metric == "MdR" else "%",
            "higher_is_better": metric != "MdR",
            "items": items,
            "videos": items,
            "independent_videos": float(items),
            "chance": next(numbers) + 0.75 if BASELINES[table] else None,
            "baseline": BASELINES[table],
        }
        for metric in metrics
    ]


RANKS = ["R@1", "R@5", "R@10", "MdR"]
TYPES = ["all questions", "what", "how many"]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    numbers = count(1)
    ranked = [
        *rows_of("retrieval", "zero-shot retrieval", "zero_shot", RANKS, numbers, 400, "t2v"),
        *rows_of("retrieval", "zero-shot retrieval", "zero_shot", RANKS, numbers, 200, "v2t"),
        *rows_of("retrieval", "fine-tuned, unseen", "retrieval", ["R@1"], numbers, 90, "t2v"),
    ]
    answers = [
        *rows_of("qa", "question answering", "qa", TYPES, numbers, 300),
        *rows_of("qa", "control: frames shuffled", "qa_shuffled", TYPES[:2], numbers, 300),
    ]
    others = [
        *rows_of("entities", "prompter", "entities", ["entity accuracy"], numbers, 150),
        *rows_of("decoded", "decoded of clips", "decoded", ["190 of 200"], numbers, 200),
    ]
    answers[2]["items"] = 17
    return [*answers, *others, *ranked]


def test_every_number_is_in_its_column(rows):
    assert tables(rows) == [
        ResultTable(
            "Retrieval",
            ["", "", "R@1", "R@5", "R@10", "MdR ↓", "items", "protocol"],
            [
                ["zero-shot retrieval", "t2v", "1.2 %", "3.2 %", "5.2 %", "7.2", "400", "all pairs, 400 frames"],
                ["zero-shot retrieval", "v2t", "9.2 %", "11.2 %", "13.2 %", "15.2", "200", "all pairs, 200 frames"],
                ["fine-tuned, unseen", "t2v", "17.2 %", "", "", "", "90", "all pairs, 90 frames"],
                ["chance", "t2v", "2.8 %", "4.8 %", "6.8 %", "8.8", "", ""],
                ["chance", "v2t", "10.8 %", "12.8 %", "14.8 %", "16.8", "", ""],
            ],
        ),
        ResultTable(
            "Question answering",
            ["", "", "question answering", "frames shuffled", "most frequent answer", "items"],
            [
                ["all questions", "", "19.2 %", "25.2 %", "20.8 %", "300"],
                ["what", "", "21.2 %", "27.2 %", "22.8 %", "300"],
                ["how many", "", "23.2 %", "", "24.8 %", "17"],
            ],
        ),
        ResultTable(
            "Entities",
            ["", "", "score", "best constant", "items"],
            [["prompter", "entity accuracy", "29.2 %", "30.8 %", "150"]],
        ),
        ResultTable("Items that could be decoded", ["", "", "share"], [["decoded of clips", "190 of 200", "31.2 %"]]),
    ]


def test_tables_without_rows_are_left_out(rows):
    assert tables([]) == []
    assert [table.title for table in tables([row for row in rows if row["table"] == "qa"])] == ["Question answering"]


def test_rows_of_another_table_are_shown_too(rows):
    """A table that an evaluation adds has a line for each score."""
    others = [row | {"table": "captions"} for row in rows if row["table"] == "entities"]
    (*_, last) = tables([*rows, *others])
    assert (last.title, last.lines) == ("Captions", [["prompter", "entity accuracy", "29.2 %", "30.8 %", "150"]])


def test_a_column_for_each_metric_in_the_order_of_the_rows():
    numbers = count(1)
    kinds = ("R@1", "R@50", "MdR")
    (table,) = tables(rows_of("retrieval", "zero-shot retrieval", "zero_shot", list(kinds), numbers, 400, "t2v"))
    assert table.heads == ["", "", "R@1", "R@50", "MdR ↓", "items", "protocol"]
    assert table.lines[0] == ["zero-shot retrieval", "t2v", "1.2 %", "3.2 %", "5.2", "400", "all pairs, 400 frames"]


def test_a_score_without_chance_level_has_a_dash(rows):
    for row in rows:
        row["chance"] = None
    retrieval, answers, entities, _ = tables(rows)
    assert retrieval.lines[-1] == ["chance", "v2t", "-", "-", "-", "-", "", ""]
    assert answers.lines[0][-2:] == ["-", "300"]
    assert entities.lines[0][-2:] == ["-", "150"]


@pytest.mark.parametrize(
    ("videos", "independent", "note"),
    [
        (10, 10, "Only 10 test videos: differences of less than 31 points are noise."),
        (10, 8.5, "Only 10 test videos: differences of less than 34 points are noise."),
        (1, 1, "Only 1 test video: differences of less than 98 points are noise."),
        (99, 99, "Only 99 test videos: differences of less than 10 points are noise."),
        (300, 4.0, "Only 300 test videos, which count as 4 because some have most of the queries: differences of less "
         "than 49 points are noise."),
        (100, 100, ""),
        (5000, 700.0, ""),
    ],
)  # fmt: skip
def test_scores_of_few_videos_have_a_warning(videos, independent, note):
    """1.96 sqrt(0.5 x 0.5 / n): 30.99, 33.6, 98, 9.85 and 49 points."""
    assert small_sample_note(videos, independent) == note


def test_the_warning_is_about_the_direction_with_fewer_items(rows):
    """Ten captions each of twenty videos are no two hundred videos; a part of the queries is no reason to warn."""
    assert [table.note for table in tables(rows)] == [""] * 4
    for row in rows:
        row |= {name: row[name] // 10 for name in ("items", "videos", "independent_videos")}
    notes = [table.note.partition(" test videos")[0] for table in tables(rows)]
    assert notes == ["Only 20", "Only 30", "Only 15", ""]


def test_the_warning_counts_videos_and_not_their_queries(rows):
    """54 queries, of which 27 are of one video: a rank of that video moves a recall by 50 points."""
    row = rows[0] | {"items": 54, "videos": 28, "independent_videos": 54**2 / (27**2 + 27)}
    (table,) = tables([row])
    assert "Only 28 test videos, which count as 4 because some" in table.note
    assert "less than 50 points are noise" in table.note


def test_scores_have_their_intervals_and_the_note_says_so(rows):
    for row in rows:
        row |= {"low": row["value"] - 1, "high": row["value"] + 2} if row["name"] != "decoded//190 of 200" else {}
    rows[0] |= {"low": None, "high": None}
    retrieval, answers, entities, shares = tables(rows)
    assert retrieval.lines[0][2:4] == ["1.2 [0.2, 3.2]", "3.2 [2.2, 5.2]"]
    assert [line[2] for line in answers.lines] == ["19.2 %", "21.2 [20.2, 23.2]", "23.2 [22.2, 25.2]"]
    assert entities.lines[0][2:4] == ["29.2 [28.2, 31.2]", "30.8 %"]
    brackets = "In brackets: 95 % bootstrap interval over test videos."
    assert [table.note for table in (retrieval, answers, entities, shares)] == [brackets] * 3 + [""]
    rows[5] |= {"videos": 10, "independent_videos": 10.0}
    assert tables([rows[5]])[0].note == f"{brackets} {small_sample_note(10, 10)}"


def test_a_comparison_has_both_values_the_difference_and_its_p_value(rows):
    by_name = {row["name"]: row for row in rows}
    scores = [
        (by_name["qa//what"], PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344)),
        (by_name["zero_shot/t2v/MdR"], PairedDifference(7.0, 5.0, -2.0, None, None, 1 / 2001)),
    ]
    table = comparison_table(["3f2a9c12", "8b1d02aa"], [Comparison(scores, {"entities/acc": (20, 18, 15)}, 4)])
    assert table.heads == ["", "", "3f2a9c12", "8b1d02aa", "difference", "p", "items"]
    assert table.lines == [
        ["question answering", "what", "41.0 %", "43.5 %", "+2.5 [-1.0, +6.0]", "0.1344", "300"],
        ["zero-shot retrieval", "t2v MdR ↓", "7.0", "5.0", "-2.0", "0.0005", "400"],
    ]
    assert table.note.splitlines()[1:] == [
        "Left out, other queries: entities/acc (20 and 18 queries, 15 shared).",
        "Only one of them has 4 other scores.",
    ]


def test_several_evaluations_are_compared_with_the_first(rows):
    """Each has its value, its difference and its p value; with rows, values have their own intervals."""
    by_name = {row["name"]: row | {"low": row["value"] - 1, "high": row["value"] + 2} for row in rows}
    what, how = by_name["qa//what"], by_name["qa//how many"]
    second = Comparison([(what, PairedDifference(41.0, 43.5, 2.5, -1.0, 6.0, 0.25))], {}, 0)
    third = Comparison(
        [(what, PairedDifference(41.0, 40.0, -1.0, None, None, 1)), (how, PairedDifference(9, 8, -1, -2, 0, 0.5))],
        {"entities/acc": (20, 18, 15)},
        0,
    )
    table = comparison_table(["a1", "b2", "c3"], [second, third])
    assert table.heads == ["", "", "a1", "b2", "b2 - a1", "p", "c3", "c3 - a1", "p", "items"]
    assert [line[2:-1] for line in table.lines] == [
        ["41.0 %", "43.5 %", "+2.5 [-1.0, +6.0]", "0.2500", "40.0 %", "-1.0", "1.0000"],
        ["9.0 %", "", "", "", "8.0 %", "-1.0 [-2.0, +0.0]", "0.5000"],
    ]
    assert table.note.splitlines()[1:] == ["c3: Left out, other queries: entities/acc (20 and 18 queries, 15 shared)."]
    own = [by_name, by_name, {"qa//what": what | {"value": 40.0, "low": 39.0, "high": 42.0}, "qa//how many": how}]
    (line, _) = comparison_table(["a1", "b2", "c3"], [second, third], own).lines
    assert [line[2], line[3], line[6]] == ["21.2 [20.2, 23.2]", "21.2 [20.2, 23.2]", "40.0 [39.0, 42.0]"]


def test_results_are_those_of_every_evaluation(rows, tmp_path):
    for folder, part in (("zero_shot", rows[:3]), ("evaluate", rows[3:])):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "results.json", part)
    stages = ("pretrain", "zero_shot", "evaluate")
    listed: list[tuple[str, Path, dict[str, Any], bool]] = [(s, tmp_path / s, {"stage": s}, False) for s in stages]
    assert results(listed) == rows
    assert results(listed[:1]) == []
