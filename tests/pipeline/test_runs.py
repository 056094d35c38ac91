"""What a workspace knows of the last run of some steps."""

from dataclasses import replace

from alpro.pipeline.config.command import Command
from alpro.pipeline.store.runs import Run, read_run, write_run


def test_the_last_run_of_a_report_is_read_as_it_was_written(tmp_path):
    report = tmp_path / "reports" / "tiny-123456.html"
    run = Run(
        "2026-01-01T00:00:00+00:00", "my/own.toml", ('name="ä\u2028"',), "pretrain"
    )
    assert read_run(report) is None

    write_run(run, report)
    assert read_run(report).state == "unfinished"  # as after a kill
    ended = replace(run, state="finished", seconds=1.5, states={"pretrain": "built"})
    write_run(ended, report)

    assert read_run(report) == ended
    assert ended.command == Command("my/own.toml", ('name="ä\u2028"',), "pretrain")
