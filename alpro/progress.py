"""Progress bars on a terminal, and a plain line every few seconds elsewhere. Short tasks show nothing."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from alpro.log import log

PLAIN = "ALPRO_PLAIN_PROGRESS"  # environment variable: 1 while stages run side by side, whose bars would overlap
QUIET_SECONDS = 2.0  # shorter tasks show nothing
LINE_SECONDS = 15.0  # between plain lines
SPEED_SECONDS = 600.0  # of which a bar computes the time left: a step may take minutes


def progress(what: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Callable[..., None]]:
    """A context of `advance(n, note="")`. The bar, or the line, shows `what`, the number of `total` units, the time
    left, and the note.

    `total` is None if it is unknown. `done` units were done by an earlier run. Of the processes of torchrun, the first
    shows it.
    """
    if not log.isEnabledFor(logging.INFO) or os.environ.get("RANK", "0") != "0":
        return nullcontext(lambda n=1, note="": None)
    plain = os.environ.get(PLAIN) == "1" or not sys.stderr.isatty()
    return lines(what, total, unit, done) if plain else bar(what, total, unit, done)


@contextmanager
def bar(what: str, total: int | None, unit: str, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    shown_bar = Progress(
        *columns, *remaining, console=Console(stderr=True), transient=True, speed_estimate_period=SPEED_SECONDS
    )
    task = shown_bar.add_task(what, total=total, completed=done, note="")
    began = time.monotonic()

    def advance(n: int = 1, note: str = "") -> None:
        if not shown_bar.live.is_started and time.monotonic() - began > QUIET_SECONDS:
            shown_bar.start()
        if note:
            shown_bar.update(task, note=note)
        shown_bar.advance(task, n)

    try:
        yield advance
    finally:
        shown_bar.stop()


@contextmanager
def lines(what: str, total: int | None, unit: str, done: int) -> Iterator[Callable[..., None]]:
    started = last = time.monotonic()
    before, last_note = done, ""

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last, last_note
        done, last_note = done + n, note or last_note
        now = time.monotonic()
        if now - started > QUIET_SECONDS and now - last > LINE_SECONDS:
            last = now
            parts = [f"{done} of {total} {unit}" if total is not None else f"{done} {unit}"]
            parts.append(f"{now - started:.0f} s")
            if total is not None and done > before:
                left = (now - started) * (total - done) / (done - before)
                parts.append(f"{rough_duration(left)} left")
            log.info(f"{what}: {', '.join(parts + ([last_note] if last_note else []))}")

    yield advance


def rough_duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two.

    >>> [rough_duration(seconds) for seconds in (0.2, 100, 400, 10_000, 1_000_000)]
    ['1 s', '100 s', '7 minutes', '3 hours', '12 days']
    """
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(1, round(seconds))} s"
