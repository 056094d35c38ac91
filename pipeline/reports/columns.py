"""Print text in columns on standard output."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

UNLIMITED = 100_000  # columns of a file or pipe: nothing is wrapped or truncated


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys below these as heads, without the columns that have no value."""
    if not rows:
        return
    keys = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    right = [
        column
        for column, key in enumerate(keys)
        if isinstance(rows[0][key], int | float)
    ]
    lines = [
        ["" if row[key] is None else str(row[key]) for key in keys] for row in rows
    ]
    print_columns(keys, lines, right)


def print_columns(
    heads: Sequence[str], lines: Sequence[Sequence[str]], right: Collection[int]
) -> None:
    """Print lines of cells in columns below their heads.

    In a terminal, the heads are bold, and a cell that is too wide is folded in its column. A file or
    a pipe gets plain text with one line for each row.

    Args:
        right: Indices of the columns that are aligned on the right.
    """
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else UNLIMITED
    # A value may have brackets, which would be markup. `highlight` would color numbers and paths.
    console = Console(
        force_terminal=is_terminal, width=width, markup=False, highlight=False
    )
    grid = Table(box=None, pad_edge=False)
    for column, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if column in right else "left"
        grid.add_column(head, justify=justify, overflow="fold", no_wrap=not is_terminal)
    for line in lines:
        grid.add_row(*line)

    with console.capture() as capture:
        console.print(grid)
    # Rich pads the last cell of a line with spaces.
    for line in capture.get().splitlines():
        print(line.rstrip())
