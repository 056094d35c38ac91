"""Following a file of metrics that a stage writes: what is read, and how much of it."""

import json
from pathlib import Path

import pytest

from alpro.files import atomic_write
from alpro.pipeline.tracking.follower import MetricsFollower


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "metrics.jsonl"


def line(step: int, **values: float) -> str:
    return json.dumps({"step": step, "time": 1.5, **values}) + "\n"


def append(file: Path, text: str) -> None:
    with open(file, "a") as opened:
        opened.write(text)


def test_lines_are_returned_once(file):
    follower = MetricsFollower(file)
    append(file, line(1) + line(2) + line(3))

    assert [one["step"] for one in follower.read()] == [1, 2]
    assert follower.read() == []
    assert [one["step"] for one in follower.read(final=True)] == [3]


def test_the_newest_step_waits_for_its_last_line(file):
    follower = MetricsFollower(file)
    append(file, line(1, loss=4.0))
    assert follower.read() == []

    append(file, line(1, accuracy=50.0) + line(2, loss=2.0))

    assert [set(one) - {"step", "time"} for one in follower.read()] == [{"loss"}, {"accuracy"}]


def test_a_line_that_is_written_in_part_waits(file):
    follower = MetricsFollower(file)
    append(file, line(1) + line(2)[:9])
    assert follower.read() == []

    append(file, line(2)[9:] + line(3))

    assert [one["step"] for one in follower.read()] == [1, 2]


def test_what_was_read_is_not_read_again(file):
    """A long training would take a quarter of a core: its file is changed behind the follower."""
    follower = MetricsFollower(file)
    append(file, line(1) + line(2))
    follower.read()
    with open(file, "r+") as opened:
        opened.write("#" * (len(line(1)) - 1))

    append(file, line(3))

    assert [one["step"] for one in follower.read()] == [2]


def test_a_training_that_resumes_replaces_the_file(file):
    """Steps 2 and 3 are computed again, from the checkpoint of step 1; step 4 is new."""
    follower = MetricsFollower(file)
    append(file, line(1) + line(2) + line(3) + line(4, loss=1.0))
    assert [one["step"] for one in follower.read()] == [1, 2, 3]

    with atomic_write(file) as temporary:
        temporary.write_text(line(1))
    assert follower.read() == []
    append(file, line(2) + line(3) + line(4, loss=2.0))

    assert [(one["step"], one["loss"]) for one in follower.read(final=True)] == [(4, 2.0)]


def test_a_damaged_line_and_a_missing_file_are_no_error(file):
    follower = MetricsFollower(file)
    assert follower.read() == []

    append(file, line(1) + line(2) + "\0\0\0\n")

    assert [one["step"] for one in follower.read()] == [1]
