"""Results and lists as aligned text."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import read_record
from alpro.pipeline.reports.results import Table, main_table, rows
from alpro.pipeline.reports.verdict import fine_tuned_verdict


def print_results(
    folders: dict[str, Path], workspace: Path, report: Path, as_json: bool = False
) -> None:
    """Prints the main results of a run, or the numbers of its last stage if nothing was evaluated; the warnings of the
    stages; and where the rest is. At most 16 lines after an evaluation, and one more if there are few test videos."""
    artifacts = [(folder, record) for folder in folders.values() if (record := read_record(folder))]
    found = rows(artifacts)
    if as_json:
        stages = {
            record["name"]: {"folder": str(folder)}
            | {key: record[key] for key in ("fingerprint", "counts", "metrics")}
            for folder, record in artifacts
        }
        values = {
            "results": found,
            "artifacts": stages,
            "report": str(report) if report.is_file() else "",
        }
        print(json.dumps(values, indent=1, ensure_ascii=False))
        return
    if table := main_table(found):
        print_table(table, title=False)
        if sentence := fine_tuned_verdict(artifacts):
            print(sentence)
    elif artifacts:
        folder, record = artifacts[-1]
        print(f"{record['name']}: {folder}")
        for key, value in {**record["counts"], **record["metrics"]}.items():
            print(f"  {key}: {value:g}")
    warnings = [
        (record["name"], line) for _, record in artifacts for line in record.get("warnings", [])
    ]
    if len(warnings) > 2 and report.is_file():
        print(f"warnings: {len(warnings)}, below the tables of the report")
    else:
        for name, line in warnings:
            print(f"warning: {name}: {line}")
    if report.is_file():  # of this stage, or of a run that had anything to do
        print(f"{f'all {len(found)} scores (as JSON: --json)' if found else 'report'}: {report}")
    where = (
        ""
        if workspace.name == "workspace" and workspace.parent == Path.cwd()
        else f" --workspace {workspace}"
    )
    print(f"curves, pictures and comparison: alpro ui{where}")


def print_table(table: Table, title: bool = True) -> None:
    """A table; a name that several lines share is printed in the first."""
    lines = [
        ["" if number and line[0] == table.lines[number - 1][0] else line[0], *line[1:]]
        for number, line in enumerate(table.lines)
    ]
    heads, *shown = aligned(
        [table.heads, *lines], () if table.texts else range(2, len(table.heads))
    )
    print(
        *([table.title, heads, "-" * max(map(len, [heads, *shown]))] if title else [heads]),
        *shown,
        sep="\n",
    )
    if table.note:
        print(table.note)
    if title:
        print()


def print_rows(found: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys below these as heads, without the columns that no row has a value for."""
    if not found:
        return
    keys = [key for key in found[0] if any(row[key] not in (None, "") for row in found)]
    numbers = [i for i, key in enumerate(keys) if isinstance(found[0][key], int | float)]
    lines = [["" if row[key] is None else str(row[key]) for key in keys] for row in found]
    print(*aligned([keys, *lines], numbers), sep="\n")


def aligned(lines: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Lines of cells as text in columns; those with the numbers `right` are aligned on the right.

    >>> aligned([["name", "clips"], ["a", "12"]], [1])
    ['name  clips', 'a        12']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if column in right else text.ljust(widths[column])

    return [
        "  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines
    ]
