"""What a run prints about its progress: lines with times, the time left, and none with -q."""

import io
import logging
import os
import re
import subprocess
import sys

import pytest

import alpro.log
from alpro.log import PLAIN, TIMES, log, progress, set_level


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that `alpro.log` sees: a list with one number."""
    monkeypatch.delenv(PLAIN, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    now = [100.0]
    monkeypatch.setattr(alpro.log.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def level(monkeypatch):
    """The level of the log is restored."""
    monkeypatch.setenv(alpro.log.LEVEL, "INFO")
    before = log.level
    yield
    log.setLevel(before)


def work(clock, done: int = 0, of: int | None = 12) -> None:
    """Twelve units of 10 s each, of which an earlier run did `done`."""
    with progress("decoding", of, "items", done) as advance:
        for number in range(done, 12):
            clock[0] += 10.0
            advance(1, f"note {number}")


LEFT = {2: "0:01:40", 4: "0:01:20", 6: "0:01:00", 8: "0:00:40", 10: "0:00:20", 12: "0:00:00"}
LINES = [f"decoding: {n} of 12 items, {10 * n} s, {left} left, note {n - 1}" for n, left in LEFT.items()]
LATER = [f"decoding: {n} of 12 items, {10 * (n - 8)} s, {LEFT[n]} left, note {n - 1}" for n in (10, 12)]


@pytest.mark.parametrize(
    ("environment", "screen", "options", "expected"),
    [
        ({}, io.StringIO, {}, LINES),
        ({}, io.StringIO, {"done": 8}, LATER),  # units of an earlier run do not count for the time left
        ({"RANK": "0"}, io.StringIO, {}, LINES),
        ({"RANK": "1"}, io.StringIO, {}, []),  # of several processes, the first shows progress
        ({PLAIN: "1"}, Terminal, {}, LINES),  # stages side by side
    ],
)
def test_lines_have_the_time_left(environment, screen, options, expected, clock, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", screen())
    work(clock, **options)
    assert sys.stderr.getvalue().splitlines() == expected


def test_an_unknown_number_has_no_time_left_and_a_terminal_has_a_bar(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work(clock, of=None)
    assert re.fullmatch(r"(decoding: \d+ items, \d+ s, note \d+\n)+", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(clock)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sys.stderr.getvalue())
    assert re.search(r"decoding.*/12.*0:\d\d:\d\d", shown)


@pytest.mark.parametrize(("screen", "times"), [(io.StringIO, r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "), (Terminal, "")])
def test_lines_have_times_except_on_a_terminal_and_quiet_keeps_warnings(screen, times, clock, level, monkeypatch):
    monkeypatch.delenv(TIMES)
    monkeypatch.setattr(sys, "stderr", screen())
    log.info("pretrain: started")
    set_level("WARNING")
    work(clock)
    log.info("stage 1 of 2, decode_videos: started")
    log.warning("no checkpoint written")
    assert re.fullmatch(f"{times}pretrain: started\n{times}no checkpoint written\n", sys.stderr.getvalue())


def test_processes_inherit_the_level(level):
    set_level("DEBUG")
    program = "from alpro.log import log; log.debug('checkpoint a')"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stderr == "checkpoint a\n"
    assert log.isEnabledFor(logging.DEBUG)
