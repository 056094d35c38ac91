"""Lines about a run on standard error, and progress: a bar on a terminal, plain lines elsewhere.

The processes of stages inherit the level. Each line starts with its time, except on a terminal, and
where the program that reads the lines adds times of its own (TIMES). Short tasks show no progress.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

# Environment variable: DEBUG, INFO, or WARNING for no progress.
LEVEL = "ALPRO_LOG_LEVEL"
TIMES = "ALPRO_LOG_TIMES"  # environment variable: 0 for lines without their times
# Environment variable: 1 while stages run side by side, whose bars would overlap.
PLAIN = "ALPRO_PLAIN_PROGRESS"
QUIET_SECONDS = 2.0  # shorter tasks show nothing
LINE_SECONDS = 15.0  # between plain lines
# The time left follows from the speed in this window: a step may take minutes.
SPEED_SECONDS = 600.0
BAR_WIDTH = 20  # characters, so that the columns beside it fit on 80

log = logging.getLogger("alpro")


class StderrHandler(logging.Handler):
    """Print each record as a line on the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        # Names of files are in many lines; a traceback has several lines.
        text = "\n".join(map(printable, record.getMessage().split("\n")))
        if os.environ.get(TIMES) != "0" and not sys.stderr.isatty():
            time_text = logging.Formatter().formatTime(record, "%Y-%m-%d %H:%M:%S")
            text = f"{time_text} {text}"
        # A full disk, or a `tee` that Ctrl-C ended, costs the line and not the training.
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def printable(text: object) -> str:
    """Return a text on one line, without what a terminal would obey.

    Control characters, such as the escape codes of colors, newlines, and marks that turn the
    direction of writing are written as escapes.

    >>> print(printable("a\\x1b[31m\\n.mp4"))
    a\\x1b[31m\\n.mp4
    """
    shown = []
    for character in str(text):
        # Zero-width joiners are parts of letters, of Persian and of Indic scripts, and of emoji.
        if character.isprintable() or character in "\u200c\u200d":
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape", "surrogatepass").decode())
    return "".join(shown)


@cache
def warn_once(text: str) -> None:
    """Log a warning that other parts of a command may repeat."""
    log.warning(text)


if not log.handlers:
    log.addHandler(StderrHandler())
    log.setLevel(os.environ.get(LEVEL, "INFO"))
    log.propagate = False  # the handlers of other libraries would print the lines again


@contextmanager
def progress(
    what: str,
    total: int | None,
    unit: str,
    done: int = 0,
) -> Iterator[Callable[..., None]]:
    """Show the progress of a task: its name, the count, the time left and a note.

    The context is `advance(n=1, note="")`: n more units are finished. Without a note, the last one
    stays. Of the processes of torchrun, the first one shows it.

    Args:
        total: Number of units; None if it is unknown.
        done: Number of units that were done by an earlier run.
    """
    if not log.isEnabledFor(logging.INFO) or os.environ.get("RANK", "0") != "0":
        yield lambda n=1, note="": None
        return

    # `advance` draws it after QUIET_SECONDS.
    bar = None
    task = None
    if os.environ.get(PLAIN) != "1" and sys.stderr.isatty():
        bar = make_bar(unit)
        task = bar.add_task(what, total=total, completed=done, note="")
    began = last_line = time.monotonic()
    count = done
    last_note = ""

    def show(now: float) -> None:
        nonlocal last_line
        last_line = now
        of_total = "" if total is None else f" of {total}"
        details = [f"{count}{of_total} {unit}", f"{now - began:.0f} s"]
        # The units of an earlier run say nothing about the speed of this one.
        if total is not None and count > done:
            remaining = max(0, total - count)
            seconds_left = (now - began) * remaining / (count - done)
            details.append(f"{timedelta(seconds=round(seconds_left))} left")

        if last_note:
            details.append(last_note)
        log.info(f"{what}: {', '.join(details)}")

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal count, last_note
        count += n
        last_note = note or last_note

        now = time.monotonic()
        if bar:
            bar.update(task, advance=n, note=last_note)
            if now - began > QUIET_SECONDS and not bar.live.is_started:
                bar.start()
        elif now - began > QUIET_SECONDS and now - last_line > LINE_SECONDS:
            show(now)

    try:
        yield advance
    finally:
        if bar:
            bar.stop()


def make_bar(unit: str) -> Any:
    """Return a progress bar whose note alone becomes shorter on a narrow terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    # With a ratio, a column has the width that the others leave.
    note = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", table_column=note),
        console=Console(stderr=True),
        expand=True,
        transient=True,
        speed_estimate_period=SPEED_SECONDS,
    )
