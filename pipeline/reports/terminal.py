"""Results and statistics of corpora as tables of the terminal."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Columns

from alpro.artifact import read_record
from alpro.pipeline.reports.results import Table, main_table, rows

console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True)


def print_results(folders: dict[str, Path], workspace: Path, report: Path, as_json: bool = False) -> None:
    """Prints the main results of a run, or the numbers of its last stage if nothing was evaluated; the warnings of the
    stages; and where the rest is. At most 14 lines after an evaluation, and one more if there are few test videos."""
    artifacts = [(folder, record) for folder in folders.values() if (record := read_record(folder))]
    found = rows(artifacts)
    if as_json:
        stages = {
            record["name"]: {
                "folder": str(folder),
                **{key: record[key] for key in ("fingerprint", "counts", "metrics")},
            }
            for folder, record in artifacts
        }
        values = {"results": found, "artifacts": stages, "report": str(report) if report.is_file() else ""}
        print(json.dumps(values, indent=1, ensure_ascii=False))
        return
    if table := main_table(found):
        print_table(table, title=False)
    elif artifacts:
        folder, record = artifacts[-1]
        print_line(f"{record['name']}: {folder}")
        for key, value in {**record["counts"], **record["metrics"]}.items():
            print_line(f"  {key}: {value:g}")
    warnings = [(record["name"], line) for _, record in artifacts for line in record.get("warnings", [])]
    if len(warnings) > 2 and report.is_file():
        print_line(f"warnings: {len(warnings)}, below the tables of the report")
    else:
        for name, line in warnings:
            print_line(f"warning: {name}: {line}")
    if report.is_file():  # of this stage, or of a run that had anything to do
        print_line(f"{f'all {len(found)} scores (as JSON: --json)' if found else 'report'}: {report}")
    where = "" if workspace.name == "workspace" and workspace.parent == Path.cwd() else f" --workspace {workspace}"
    print_line(f"curves, pictures and comparison: alpro ui{where}")


def print_table(table: Table, title: bool = True) -> None:
    """A table. One of numbers that is wider than the terminal is continued below, with the same first columns."""
    name = table.title if title else None
    for columns in columns_that_fit(table, console.width):
        style = box.SIMPLE_HEAD if title else None
        shown = Columns(*table.heads[:2], title=name, title_justify="left", box=style, pad_edge=False)
        for i in columns:
            if table.texts:
                shown.add_column(table.heads[i], overflow="fold")
            else:
                shown.add_column(table.heads[i], justify="right", no_wrap=not title or " " not in table.heads[i])
        last = None
        for line in table.lines:
            shown.add_row(
                "" if line[0] == last else escape(line[0]), escape(line[1]), *(escape(line[i]) for i in columns)
            )
            last = line[0]
        console.print(shown)
        name = f"{table.title}, continued"
    if table.note:
        print_line(table.note + "\n" * title)


def columns_that_fit(table: Table, width: int) -> list[list[int]]:
    """The numbers of the columns after the first two, in groups that fit into a width beside these. Texts may be
    wrapped at spaces, numbers may not."""
    rest = list(range(2, len(table.heads)))
    if table.texts:
        return [rest]
    first, *others = zip(*table.lines, strict=True)
    words = [longest(head.split()) for head in table.heads]
    cells = [longest(word for text in first for word in text.split()), *map(longest, others)]
    needed = [max(both) + 3 for both in zip(words, cells, strict=True)]  # 3: the space between two columns
    groups: list[list[int]] = [[]]
    for i in rest:
        if groups[-1] and sum(needed[j] for j in (0, 1, *groups[-1], i)) - 1 > width:
            groups.append([])
        groups[-1].append(i)
    return groups


def longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def print_line(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
