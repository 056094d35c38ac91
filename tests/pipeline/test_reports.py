"""Results as tables, on the terminal and side by side."""

import re
from pathlib import Path

import pytest

from alpro.files import write_json
from alpro.pipeline.reports import comparison, results
from alpro.pipeline.reports.comparison import compare_scores
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
    shown = {table.title: table for table in tables(rows)}

    heads = {title: table.heads[2:4] for title, table in shown.items()}
    assert heads == {
        "Retrieval": ["score [95 %]", "chance"],
        "Question answering": ["score [95 %]", "most frequent answer"],
        "Decoded items": ["score [95 %]", "chance"],
    }
    lines = [line for table in shown.values() for line in table.lines]
    assert lines == [
        ["by similarity", "t2v R@1", "60.0 %", "0.5 %", "500", ""],
        ["by similarity", "t2v MdR ↓", "14.2", "100.5", "500", ""],
        ["question answering", "all questions", "1.2 %", "2.8 %", "500", ""],
        ["question answering", "what", "3.2 %", "2.8 %", "500", ""],
        ["clips", "190 of 200", "60.0 %", "-", "200", ""],
    ]


def test_two_models_are_columns_with_their_difference(rows, tmp_path, monkeypatch):
    """Beside its interval, its p value and chance; a score without a pair has none."""
    answers, _, _, score, rank = rows
    gain = PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344)
    better = answers | {"value": 3.75, "low": 2.0, "high": 5.5}
    write_json(tmp_path / "results.json", [answers, rank])
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / "results.json", [better, rank, score])
    compared = Comparison({answers["name"]: (answers, gain)}, {"qa/all": (20, 18)})
    monkeypatch.setattr(comparison, "compare", lambda *_: compared)

    (retrieval, table), text = compare_scores("ab", [tmp_path, tmp_path / "b"])

    baseline = "most frequent answer"
    heads = ["", "", "a", "b", "b - a", "p", baseline, "items", "protocol"]
    assert table.heads == heads
    assert [line[2:-1] for line in table.lines] == [
        ["1.2 %", "3.8 [2.0, 5.5]", "+2.5 [-1.0, +6.0]", "0.1344", "2.8 %", "500"]
    ]
    assert [line[1:-1] for line in retrieval.lines] == [
        ["t2v MdR ↓", "14.2", "14.2", "", "", "100.5", "500"],
        ["t2v R@1", "", "60.0 %", "", "", "0.5 %", "500"],
    ]
    assert "Other queries of qa/all: 20 and 18." in text.splitlines()


def test_rows_are_those_of_every_evaluation_each_once(rows, tmp_path):
    """The same score of another model is another row."""
    other = rows[0] | {"model": "other"}
    artifacts = []
    for mark, part in (("a", rows[:3]), ("b", [*rows[2:], other])):
        artifacts.append(write_artifact(tmp_path, "evaluate", mark))
        write_json(artifacts[-1][0] / "results.json", part)

    assert results.rows(artifacts) == [*rows, other]


# The terminal.


def test_a_run_ends_with_its_main_scores_its_warnings_and_the_place_of_the_rest(
    tmp_path, capsys
):
    names = [*PRINTED, *(f"control_{number}/t2v/R1" for number in range(70))]
    score = score_row(value=49.55, low=42.5, high=56.5)
    artifact = write_artifact(tmp_path, "evaluate", warnings=["few clips"])
    write_json(artifact[0] / "results.json", [score | {"name": name} for name in names])
    report = tmp_path / "run.html"
    report.touch()

    print_results([artifact], Path("my videos"), report)

    lines = [
        re.split(r" {2,}", line.rstrip())
        for line in capsys.readouterr().out.splitlines()
    ]
    line = ["by similarity", "t2v R@1", "49.5 [42.5, 56.5]", "0.5 %", "500"]
    assert lines.count(line) == len(PRINTED)
    assert [cells[0] for cells in lines[-3:]] == [
        "warning: evaluate: few clips",
        f"report: {report}",
        "curves, pictures and comparison: alpro ui --workspace 'my videos'",
    ]
