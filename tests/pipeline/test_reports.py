"""Results as tables, on the terminal and side by side."""

from pathlib import Path

import pytest

from alpro.files import write_json
from alpro.pipeline.reports import results
from alpro.pipeline.reports.results import tables
from alpro.pipeline.reports.terminal import print_results
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED
from alpro.stages.evaluation.statistics import PairedDifference
from tests.pipeline.conftest import write_artifact
from tests.pipeline.score_rows import ANSWERS, RANK, score_row

ONE_TYPE = {"name": "qa/acc_what", "metric": "what", "value": 3.25}


@pytest.fixture
def rows():
    answers = score_row(**ANSWERS, value=1.25, chance=2.75)
    decoded = {
        "table": "decoded",
        "name": "decoded/clips",
        "what": "clips",
        "direction": "",
    }
    return [
        answers,
        answers | ONE_TYPE,
        score_row(**decoded, metric="190 of 200", chance=None, baseline="", items=200),
        score_row(),
        score_row(**RANK, value=14.25, chance=100.5),
    ]


def test_every_number_is_in_its_column(rows):
    shown = {table.title: table for table in tables({"score": rows})}

    heads = {title: table.heads[3] for title, table in shown.items()}
    answers = "most frequent answer"
    assert heads == {
        "Retrieval": "chance",
        "Question answering": answers,
        "Decoded items": "chance",
    }
    lines = [line for table in shown.values() for line in table.lines]
    assert lines == [
        ["by similarity", "t2v R@1", "60.0 %", "0.5 %", "500"],
        ["by similarity", "t2v MdR ↓", "14.2", "100.5", "500"],
        ["question answering", "all questions", "1.2 %", "2.8 %", "500"],
        ["question answering", "what", "3.2 %", "2.8 %", "500"],
        ["clips", "190 of 200", "60.0 %", "-", "200"],
    ]


def test_two_runs_are_columns_with_their_difference(rows):
    """A score that one run lacks, or over other queries, has no difference; no change has the sign
    of no loss."""
    first, second, *_, entity = rows
    runs = {
        "a1": [first | {"low": 0.96, "high": 2.04}, second],
        "b2": [first | {"value": 40.0}, entity],
    }
    gain = PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344)
    same = PairedDifference(9, 8, -0.04, None, None, 1 / 2001)
    compared = Comparison([(first, gain), (second, same)], {"qa/all": (20, 18, 15)})
    ranks, answers = tables(runs, compared)

    assert answers.heads == [
        "",
        "",
        "a1",
        "b2",
        "b2 - a1",
        "p",
        "most frequent answer",
        "items",
    ]
    assert [line[2:-2] for line in answers.lines] == [
        ["1.2 [1.0, 2.0]", "40.0 %", "+2.5 [-1.0, +6.0]", "0.1344"],
        ["3.2 %", "", "+0.0", "0.0005"],
    ]
    assert ranks.lines[0][2:-2] == ["", "14.2", "", ""]
    assert [table.note.startswith("In brackets") for table in (answers, ranks)] == [
        True,
        False,
    ]
    other = "Other queries of qa/all: 20 and 18, 15 of them shared."
    assert other in answers.note.splitlines()


@pytest.mark.parametrize(
    ("independent", "points"),
    [(10, "31"), (54**2 / (27**2 + 27), "50"), (99, "10"), (100, "")],
)
def test_scores_of_few_videos_have_a_warning(independent, points):
    """1.96 sqrt(0.5 x 0.5 / n) points. The second has 54 queries, of which 27 are of one video."""
    (table,) = tables({"score": [score_row(independent_videos=independent)]})

    assert table.note.rpartition("off by ")[2] == (
        f"{points} points." if points else ""
    )


def test_rows_are_those_of_every_evaluation_each_once(rows, tmp_path):
    """The same score of another model is another row."""
    other = rows[0] | {"model": "other"}
    artifacts = []
    for mark, part in (("a", rows[:3]), ("b", [*rows[2:], other])):
        artifacts.append(write_artifact(tmp_path, "evaluate", mark))
        write_json(artifacts[-1][0] / "results.json", part)

    assert results.rows(artifacts) == [*rows, other]


# The terminal.


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Write an evaluation with all scores that are printed, many others, and warnings."""
    names = [*PRINTED, *(f"control_{number}/t2v/R1" for number in range(70))]
    score = score_row(value=49.55, low=42.5, high=56.5)
    scores = [
        score | {"name": name, "what": f"control: best frame {number} by similarity"}
        for number, name in enumerate(names)
    ]
    warnings = [f"few {number}" for number in range(9)]
    folder, _ = write_artifact(
        tmp_path, "evaluate", fingerprint="a" * 64, warnings=warnings
    )
    write_json(folder / "results.json", scores[::-1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.html").touch()
    return folder


def test_the_end_of_a_run_fits_on_a_screen(evaluated, tmp_path, capsys):
    print_results({"evaluate": evaluated}, tmp_path / "workspace", Path("run.html"))

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 16
    assert max(map(len, printed)) <= 80
    assert printed[0].split() == ["score", "[95", "%]", "chance"]
    for number, line in enumerate(printed[1 : 1 + len(PRINTED)]):
        assert line.startswith(f"control: best frame {number} by similarity  ")
        assert line.endswith("  49.5 [42.5, 56.5]   0.5 %")
    assert printed[1 + len(PRINTED) :] == [
        *(f"warning: evaluate: few {number}" for number in range(2)),
        "and 7 more warnings, in the report",
        f"report, {len(PRINTED) + 70} scores (--json for JSON): run.html",
        "curves, pictures and comparison: alpro ui",
    ]
