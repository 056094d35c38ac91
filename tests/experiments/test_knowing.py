"""The study of a teacher that knows more: the figures that docs/results.md states, and refusals."""

import shutil

import pytest

from experiments.knowing import outcome


@pytest.fixture
def copied_rows(tmp_path):
    """A copy of the committed rows of the tested draws."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for file in outcome.RESULTS.glob("draw-*.json"):
        shutil.copy(file, folder)
    return folder


def test_the_outcome_prints_the_tests_of_the_plan(tmp_path, capsys):
    picture = tmp_path / "figure.png"

    assert outcome.main(["--figure", str(picture)]) == 0

    printed = capsys.readouterr().out
    assert (
        "content  naming of teacher - permuted: +6.7 +4.1 +7.5 +6.3 +4.0 +9.6 = +6.4"
        in printed
    )
    assert (
        "pays     naming of teacher - none: +3.2 +1.4 +4.1 +3.7 +1.6 +7.4 = +3.6"
        in printed
    )
    assert picture.stat().st_size > 0


def test_rows_of_another_start_are_refused(copied_rows, capsys):
    row = copied_rows / "draw-6-true-0.json"
    row.write_text(row.read_text().replace('"start": "', '"start": "other'))

    assert outcome.main(["--results", str(copied_rows)]) == 2

    assert "other weights" in capsys.readouterr().err
