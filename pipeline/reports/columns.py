"""Print text in columns on standard output."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 100_000  # columns of a file or pipe: nothing is wrapped or truncated


def print_rows(rows: Sequence[Mapping[str, Any]], shortened: Collection[str] = ()) -> None:
    """Print rows of equal keys below these as heads, without the columns that have no value.

    Args:
        shortened: Keys whose values end with an ellipsis if a terminal is too narrow for a line.
    """
    if not rows:
        return
    keys = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    right = [column for column, key in enumerate(keys) if isinstance(rows[0][key], int | float)]
    lines = [["" if row[key] is None else str(row[key]) for key in keys] for row in rows]
    print_columns(keys, lines, right, [keys.index(key) for key in shortened if key in keys])


def print_columns(
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    right: Collection[int],
    shortened: Collection[int] = (),
) -> None:
    """Print lines of cells in columns below their heads.

    In a terminal, the heads are bold, and a cell that is too wide is folded in its column, or
    shortened. A file or a pipe gets plain text with one line for each row.

    Args:
        right: Indices of the columns that are aligned on the right.
        shortened: Indices of the columns that become narrower so that a row stays one line.
    """
    is_terminal = sys.stdout.isatty()
    # `highlight` would color numbers and paths.
    console = Console(
        force_terminal=is_terminal, width=None if is_terminal else UNLIMITED, highlight=False
    )
    grid = Table(box=None, pad_edge=False)
    for column, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if column in right else "left"
        is_fixed = bool(shortened) and column not in shortened
        grid.add_column(
            Text(head),
            justify=justify,
            overflow="ellipsis" if column in shortened else "fold",
            no_wrap=is_fixed or not is_terminal,
        )
    for line in lines:
        # Printed without markup, because a value may have brackets.
        grid.add_row(
            *(Text(cell, no_wrap=column in shortened or None) for column, cell in enumerate(line))
        )

    with console.capture() as capture:
        console.print(grid)
    # Rich pads the last cell of a line with spaces.
    for line in capture.get().splitlines():
        print(line.rstrip())
