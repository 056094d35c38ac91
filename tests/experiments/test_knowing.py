"""The study of a teacher that knows more: the figures that docs/results.md states."""

from experiments.knowing import outcome


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
