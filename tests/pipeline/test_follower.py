"""Following a file of metrics that a stage writes: what is read, and how much of it."""

import json

import pytest

from alpro.files import atomic_write
from alpro.pipeline.tracking.follower import MetricsFollower


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def lines(*steps):
    return "".join(json.dumps({"step": step, "time": 1.5}) + "\n" for step in steps)


def append(file, text):
    with open(file, "a") as opened:
        opened.write(text)


def read(follower, final=False):
    """Return the steps of the lines that are read."""
    return [line["step"] for line in follower.read(final)]


def test_each_line_is_read_once_and_the_newest_step_waits_for_its_last(file):
    """Training and validation may share a step."""
    follower = MetricsFollower(file)
    assert read(follower) == []  # there is no file

    append(file, lines(1, 2))
    assert read(follower) == [1]
    append(file, lines(2, 3)[:-40])  # a line that is written in part waits
    assert read(follower) == []
    append(file, lines(2, 3)[-40:])

    assert read(follower) == [2, 2]
    assert read(follower, final=True) == [3]


def test_what_was_read_is_not_read_again(file):
    """A long training would take a quarter of a core. The file is changed behind the follower."""
    follower = MetricsFollower(file)
    append(file, lines(1, 2))
    read(follower)
    with open(file, "r+") as opened:
        opened.write("#" * 20)

    append(file, lines(3))

    assert read(follower) == [2]


def test_a_training_that_resumes_replaces_the_file(file):
    """Steps 2 and 3 are computed again, from the checkpoint of step 1; step 4 is new."""
    follower = MetricsFollower(file)
    append(file, lines(1, 2, 3, 4))
    assert read(follower) == [1, 2, 3]

    with atomic_write(file) as temporary:
        temporary.write_text(lines(1))
    assert read(follower) == []
    append(file, lines(2, 3, 4))

    assert read(follower, final=True) == [4]


def test_a_line_that_a_power_failure_damaged_is_no_error(file):
    append(file, lines(1, 2) + "\0\0\0\n")
    assert read(MetricsFollower(file)) == [1]
