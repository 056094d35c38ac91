"""Tables of results: every number under its head, notes, and runs side by side."""

from pathlib import Path

import pytest

from alpro.files import write_json
from alpro.pipeline.reports.results import Table, change_text, data_table, main_table, score_text, tables
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.statistics import PairedDifference


def test_every_number_is_in_its_column(rows):
    shown = tables({"score": rows})
    assert [(table.title, table.heads, table.lines) for table in shown] == [
        (
            "Retrieval",
            ["", "", "score", "chance", "items"],
            [
                ["zero-shot retrieval", "t2v R@1", "10.2 %", "11.8 %", "400"],
                ["zero-shot retrieval", "t2v R@5", "12.2 %", "13.8 %", "400"],
                ["zero-shot retrieval", "t2v MdR ↓", "14.2", "15.8", "400"],
                ["zero-shot retrieval", "v2t R@1", "16.2 %", "17.8 %", "200"],
            ],
        ),
        (
            "Question answering",
            ["", "", "score", "most frequent answer", "items"],
            [
                ["question answering", "all questions", "1.2 %", "2.8 %", "300"],
                ["question answering", "what", "3.2 %", "4.8 %", "300"],
                ["control: text only", "all questions", "5.2 %", "6.8 %", "290"],
            ],
        ),
        (
            "Entities",
            ["", "", "score", "best constant", "items"],
            [["prompter", "entity accuracy", "7.2 %", "8.8 %", "150"]],
        ),
        (
            "Decoded items",
            ["", "", "score", "chance", "items"],
            [["decoded of clips", "190 of 200", "9.2 %", "-", "200"]],
        ),
    ]
    protocols = "all pairs, 400 frames: zero-shot retrieval.\nall pairs, 200 frames: zero-shot retrieval."
    assert [table.note for table in shown] == [protocols, "", "", ""]
    assert tables({"score": []}) == []


def test_a_table_that_an_evaluation_adds_is_shown_after_the_others(rows):
    others = [
        row | {"table": "captions", "name": f"captions/{row['name']}"} for row in rows if row["table"] == "entities"
    ]
    (*_, last) = tables({"score": [*others, *rows]})
    assert (last.title, last.lines) == ("Captions", [["prompter", "entity accuracy", "7.2 %", "8.8 %", "150"]])


def test_items_that_are_also_in_training_are_a_note_of_every_table(rows):
    shared = {"table": "left_out", "name": "left_out/clips", "metric": "3 of 40", "what": "items of clips"}
    for table in tables({"score": [*rows, rows[0] | shared]}):
        assert table.note.splitlines()[-1].startswith("3 of 40 items of clips are left out")


def test_runs_are_columns_with_the_difference_of_each_to_the_first(rows):
    """A score that one run lacks, or over other queries, has no difference."""
    first, second = rows[:2], [rows[0] | {"value": 40.0}, rows[3]]
    third = [rows[1] | {"value": 7.0, "low": 6.0, "high": 8.04}]
    compared = [
        Comparison([(rows[0], PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344))], {}, 0),
        Comparison([(rows[1], PairedDifference(9, 8, -1, None, None, 1 / 2001))], {"qa/all": (20, 18, 15)}, 0),
    ]
    answers, entities = tables({"a1": first, "b2": second, "c3": third}, compared)
    assert answers.heads == ["", "", "a1", "b2", "b2 - a1", "p", "c3", "c3 - a1", "p", "most frequent answer", "items"]
    assert [line[2:-2] for line in answers.lines] == [
        ["1.2 %", "40.0 %", "+2.5 [-1.0, +6.0]", "0.1344", "", "", ""],
        ["3.2 %", "", "", "", "7.0 [6.0, 8.0]", "-1.0", "0.0005"],
    ]
    assert entities.lines[0][2:-2] == ["", "7.2 %", "", "", "", "", ""]
    assert "c3 has other queries of qa/all: 20 and 18, 15 of them shared." in answers.note.splitlines()
    (two, _) = tables({"a1": first, "b2": second}, compared[:1])
    assert two.heads == ["", "", "a1", "b2", "difference", "p", "most frequent answer", "items"]
    (alone, _) = tables({"a1": first, "b2": second})
    assert alone.heads == ["", "", "a1", "b2", "most frequent answer", "items"]


@pytest.mark.parametrize(
    ("of", "text"),
    [
        ((2.54, -1.04, 6.0), "+2.5 [-1.0, +6.0]"),
        ((-0.04, None, None), "+0.0"),
        ((-1.0, -2.0, -0.01), "-1.0 [-2.0, +0.0]"),
    ],
)
def test_a_change_has_a_sign(of, text):
    assert change_text(*of) == text


def test_a_score_has_its_interval(rows):
    assert score_text(rows[0] | {"value": 41.04, "low": 28.0, "high": 54.46}) == "41.0 [28.0, 54.5]"
    assert score_text(rows[0]) == "1.2 %"
    rows[0] |= {"low": 0.0, "high": 2.0}
    notes = [table.note.startswith("In brackets") for table in tables({"score": rows})]
    assert notes == [False, True, False, False]


@pytest.mark.parametrize(
    ("videos", "independent", "numbers"),
    [
        (10, 10, ["10", "31"]),
        (10, 8.5, ["10", "34"]),
        (1, 1, ["1", "98"]),
        (99, 99, ["99", "10"]),
        (300, 4.0, ["300", "4", "49"]),
        (28, 54**2 / (27**2 + 27), ["28", "4", "50"]),  # 54 queries, of which 27 are of one video
        (100, 100, []),
        (5000, 700.0, []),
    ],
)
def test_scores_of_few_videos_have_a_warning(rows, videos, independent, numbers):
    """1.96 sqrt(0.5 x 0.5 / n): 30.99, 33.6, 98, 9.85 and 49 points."""
    (table,) = tables({"score": [rows[0] | {"videos": videos, "independent_videos": independent}]})
    assert [word for word in table.note.split() if word.isdigit()] == numbers


def test_the_warning_is_about_the_direction_with_fewer_videos(rows):
    """Ten captions each of twenty videos are no two hundred videos; a part of the queries is no reason to warn."""
    for row in rows:
        row |= {name: row[name] // 10 for name in ("items", "videos", "independent_videos")}
    rows[1] |= {"items": 2, "videos": 2, "independent_videos": 2.0}
    notes = [table.note.partition(" test videos")[0] for table in tables({"score": rows})]
    assert notes == ["Only 20", "Only 30", "Only 15", "Only 20"]


def test_the_main_scores_are_those_that_a_person_looks_at_first(rows):
    names = {"qa/all questions": "qa/acc", "zero_shot/t2v/R@1": "zero_shot/t2v/R1"}
    named = [row | {"name": names.get(row["name"], row["name"])} for row in rows]
    named[0] |= {"low": 1.0, "high": 2.0}
    table = main_table(named)
    assert table.heads == ["", "", "score [95 %]", "chance"]
    assert table.lines == [
        ["zero-shot retrieval", "t2v R@1", "10.2 %", "11.8 %"],
        ["question answering", "all questions", "1.2 [1.0, 2.0]", "2.8 %"],
    ]
    assert main_table(rows[:1]) is None


def test_rows_are_those_of_every_evaluation_each_once(rows, tmp_path):
    artifacts = []
    for stage, part in (("pretrain", rows), ("zero_shot", rows[:3]), ("evaluate", rows[2:])):
        (tmp_path / stage).mkdir()
        write_json(tmp_path / stage / "results.json", part)
        artifacts.append((tmp_path / stage, {"stage": stage}))
    from alpro.pipeline.reports import results

    assert results.rows(artifacts) == rows
    assert results.rows(artifacts[:1]) == []


def test_the_corpora_have_a_line_for_each_split(tmp_path):
    splits = {"train": {"items": [1, 2], "captions": [2, 2], "questions": [0, 0]}, "validation": {"items": [0, 0]}}
    splits |= {"test": {"items": [1, 1], "captions": [1, 1], "questions": [3, 3]}}
    write_json(tmp_path / "statistics.json", {"splits": splits})
    counts = {"samples": 2000, "captions": 3, "questions": 4, "rejected": 5}
    record = {"stage": "decode_videos", "name": "decode_videos clips", "counts": counts}
    assert data_table([(tmp_path, record), (Path(), {"stage": "pretrain"})]) == Table(
        "Data",
        ["", "", "samples", "captions", "questions", "rejected"],
        [
            ["clips", "train", "1", "2", "0", ""],
            ["clips", "test", "1", "1", "3", ""],
            ["clips", "all", "2,000", "3", "4", "5"],
        ],
    )
    assert data_table([(Path(), {"stage": "pretrain"})]) is None
