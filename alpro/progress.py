"""Progress bars on a terminal, and a plain line every few seconds elsewhere. Short tasks show nothing.

A caller who shows progress elsewhere, such as on a page, sets LISTENER.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Count(NamedTuple):
    """How many units of a task are done. total: None if unknown."""

    done: int
    total: int | None
    unit: str


# Called after each unit, in the thread that runs the task.
LISTENER: ContextVar[Callable[[Count], None] | None] = ContextVar("LISTENER", default=None)
QUIET_SECONDS = 2.0  # shorter tasks show nothing
LINE_SECONDS = 15.0  # between plain lines


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(n, note="")`. The bar, or the line, shows `what`, the number of `total` units, and the note.

    `total` is None if it is unknown.
    """
    listener, counted = LISTENER.get(), 0
    with shown(what, total, unit) as advance_shown:
        if listener is None:
            yield advance_shown
            return

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal counted
            counted += n
            listener(Count(counted, total, unit))
            advance_shown(n, note)

        yield advance


@contextmanager
def shown(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """The bar, or the lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        bar = Progress(*columns, *remaining, console=Console(stderr=True), transient=True)
        task = bar.add_task(what, total=total, note="")
        began = time.monotonic()

        def move(n: int = 1, note: str = "") -> None:
            if not bar.live.is_started and time.monotonic() - began > QUIET_SECONDS:
                bar.start()
            if note:
                bar.update(task, note=note)
            bar.advance(task, n)

        try:
            yield move
        finally:
            bar.stop()
        return
    started = last = time.monotonic()
    done, last_note = 0, ""

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last, last_note
        done, last_note = done + n, note or last_note
        now = time.monotonic()
        if now - started > QUIET_SECONDS and now - last > LINE_SECONDS:
            last = now
            count = f"{done} of {total}" if total is not None else f"{done}"
            suffix = f", {last_note}" if last_note else ""
            if total is not None and 0 < done < total:
                suffix = f", about {(now - started) * (total - done) / done:.0f} s left{suffix}"
            print(f"{what}: {count} {unit}, {now - started:.0f} s{suffix}", file=sys.stderr, flush=True)

    yield advance
