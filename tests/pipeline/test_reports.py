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
from alpro.pipeline.reports.results import Table, list_corpora, main_table, tables
from alpro.pipeline.reports.terminal import print_results, print_rows, print_table
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED
from alpro.stages.evaluation.statistics import PairedDifference
from tests.pipeline.conftest import write_artifact

BASELINES = {"retrieval": "chance", "qa": "most frequent answer", "entities": "best constant"}


def rows_of(
    table: str, what: str, names: list[str], numbers: Iterator[int], items: int
) -> list[dict[str, Any]]:
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    rows = []
    for name in names:
        *_, metric = name.split("/")
        is_rank = metric == "MdR"
        row = {"model": "", "table": table, "what": what, "name": name, "metric": metric}
        row |= {"low": None}
        row |= {"direction": name.split("/")[1] if table == "retrieval" else "", "high": None}
        row |= {"value": next(numbers) + 0.25, "unit": "rank" if is_rank else "%"}
        row |= {"higher_is_better": not is_rank, "baseline": BASELINES.get(table, "")}
        row |= {"chance": next(numbers) + 0.75 if table in BASELINES else None}
        row |= {"items": items, "videos": items, "independent_videos": float(items)}
        rows.append(row | {"protocol": f"all pairs, {items} frames" if row["direction"] else ""})
    return rows


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    numbers = count(1)
    ranks = [f"matching/t2v/{metric}" for metric in ("R@1", "R@5", "MdR")]
    return [
        *rows_of("qa", "question answering", ["qa/all", "qa/what"], numbers, 300),
        *rows_of("qa", "control: text only", ["qa_text_only/all"], numbers, 290),
        *rows_of("entities", "prompter", ["entities/accuracy"], numbers, 150),
        *rows_of("decoded", "decoded of clips", ["decoded/190 of 200"], numbers, 200),
        *rows_of("retrieval", "pre-trained, by matching", ranks, numbers, 400),
        *rows_of("retrieval", "pre-trained, by matching", ["matching/v2t/R@1"], numbers, 200),
    ]


def test_every_number_is_in_its_column(rows):
    shown = {table.title: table for table in tables({"score": rows})}
    heads = {title: table.heads[3] for title, table in shown.items()}
    assert heads == {
        "Retrieval": "chance",
        "Question answering": "most frequent answer",
        "Entities": "best constant",
        "Decoded items": "chance",
    }
    assert shown["Retrieval"].lines == [
        ["pre-trained, by matching", "t2v R@1", "10.2 %", "11.8 %", "400"],
        ["pre-trained, by matching", "t2v R@5", "12.2 %", "13.8 %", "400"],
        ["pre-trained, by matching", "t2v MdR ↓", "14.2", "15.8", "400"],
        ["pre-trained, by matching", "v2t R@1", "16.2 %", "17.8 %", "200"],
    ]
    assert shown["Question answering"].lines == [
        ["question answering", "all", "1.2 %", "2.8 %", "300"],
        ["question answering", "what", "3.2 %", "4.8 %", "300"],
        ["control: text only", "all", "5.2 %", "6.8 %", "290"],
    ]
    assert shown["Decoded items"].lines == [["decoded of clips", "190 of 200", "9.2 %", "-", "200"]]


def test_runs_are_columns_with_the_difference_of_each_to_the_first(rows):
    """A score that one run lacks, or over other queries, has no difference; no change has the sign
    of no loss."""
    rows[0] |= {"low": 0.96, "high": 2.04}
    runs = {
        "a1": rows[:2],
        "b2": [rows[0] | {"value": 40.0, "low": None}, rows[3]],
        "c3": [rows[1] | {"value": 7.0, "low": 6.0, "high": 8.04}],
    }
    gain = PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344)
    same = PairedDifference(9, 8, -0.04, None, None, 1 / 2001)
    compared = [
        Comparison([(rows[0], gain)], {}),
        Comparison([(rows[1], same)], {"qa/all": (20, 18, 15)}),
    ]
    answers, entities = tables(runs, compared)

    differences = ["a1", "b2", "b2 - a1", "p", "c3", "c3 - a1", "p"]
    assert answers.heads == ["", "", *differences, "most frequent answer", "items"]
    assert [line[2:-2] for line in answers.lines] == [
        ["1.2 [1.0, 2.0]", "40.0 %", "+2.5 [-1.0, +6.0]", "0.1344", "", "", ""],
        ["3.2 %", "", "", "", "7.0 [6.0, 8.0]", "+0.0", "0.0005"],
    ]
    assert entities.lines[0][2:-2] == ["", "7.2 %", "", "", "", "", ""]
    assert [table.note.startswith("In brackets") for table in (answers, entities)] == [True, False]
    other = "c3 has other queries of qa/all: 20 and 18, 15 of them shared."
    assert other in answers.note.splitlines()


@pytest.mark.parametrize(
    ("videos", "independent", "numbers"),
    [  # 1.96 sqrt(0.5 x 0.5 / n) points
        (10, 10, ["10", "31"]),
        (10, 8.5, ["10", "34"]),
        (1, 1, ["1", "98"]),
        (99, 99, ["99", "10"]),
        (300, 4.0, ["300", "4", "49"]),
        (28, 54**2 / (27**2 + 27), ["28", "4", "50"]),  # 54 queries, of which 27 are of one video
        (100, 100, []),
    ],
)
def test_scores_of_few_videos_have_a_warning(videos, independent, numbers, rows):
    few = rows[0] | {"videos": videos, "independent_videos": independent}
    (table,) = tables({"score": [few]})
    assert [word for word in table.note.split() if word.isdigit()] == numbers


def test_rows_are_those_of_every_evaluation_each_once(rows, tmp_path):
    """The same score of another model is another row."""
    other = rows[0] | {"model": "other"}
    artifacts = []
    parts = (("pretrain", rows), ("evaluate", rows[:3]), ("evaluate", [*rows[2:], other]))
    for number, (stage, part) in enumerate(parts):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_json(folder / "results.json", part)
        artifacts.append((folder, Record(stage=stage)))

    assert results.rows(artifacts) == [*rows, other]
    assert results.rows(artifacts[:1]) == []
    assert main_table(rows[1:4]) is None  # none of those that users look at first
    assert list_corpora(artifacts) is None


def test_a_corpus_has_a_line(tmp_path):
    counts = {"samples": 2000, "captions": 3, "questions": 4, "rejected": 5}
    corpus = Record(stage="decode_videos", name="decode_videos clips", counts=counts)
    table = list_corpora([(tmp_path, corpus)])
    assert table.heads == ["", "fingerprint", "samples", "captions", "questions", "rejected"]
    assert table.lines == [["clips", "", "2,000", "3", "4", "5"]]


def test_a_table_in_markdown_has_its_numbers_on_the_right():
    lines = [["x", "R|1", "1 %"], ["x", "a_b _c_", "[2](y)"]]
    assert Table("", ["", "", "a"], lines, "A *note*.").markdown().splitlines() == [
        "|  |  | a |",
        "| --- | --- | ---: |",
        r"| x | R\|1 | 1 % |",
        r"|  | a_b \_c\_ | [2]\(y) |",
        "",
        r"A \*note\*.",
    ]


# The terminal.


def cells(printed: str) -> list[list[str]]:
    """Return the cells of printed tables; columns are at least two spaces apart."""
    lines = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()
    ]
    return [line for line in lines if line]


def test_tables_and_rows_are_aligned(capsys):
    lines = [["x", "R", "1 %", "20"], ["x", "MdR", "12 %", "4"]]
    print_table(Table("Retrieval", ["", "", "a", "items"], lines, "A note."))
    head = f"{'a':>12}  items"
    assert capsys.readouterr().out == (
        f"Retrieval\n{head}\nx  R     1 %     20\n   MdR  12 %      4\nA note.\n\n"
    )

    long = {"name": "long", "n": 10, "s": 20.5, "why": None}
    print_rows([{"name": "b", "n": 7, "s": 1.5, "why": ""}, long])
    print_rows([])
    assert capsys.readouterr().out == "name   n     s\nb      7   1.5\nlong  10  20.5\n"


@pytest.fixture
def evaluated(rows, tmp_path, monkeypatch) -> Path:
    """Write an evaluation with all scores that are printed, many others, and warnings."""
    score = rows[5] | {"value": 49.55, "low": 42.5, "high": 56.5, "chance": 0.5}
    scores = []
    for n, name in enumerate([*PRINTED, *(f"control_{n}/t2v/R1" for n in range(70))]):
        label = {"name": name, "what": f"control: best frame {n} by similarity", "metric": "R@1"}
        scores.insert(0, score | label)
    warnings = [f"few {n}" for n in range(9)]
    folder, _ = write_artifact(tmp_path, "evaluate", fingerprint="a" * 64, warnings=warnings)
    write_json(folder / "results.json", scores)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.html").touch()
    return folder


def test_the_end_of_a_run_fits_on_a_screen(evaluated, tmp_path, capsys):
    print_results({"evaluate": evaluated}, tmp_path / "workspace", Path("run.html"))

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 16
    assert max(map(len, printed)) <= 80
    heads, *lines = printed[: 1 + len(PRINTED)]
    assert heads.split() == ["score", "[95", "%]", "chance"]
    metrics = ["t2v R@1"] * (len(PRINTED) - 2) + ["labels right", "ECE ↓"]  # of crops, as PEM's
    assert [cells(line)[0] for line in lines] == [
        [f"control: best frame {n} by similarity", metric, "49.5 [42.5, 56.5]", "0.5 %"]
        for n, metric in enumerate(metrics)
    ]
    assert printed[1 + len(PRINTED) :] == [
        "9 warnings (see the report)",
        f"report, {len(PRINTED) + 70} scores (--json for JSON): run.html",
        "curves, pictures and comparison: alpro ui",
    ]


def test_json_has_all_scores_and_artifacts(evaluated, tmp_path, capsys):
    print_results({"evaluate": evaluated}, tmp_path, tmp_path / "run.html", as_json=True)

    shown = {"folder": str(evaluated), "fingerprint": "a" * 64, "counts": {}, "metrics": {}}
    assert json.loads(capsys.readouterr().out) == {
        "results": json.loads((evaluated / "results.json").read_text()),
        "artifacts": {"evaluate": shown},
        "report": str(tmp_path / "run.html"),
    }
