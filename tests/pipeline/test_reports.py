"""Results as tables, on the terminal and side by side. Numbers of rows all differ."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from alpro.artifact import Record
from alpro.files import write_json
from alpro.pipeline.reports import results
from alpro.pipeline.reports.results import Table, data_table, main_table, tables
from alpro.pipeline.reports.terminal import print_results, print_rows, print_table
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED
from alpro.stages.evaluation.statistics import PairedDifference
from tests.pipeline.conftest import write_artifact

BASELINES = {
    "retrieval": "chance",
    "qa": "most frequent answer",
    "entities": "best constant",
    "decoded": "",
}
RANKS = ["R@1", "R@5", "MdR"]


def rows_of(
    table: str,
    what: str,
    key: str,
    metrics: list[str],
    numbers: Iterator[int],
    items: int,
    way: str = "",
):
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    shared = {
        "table": table,
        "what": what,
        "direction": way,
        "low": None,
        "high": None,
        "baseline": BASELINES[table],
    }
    shared |= {"items": items, "videos": items, "independent_videos": float(items)}
    shared |= {"protocol": f"all pairs, {items} frames" if table == "retrieval" else ""}
    rows = []
    for metric in metrics:
        own = {
            "name": "/".join(filter(None, (key, way, metric))),
            "metric": metric,
            "value": next(numbers) + 0.25,
        }
        own |= {"unit": "rank" if metric == "MdR" else "%", "higher_is_better": metric != "MdR"}
        own |= {"chance": next(numbers) + 0.75 if BASELINES[table] else None}
        rows.append(shared | own)
    return rows


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    numbers = count(1)
    return [
        *rows_of("qa", "question answering", "qa", ["all questions", "what"], numbers, 300),
        *rows_of("qa", "control: text only", "qa_text_only", ["all questions"], numbers, 290),
        *rows_of("entities", "prompter", "entities", ["entity accuracy"], numbers, 150),
        *rows_of("decoded", "decoded of clips", "decoded", ["190 of 200"], numbers, 200),
        *rows_of("retrieval", "zero-shot by matching", "zero_shot", RANKS, numbers, 400, "t2v"),
        *rows_of("retrieval", "zero-shot by matching", "zero_shot", RANKS[:1], numbers, 200, "v2t"),
    ]


def test_every_number_is_in_its_column(rows):
    shown = tables({"score": rows})
    zero_shot = "pre-trained only, by matching"
    asked = "question answering"
    assert [table.title for table in shown] == [
        "Retrieval",
        "Question answering",
        "Entities",
        "Decoded items",
    ]
    baselines = ("chance", "most frequent answer", "best constant", "chance")
    assert [table.heads for table in shown] == [
        ["", "", "score", baseline, "items"] for baseline in baselines
    ]
    retrieval, answers, entities, decoded = (table.lines for table in shown)
    assert retrieval == [
        [zero_shot, "t2v R@1", "10.2 %", "11.8 %", "400"],
        [zero_shot, "t2v R@5", "12.2 %", "13.8 %", "400"],
        [zero_shot, "t2v MdR ↓", "14.2", "15.8", "400"],
        [zero_shot, "v2t R@1", "16.2 %", "17.8 %", "200"],
    ]
    assert answers == [
        [asked, "all questions", "1.2 %", "2.8 %", "300"],
        [asked, "what", "3.2 %", "4.8 %", "300"],
        ["control: text only", "all questions", "5.2 %", "6.8 %", "290"],
    ]
    assert entities == [["prompter", "entity accuracy", "7.2 %", "8.8 %", "150"]]
    assert decoded == [["decoded of clips", "190 of 200", "9.2 %", "-", "200"]]
    protocols = f"all pairs, 400 frames: {zero_shot}.\nall pairs, 200 frames: {zero_shot}."
    assert [table.note for table in shown] == [protocols, "", "", ""]
    assert tables({"score": []}) == []
    assert main_table(rows) is None  # it has none of those that a person looks at first
    # A table that an evaluation adds is after the others.
    other = rows[3] | {"table": "captions", "name": "captions/acc"}
    shown = tables({"score": [other, *rows]})
    assert (shown[-1].title, shown[-1].lines) == ("Captions", entities)


def test_runs_are_columns_with_the_difference_of_each_to_the_first(rows):
    """A score that one run lacks, or over other queries, has no difference; no change has the sign
    of no loss."""
    rows[0] |= {"low": 0.96, "high": 2.04}
    first = rows[:2]
    second = [rows[0] | {"value": 40.0, "low": None}, rows[3]]
    third = [rows[1] | {"value": 7.0, "low": 6.0, "high": 8.04}]
    compared = [
        Comparison([(rows[0], PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344))], {}, 0),
        Comparison(
            [(rows[1], PairedDifference(9, 8, -0.04, None, None, 1 / 2001))],
            {"qa/all": (20, 18, 15)},
            0,
        ),
    ]
    answers, entities = tables({"a1": first, "b2": second, "c3": third}, compared)
    assert answers.heads == [
        "",
        "",
        "a1",
        "b2",
        "b2 - a1",
        "p",
        "c3",
        "c3 - a1",
        "p",
        "most frequent answer",
        "items",
    ]
    assert [line[2:-2] for line in answers.lines] == [
        ["1.2 [1.0, 2.0]", "40.0 %", "+2.5 [-1.0, +6.0]", "0.1344", "", "", ""],
        ["3.2 %", "", "", "", "7.0 [6.0, 8.0]", "+0.0", "0.0005"],
    ]
    assert entities.lines[0][2:-2] == ["", "7.2 %", "", "", "", "", ""]
    assert [table.note.startswith("In brackets") for table in (answers, entities)] == [True, False]
    assert (
        "c3 has other queries of qa/all: 20 and 18, 15 of them shared." in answers.note.splitlines()
    )
    (alone, _) = tables({"a1": first, "b2": second})
    assert alone.heads == ["", "", "a1", "b2", "most frequent answer", "items"]


def test_scores_of_few_videos_have_a_warning(rows):
    """1.96 sqrt(0.5 x 0.5 / n): 30.99, 33.6, 98, 9.85 and 49 points, of the direction with fewer
    videos. Ten captions each of twenty videos are twenty videos; a part of the queries does not
    warn."""
    for videos, independent, numbers in (
        (10, 10, ["10", "31"]),
        (10, 8.5, ["10", "34"]),
        (1, 1, ["1", "98"]),
        (99, 99, ["99", "10"]),
        (300, 4.0, ["300", "4", "49"]),
        (28, 54**2 / (27**2 + 27), ["28", "4", "50"]),  # 54 queries, of which 27 are of one video
        (100, 100, []),
    ):
        (table,) = tables(
            {"score": [rows[0] | {"videos": videos, "independent_videos": independent}]}
        )
        assert [word for word in table.note.split() if word.isdigit()] == numbers
    for row in rows:
        row |= {name: row[name] // 10 for name in ("items", "videos", "independent_videos")}
    rows[1] |= {"items": 2, "videos": 2, "independent_videos": 2.0}
    rows[-4] |= {
        "independent_videos": 5.0
    }  # v2t has fewer videos, of which none has most of the queries
    notes = [table.note.partition(" test videos")[0] for table in tables({"score": rows})]
    assert notes == ["Only 40", "Only 30", "Only 15", "Only 20"]


def test_rows_are_those_of_every_evaluation_each_once_and_corpora_have_a_line(rows, tmp_path):
    artifacts = []
    for stage, part in (("pretrain", rows), ("zero_shot", rows[:3]), ("evaluate", rows[2:])):
        (tmp_path / stage).mkdir()
        write_json(tmp_path / stage / "results.json", part)
        artifacts.append((tmp_path / stage, Record(stage=stage)))
    assert results.rows(artifacts) == rows
    assert results.rows(artifacts[:1]) == []
    corpus = Record(
        stage="decode_videos",
        name="decode_videos clips",
        fingerprint="a" * 64,
        counts={"samples": 2000, "captions": 3, "questions": 4, "rejected": 5},
    )
    table = data_table([(tmp_path, corpus), *artifacts])
    assert table.heads == ["", "fingerprint", "samples", "captions", "questions", "rejected"]
    assert table.lines == [["clips", "a" * 8, "2,000", "3", "4", "5"]]
    assert data_table(artifacts) is None


# The terminal.


def cells(printed: str) -> list[list[str]]:
    """The lines of printed tables as their cells; columns are at least two spaces apart."""
    lines = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()
    ]
    return [line for line in lines if line]


def artifact(root: Path, stage: str, mark: str, **more: Any) -> Path:
    return write_artifact(root, stage, fingerprint=mark * 64, **more)[0]


def test_tables_and_rows_are_aligned(capsys):
    lines = [["x", "R", "1 %", "20"], ["x", "MdR", "12 %", "4"]]
    print_table(Table("Retrieval", ["", "", "a", "items"], lines, "A note."))
    head = f"{'a':>12}  items"
    assert capsys.readouterr().out == (
        f"Retrieval\n{head}\n{'-' * len(head)}\nx  R     1 %     20\n   MdR  12 %      4\nA "
        f"note.\n\n"
    )
    print_rows(
        [
            {"name": "b", "n": 7, "s": 1.5, "why": ""},
            {"name": "long", "n": 10, "s": 20.5, "why": None},
        ]
    )
    print_rows([])
    assert capsys.readouterr().out == "name   n     s\nb      7   1.5\nlong  10  20.5\n"


def test_the_end_of_a_run_fits_on_a_screen(rows, tmp_path, monkeypatch, capsys):
    """All scores that are printed, many others, and warnings."""
    score = rows[5] | {"value": 49.55, "low": 42.5, "high": 56.5, "chance": 0.5}
    names = [*PRINTED, *(f"control_{n}/t2v/R1" for n in range(70))]
    found = [
        score | {"name": name, "what": f"control: best frame {n} by similarity"}
        for n, name in enumerate(names)
    ]
    found.reverse()
    more = {
        "counts": {"items": 40},
        "metrics": {"a": 1.5},
        "warnings": [f"few {n}" for n in range(9)],
    }
    evaluated = artifact(tmp_path, "evaluate", "a", **more)
    write_json(evaluated / "results.json", found)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.html").touch()
    print_results({"evaluate": evaluated}, tmp_path / "workspace", Path("run.html"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 16
    assert max(map(len, printed)) <= 80
    heads, *lines = printed[: 1 + len(PRINTED)]
    assert heads.split() == ["score", "[95", "%]", "chance"]
    first = [f"control: best frame {n} by similarity" for n in range(len(PRINTED))]
    metrics = ["t2v R@1"] * (len(PRINTED) - 2) + ["labels right", "ECE ↓"]  # of crops, as PEM's
    assert [cells(line)[0] for line in lines] == [
        [what, metric, "49.5 [42.5, 56.5]", "0.5 %"]
        for what, metric in zip(first, metrics, strict=True)
    ]
    warned, *last = printed[1 + len(PRINTED) :]
    assert "9" in warned
    scores = f"all {len(found)} scores (as JSON: --json): run.html"
    assert last == [scores, "curves, pictures and comparison: alpro ui"]
    print_results({"evaluate": evaluated}, tmp_path, tmp_path / "run.html", as_json=True)
    shown = {
        "folder": str(evaluated),
        "fingerprint": "a" * 64,
        "counts": {"items": 40},
        "metrics": {"a": 1.5},
    }
    expected = {
        "results": found,
        "artifacts": {"evaluate": shown},
        "report": str(tmp_path / "run.html"),
    }
    assert json.loads(capsys.readouterr().out) == expected


def test_without_results_the_last_stage_is_printed(tmp_path, capsys):
    first = artifact(tmp_path, "decode_videos", "a", counts={"samples": 9})
    more = {
        "counts": {"steps": 600},
        "metrics": {"loss": 0.12345678},
        "warnings": ["3 of [9]", "chance"],
    }
    last = artifact(tmp_path, "pretrain", "b", **more)
    print_results({"decode_videos": first, "pretrain": last}, tmp_path, tmp_path / "run.html")
    assert capsys.readouterr().out.splitlines() == [
        f"pretrain: {last}",
        "  steps: 600",
        "  loss: 0.123457",
        "warning: pretrain: 3 of [9]",
        "warning: pretrain: chance",
        f"curves, pictures and comparison: alpro ui --workspace {tmp_path}",
    ]
