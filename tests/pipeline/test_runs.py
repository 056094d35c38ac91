"""The log of the commands of a workspace."""

from dataclasses import replace
from pathlib import Path

from alpro.pipeline.store.runs import (
    FILE,
    RunEntry,
    read_earlier,
    read_runs,
    write_run,
)


def begin(workspace, at, config="tiny", *changes):
    run = RunEntry(at=at, config=config, changes=changes, stage="pretrain")
    write_run(workspace, run)
    return run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = begin(
        tmp_path,
        "2026-01-01T00:00:00+00:00",
        "my/own.toml",
        "pretrain.lr=1e-4",
        'name="ä"',
    )
    ended = replace(run, state="finished", seconds=1.5, steps={"pretrain": "ab" * 32})
    write_run(tmp_path, ended)

    assert read_runs(tmp_path) == [ended]
    words = ["alpro", "run", "pretrain", "--config", "my/own.toml"]
    assert ended.words == [*words, "--set", "pretrain.lr=1e-4", "--set", 'name="ä"']


def test_a_line_separator_of_unicode_is_part_of_a_line(tmp_path):
    run = begin(tmp_path, "2026-01-01T00:00:00+00:00", "my\u2028own.toml")

    assert read_runs(tmp_path) == [run]


def test_earlier_runs_are_those_of_the_same_configuration_the_last_one_first(tmp_path):
    first = begin(tmp_path, "2026-01-01T00:00:00+00:00", "tiny")
    second = begin(
        tmp_path, "2026-01-02T00:00:00+00:00", "configs/tiny.toml", "pretrain.lr=1"
    )
    other = begin(tmp_path, "2026-01-03T00:00:00+00:00", "sample")
    third = begin(tmp_path, "2026-01-04T00:00:00+00:00", "tiny")
    # A run may end after another began.
    write_run(tmp_path, replace(first, state="finished"))

    assert [read_earlier(tmp_path, run) for run in (first, other)] == [[], []]
    assert [run.id for run in read_earlier(tmp_path, third)] == [first.id, second.id]


def test_a_run_that_was_killed_is_unfinished_and_a_line_that_was_cut_loses_no_other(
    tmp_path,
):
    assert read_runs(tmp_path) == []
    first = begin(tmp_path, "2026-01-01T00:00:00+00:00")
    file: Path = tmp_path / FILE
    file.write_text(f'{file.read_text()}\n[1]\n{{"id": "cut", "at": "20')
    second = begin(tmp_path, "2026-01-02T00:00:00+00:00")

    assert read_runs(tmp_path) == [first, second]
    assert first.state == "unfinished"
