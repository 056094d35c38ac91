"""Summaries of runs."""

from alpro.pipeline.reports.summary import RunSummary, first_line, load, summaries


def summary(day: int, **changes) -> RunSummary:
    return RunSummary(f"mine {day}", "mine", started=f"2026-11-{day:02d}T10:00:00+00:00", **changes)


def test_summaries_are_listed_newest_first_without_other_files(tmp_path):
    for name, day in (("older", 1), ("newest", 9), ("newer", 4)):
        summary(day).save(tmp_path / f"{name}.json")
    (tmp_path / "no_summary.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    assert [(path.stem, run) for path, run in summaries(tmp_path)] == [
        ("newest", summary(9)),
        ("newer", summary(4)),
        ("older", summary(1)),
    ]
    assert load(tmp_path / "broken.json") is None


def test_the_message_of_an_error_is_one_line():
    assert first_line(ValueError("pretrain broke\nat line 5")) == "pretrain broke"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
