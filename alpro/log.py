"""Lines about a run on standard error, and progress: a bar on a terminal, plain lines elsewhere.

The processes of stages inherit the level. Each line starts with its time, except on a terminal, and
where the program that reads the lines adds times of its own (TIMES). `alpro run` also keeps its lines
in a file (FILE): the terminal may be closed when somebody looks for the cause.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

# Environment variable: DEBUG, INFO, or WARNING for no progress.
LEVEL = "ALPRO_LOG_LEVEL"
TIMES = "ALPRO_LOG_TIMES"  # environment variable: 0 for lines without their times
FILE = "ALPRO_LOG_FILE"  # environment variable: a file that keeps the lines, too
# Environment variable: 1 while stages run side by side, whose bars would overlap.
PLAIN = "ALPRO_PLAIN_PROGRESS"
LINE_SECONDS = 15.0  # between plain lines
# The time left follows from the speed in this window: a step may take minutes.
SPEED_SECONDS = 600.0
BAR_WIDTH = 20  # characters, so that the columns beside it fit on 80

log = logging.getLogger("alpro")


class StderrHandler(logging.Handler):
    """Print each record as a line on the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        # Names of files are in many lines; a traceback has several lines.
        text = "\n".join(map(printable, self.format(record).split("\n")))
        if record.levelno == logging.WARNING:
            text = f"warning: {text}"
        has_time = os.environ.get(TIMES) != "0" and not sys.stderr.isatty()
        say(text, with_time(text) if has_time else text)


def say(text: str, shown: str = "") -> None:
    """Print a text on standard error, and keep it.

    Args:
        shown: What is printed, if that differs.
    """
    keep(text)
    # A full disk, or a `tee` that Ctrl-C ended, costs the line and not the training.
    with suppress(OSError):
        print(shown or text, file=sys.stderr)


def keep(text: str) -> None:
    """Append a text with its time to the log file of this command, if it has one."""
    path = os.environ.get(FILE, os.devnull)
    with (
        suppress(OSError),
        open(path, "a", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(f"{with_time(text)}\n")


def with_time(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"


def printable(text: object) -> str:
    """Return a text on one line, without what a terminal would obey.

    Control characters, such as the escape codes of colors, newlines, and marks that turn the
    direction of writing are written as escapes.

    >>> print(printable("a\\x1b[31m\\n.mp4"))
    a\\x1b[31m\\n.mp4
    """
    # Zero-width joiners are parts of letters, of Persian and of Indic scripts, and of emoji.
    return "".join(
        character
        if character.isprintable() or character in "\u200c\u200d"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )


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

    # It also computes the time left.
    import rich.progress as rich
    from rich.console import Console

    has_bar = os.environ.get(PLAIN) != "1" and sys.stderr.isatty()
    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(BAR_WIDTH),
        rich.MofNCompleteColumn(),
        rich.TextColumn(unit),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=SPEED_SECONDS,
        disable=not has_bar,
    )
    bar.add_task(what, total=total, completed=done, note="")
    task = bar.tasks[0]
    next_line = time.monotonic() + LINE_SECONDS

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal next_line
        bar.update(task.id, advance=n, note=note or task.fields["note"])
        now = time.monotonic()
        if now < next_line:
            return

        next_line = now + LINE_SECONDS
        details = [f"{task.completed:.0f} of {total or '?'} {unit}"]
        if task.time_remaining is not None:
            details.append(f"{timedelta(seconds=task.time_remaining)} left")
        line = f"{what}: {', '.join(filter(None, [*details, task.fields['note']]))}"
        (keep if has_bar else log.info)(line)

    # A terminal that was closed costs the bar and not the result.
    with suppress(OSError):
        bar.start()
    try:
        yield advance
    finally:
        with suppress(OSError):
            bar.stop()
