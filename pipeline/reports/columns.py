"""Print text in columns on standard output."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

UNLIMITED = 100_000  # columns of a file or pipe: nothing is wrapped or truncated
NUMBER = re.compile(r"[-+]?[\d,.]* ?%?")  # such a column is aligned on the right


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys below these as heads, without the columns that have no value."""
    if rows:
        keys = [key for key in rows[0] if any(row[key] != "" for row in rows)]
        lines = [[str(row[key]) for key in keys] for row in rows]
        print_columns(keys, lines)


def print_columns(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print lines of cells in columns below their heads.

    In a terminal, a cell that is too wide is folded in its column. A file or a pipe gets one line
    for each row.
    """
    is_terminal = sys.stdout.isatty()
    grid = Table(box=None, pad_edge=False)
    for column, head in enumerate(heads):
        is_number = all(NUMBER.fullmatch(line[column]) for line in lines)
        grid.add_column(head, justify="right" if is_number else "left", overflow="fold")
    for line in lines:
        grid.add_row(*line)

    # A value may have brackets, which would be markup. `highlight` would color numbers and paths.
    console = Console(
        force_terminal=is_terminal,
        width=None if is_terminal else UNLIMITED,
        markup=False,
        highlight=False,
    )
    console.print(grid)
