"""Tables of results: every number under its head. All numbers of the rows differ, so that no two can be confused."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from alpro.files import write_json
from alpro.pipeline.reporting.result_tables import Table, results, results_markdown, small_sample_note, tables

BASELINES = {"retrieval": "chance", "qa": "most frequent answer", "entities": "best constant", "decoded": ""}


def rows_of(table: str, what: str, key: str, metrics: list[str], numbers: Iterator[int], items: int, way: str = ""):
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    return [
        {
            "name": f"{key}/{way}/{metric}",
            "table": table,
            "what": what,
            "direction": way,
            "metric": metric,
            "value": next(numbers) + 0.25,
            "unit": "rank" if metric == "MdR" else "%",
            "higher_is_better": metric != "MdR",
            "items": items,
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
        Table(
            "Retrieval",
            ["", "", "R@1", "R@5", "R@10", "MdR ↓", "items"],
            [
                ["zero-shot retrieval", "t2v", "1.2 %", "3.2 %", "5.2 %", "7.2", "400"],
                ["zero-shot retrieval", "v2t", "9.2 %", "11.2 %", "13.2 %", "15.2", "200"],
                ["fine-tuned, unseen", "t2v", "17.2 %", "", "", "", "90"],
                ["chance", "t2v", "2.8 %", "4.8 %", "6.8 %", "8.8", ""],
                ["chance", "v2t", "10.8 %", "12.8 %", "14.8 %", "16.8", ""],
            ],
        ),
        Table(
            "Question answering",
            ["", "", "question answering", "frames shuffled", "most frequent answer", "items"],
            [
                ["all questions", "", "19.2 %", "25.2 %", "20.8 %", "300"],
                ["what", "", "21.2 %", "27.2 %", "22.8 %", "300"],
                ["how many", "", "23.2 %", "", "24.8 %", "17"],
            ],
        ),
        Table(
            "Entities",
            ["", "", "score", "best constant", "items"],
            [["prompter", "entity accuracy", "29.2 %", "30.8 %", "150"]],
        ),
        Table("Items that could be decoded", ["", "", "share"], [["decoded of clips", "190 of 200", "31.2 %"]]),
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
    assert table.heads == ["", "", "R@1", "R@50", "MdR ↓", "items"]
    assert table.lines[0] == ["zero-shot retrieval", "t2v", "1.2 %", "3.2 %", "5.2", "400"]


def test_a_score_without_chance_level_has_a_dash(rows):
    for row in rows:
        row["chance"] = None
    retrieval, answers, entities, _ = tables(rows)
    assert retrieval.lines[-1] == ["chance", "v2t", "-", "-", "-", "-", ""]
    assert answers.lines[0][-2:] == ["-", "300"]
    assert entities.lines[0][-2:] == ["-", "150"]


@pytest.mark.parametrize(
    ("items", "note"),
    [
        (10, "Only 10 test items: differences of less than 31 points are noise."),
        (1, "Only 1 test item: differences of less than 98 points are noise."),
        (99, "Only 99 test items: differences of less than 10 points are noise."),
        (100, ""),
        (5000, ""),
    ],
)
def test_scores_of_few_items_have_a_warning(items, note):
    """1.96 sqrt(0.5 x 0.5 / n): 30.99, 98 and 9.85 points."""
    assert small_sample_note(items) == note


def test_the_warning_is_about_the_direction_with_fewer_items(rows):
    """Ten captions each of twenty videos are no two hundred videos; a part of the queries is no reason to warn."""
    assert [table.note for table in tables(rows)] == [""] * 4
    for row in rows:
        row["items"] //= 10
    notes = [table.note.partition(" test items")[0] for table in tables(rows)]
    assert notes == ["Only 20", "Only 30", "Only 15", ""]


def test_results_are_those_of_every_evaluation(rows, tmp_path):
    for folder, part in (("zero_shot", rows[:3]), ("evaluate", rows[3:])):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "results.json", part)
    stages = ("pretrain", "zero_shot", "evaluate")
    listed: list[tuple[str, Path, dict[str, Any], bool]] = [(s, tmp_path / s, {"stage": s}, False) for s in stages]
    assert results(listed) == rows
    assert results(listed[:1]) == []
    assert results_markdown(listed[:1]) == ""


def test_markdown_has_the_lines_and_the_note(rows, tmp_path):
    answers = [row | {"items": 10} for row in rows if row["name"].startswith("qa/")]
    write_json(tmp_path / "results.json", answers)
    assert results_markdown([("evaluate", tmp_path, {"stage": "evaluate"}, False)]).splitlines() == [
        "**Question answering**",
        "",
        "|  |  | question answering | most frequent answer | items |",
        "| --- | --- | ---: | ---: | ---: |",
        "| all questions |  | 19.2 % | 20.8 % | 10 |",
        "| what |  | 21.2 % | 22.8 % | 10 |",
        "| how many |  | 23.2 % | 24.8 % | 10 |",
        "",
        "Only 10 test items: differences of less than 31 points are noise.",
    ]
