"""What a run prints about its progress: lines with times, the time left, and none with -q."""

import io
import logging
import os
import re
import subprocess
import sys

import pytest

import alpro.progress
from alpro import log as log_module
from alpro.log import TIMES, log, set_level
from alpro.progress import PLAIN, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that `alpro.progress` sees: a list with one number."""
    monkeypatch.delenv(PLAIN, raising=False)
    now = [100.0]
    monkeypatch.setattr(alpro.progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def level(monkeypatch):
    """The level of the log, which is restored."""
    monkeypatch.setenv(log_module.LEVEL, "INFO")
    before = log.level
    yield set_level
    log.setLevel(before)


def work(clock, done: int = 0) -> None:
    """Twelve units of 10 s each, of which an earlier run did `done`."""
    with progress("decoding", 12, "items", done) as advance:
        for number in range(done, 12):
            clock[0] += 10.0
            advance(1, f"note {number}")


def test_lines_have_the_time_left(clock, capsys):
    work(clock)
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 2 of 12 items, 20 s, 100 s left, note 1",
        "decoding: 4 of 12 items, 40 s, 80 s left, note 3",
        "decoding: 6 of 12 items, 60 s, 60 s left, note 5",
        "decoding: 8 of 12 items, 80 s, 40 s left, note 7",
        "decoding: 10 of 12 items, 100 s, 20 s left, note 9",
        "decoding: 12 of 12 items, 120 s, 1 s left, note 11",
    ]


def test_units_of_an_earlier_run_do_not_count_for_the_time_left(clock, capsys):
    work(clock, done=8)
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 10 of 12 items, 20 s, 20 s left, note 9",
        "decoding: 12 of 12 items, 40 s, 1 s left, note 11",
    ]


def test_of_several_processes_the_first_shows_progress(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    work(clock)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    work(clock)
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_an_unknown_number_of_units_has_no_time_left(clock, capsys):
    with progress("reading", None, "rows") as advance:
        clock[0] += 20.0
        advance(7)
    assert capsys.readouterr().err == "reading: 7 rows, 20 s\n"


def test_a_terminal_has_a_bar_with_the_time_left(clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    work(clock)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "decoding" in shown
    assert "/12" in shown
    assert re.search(r"0:\d\d:\d\d", shown)


def test_stages_side_by_side_have_lines_on_a_terminal_too(clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv(PLAIN, "1")
    work(clock)
    assert screen.getvalue().splitlines()[-1] == "decoding: 12 of 12 items, 120 s, 1 s left, note 11"


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_prints_no_progress_but_warnings(terminal, clock, level, monkeypatch):
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    level("WARNING")
    work(clock)
    log.info("stage 1 of 2, decode_videos: started")
    log.warning("no checkpoint written")
    assert screen.getvalue() == "no checkpoint written\n"


def test_lines_have_their_times_except_on_a_terminal(monkeypatch):
    monkeypatch.delenv(TIMES)
    for screen, pattern in (
        (io.StringIO(), r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d pretrain: started\n"),
        (Terminal(), r"pretrain: started\n"),
    ):
        monkeypatch.setattr(sys, "stderr", screen)
        log.info("pretrain: started")
        assert re.fullmatch(pattern, screen.getvalue())


def test_processes_inherit_the_level(level):
    level("DEBUG")
    program = "from alpro.log import log; log.debug('checkpoint a')"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stderr == "checkpoint a\n"
    assert log.isEnabledFor(logging.DEBUG)
