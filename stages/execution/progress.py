"""A progress bar on a terminal; elsewhere a plain line every few seconds. Nothing for what is over at once."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_SECONDS = 2.0  # shorter waits show nothing
LINE_SECONDS = 15.0  # between plain lines


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(n, note="")`. The bar, or the line, says `what`, how many of `total` units, and the note.

    A total that is not known is None.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, *remaining, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, **({"note": note} if note else {}))
        return
    started = last = time.monotonic()
    done, noted = 0, ""

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last, noted
        done, noted = done + n, note or noted
        now = time.monotonic()
        if now - started > QUIET_SECONDS and now - last > LINE_SECONDS:
            last = now
            many = f"{done} of {total}" if total is not None else f"{done}"
            told = f", {noted}" if noted else ""
            print(f"{what}: {many} {unit}, {now - started:.0f} s{told}", file=sys.stderr, flush=True)

    yield advance
