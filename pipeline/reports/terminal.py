"""Print results on standard output."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from alpro.artifact import Artifact
from alpro.pipeline.reports.columns import print_columns
from alpro.pipeline.reports.results import Table, list_warnings, main_table, rows
from alpro.pipeline.reports.verdict import compare_with_start


def print_results(artifacts: Sequence[Artifact], workspace: Path, report: Path) -> None:
    """Print the main results of a run, or the numbers of its last stage if nothing was evaluated;
    the warnings of the stages; and where the rest is.
    """
    table = main_table(rows(artifacts))
    if table:
        print_tables([table], compare_with_start(artifacts))
    elif artifacts:
        folder, record = artifacts[-1]
        print(f"{record.name}: {folder}")
        for key, value in {**record.counts, **record.metrics}.items():
            print(f"  {key}: {value:g}")

    for warning in list_warnings(artifacts):
        print(f"warning: {warning}")
    if report.is_file():  # A run that finds every artifact writes none.
        print(f"report: {report}")
    place = shlex.quote(str(workspace))
    print(f"curves, pictures and comparison: alpro ui --workspace {place}")


def print_tables(tables: Iterable[Table], sentence: str = "") -> None:
    """Print tables, and a sentence below them."""
    for table in tables:
        print(table.title)
        print_columns(table.heads, table.lines)
        print()
    if sentence:
        print(sentence)
