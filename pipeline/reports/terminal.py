"""Results and lists as text in columns, for standard output."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from alpro.artifact import Record, read_record
from alpro.pipeline.reports.results import Rows, Table, main_table, rows
from alpro.pipeline.reports.verdict import compare_with_start

MAX_WARNINGS = 2  # printed; if there are more, the report has them
UNLIMITED = 100_000  # columns of a file or pipe: nothing is wrapped or cut


def print_results(
    folders: dict[str, Path], workspace: Path, report: Path, as_json: bool = False
) -> None:
    """Print the main results of a run, or the numbers of its last stage if nothing was evaluated;
    the warnings of the stages; and where the rest is.

    After an evaluation these are at most 16 lines, and one more if there are few test videos.
    """
    records = [(folder, read_record(folder)) for folder in folders.values()]
    artifacts = [(folder, record) for folder, record in records if record]
    results = rows(artifacts)
    if as_json:
        # Print nothing else: a program reads the output.
        values = {
            "results": results,
            "artifacts": {record.name: to_json(folder, record) for folder, record in artifacts},
            "report": str(report) if report.is_file() else "",
        }
        print(json.dumps(values, indent=1, ensure_ascii=False))
        return

    print_scores(results, artifacts)
    print_warnings(artifacts, report)
    if report.is_file():  # A run that finds every artifact writes none.
        counted = f", {len(results)} scores (--json for JSON)" if results else ""
        print(f"report{counted}: {report}")

    # `alpro ui` opens this workspace by default.
    is_default = workspace.name == "workspace" and workspace.parent == Path.cwd()
    option = "" if is_default else f" --workspace {workspace}"
    print(f"curves, pictures and comparison: alpro ui{option}")


def to_json(folder: Path, record: Record) -> dict[str, Any]:
    """Return what `--json` prints of an artifact."""
    return {
        "folder": str(folder),
        "fingerprint": record.fingerprint,
        "counts": record.counts,
        "metrics": record.metrics,
    }


def print_scores(results: Rows, artifacts: Sequence[tuple[Path, Record]]) -> None:
    """Print the main scores of a run, or what its last stage counted if it has none."""
    table = main_table(results)
    if table:
        print_table(table, title=False)
        sentence = compare_with_start(artifacts)
        if sentence:
            print(sentence)
    elif artifacts:
        folder, record = artifacts[-1]
        print(f"{record.name}: {folder}")
        for key, value in {**record.counts, **record.metrics}.items():
            print(f"  {key}: {value:g}")


def print_warnings(artifacts: Sequence[tuple[Path, Record]], report: Path) -> None:
    """Print the warnings of the stages, or how many the report has."""
    lines = [f"{record.name}: {text}" for _, record in artifacts for text in record.warnings]
    if len(lines) > MAX_WARNINGS and report.is_file():
        print(f"{len(lines)} warnings (see the report)")
        return
    for line in lines:
        print(f"warning: {line}")


def print_table(table: Table, title: bool = True) -> None:
    """Print a table; a name that several lines share is printed in the first."""
    if title:
        print(table.title)
    print_columns(table.heads, table.grouped_lines(), table.numeric)
    if table.note:
        print(table.note)
    if title:
        print()


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
    grid = Grid(box=None, pad_edge=False)
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
