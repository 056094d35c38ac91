"""Prints results and corpora as tables."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alpro.artifact import read_record
from alpro.pipeline.reports.results import ResultTable, printed_table, results, tables

console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True)


def print_results(folders: dict[str, Path], workspace: Path, report: Path, as_json: bool = False) -> None:
    """Prints the main results, if there are any, how many warnings the stages have, and where the rest is: at most 14
    lines after an evaluation, and one more if there are few test videos."""
    listed = [(name, folder, record, False) for name, folder in folders.items() if (record := read_record(folder))]
    if as_json:
        artifacts = {
            name: {"folder": str(folder)} | {key: record[key] for key in ("fingerprint", "counts", "metrics")}
            for name, folder, record, _ in listed
        }
        values = {"results": results(listed), "artifacts": artifacts, "report": str(report) if report.is_file() else ""}
        print(json.dumps(values, indent=1, ensure_ascii=False))
        return
    rows = results(listed)
    if few := printed_table(rows):
        table = Table("", "", box=None, pad_edge=False)
        for head in few.heads[2:]:
            table.add_column(head, justify="right", no_wrap=True)
        for line in few.lines:
            table.add_row(*line)
        console.print(table)
        if few.note:
            print_line(few.note)
    else:
        for other in tables(rows):
            print_result_table(other)
    if not rows and listed:
        name, folder, record, _ = listed[-1]
        console.print(f"{name}: {folder}", markup=False)
        for key, value in {**record["counts"], **record["metrics"]}.items():
            console.print(f"  {key}: {value:g}")
    warnings = [(name, line) for name, _, record, _ in listed for line in record.get("warnings", [])]
    if warnings and few and report.is_file():
        stages = ", ".join(f"{name} {count}" for name, count in Counter(name for name, _ in warnings).items())
        print_line(f"warnings: {len(warnings)} ({stages}), below the tables of the report")
    else:
        for name, line in warnings:
            print_line(f"warning: {name}: {line}")
    where = "" if workspace.name == "workspace" and workspace.parent == Path.cwd() else f" --workspace {workspace}"
    if report.is_file():  # of this stage, or of a run that had anything to do
        what = f"all {len(rows)} scores (as JSON: --json)" if rows else "report"
        print_line(f"{what}: {report}")
    print_line(f"curves, pictures and comparison: alpro ui{where}")


def print_result_table(results: ResultTable) -> None:
    """A table of results. One that is wider than the terminal is continued below, with the same first columns."""
    title = results.title
    for columns in columns_that_fit(results, console.width):
        table = Table(*results.heads[:2], title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i in columns:
            table.add_column(results.heads[i], justify="right", no_wrap=" " not in results.heads[i])
        last = None
        for line in results.lines:
            table.add_row("" if line[0] == last else line[0], line[1], *(line[i] for i in columns))
            last = line[0]
        console.print(table)
        title = f"{results.title}, continued"
    if results.note:
        console.print(f"{results.note}\n")


def print_text_table(texts: ResultTable) -> None:
    """A table whose columns are all texts, which may be wrapped."""
    table = Table(title=texts.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in texts.heads:
        table.add_column(head, overflow="fold")
    for line in texts.lines:
        table.add_row(*map(escape, line))
    console.print(table)


def columns_that_fit(results: ResultTable, width: int) -> list[list[int]]:
    """The numbers of the columns of scores, in groups that fit into a width beside the first two columns. The texts of
    the first column and the heads may be wrapped at spaces, scores may not."""
    first, *others = zip(*results.lines, strict=True)
    words = [longest(head.split()) for head in results.heads]
    cells = [longest(word for text in first for word in text.split()), *map(longest, others)]
    needed = [max(both) + 3 for both in zip(words, cells, strict=True)]  # 3: the space between two columns
    groups: list[list[int]] = [[]]
    for i in range(2, len(needed)):
        if groups[-1] and sum(needed[j] for j in (0, 1, *groups[-1], i)) - 1 > width:
            groups.append([])
        groups[-1].append(i)
    return groups


def longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def print_inspection(report: dict[str, Any]) -> None:
    """Prints the report of `alpro data inspect` as tables."""

    def show(title: str, rows: list[list[Any]], *heads: str) -> None:
        table = Table(heads[0], title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for head in heads[1:]:
            table.add_column(head, justify="right")
        for name, *values in rows:
            table.add_row(
                name, *(v if isinstance(v, str) else f"{v:,}" if isinstance(v, int) else f"{v:,.4g}" for v in values)
            )
        console.print(table)

    heads = ("samples", "captions", "questions", "hours")
    splits = [[f"{row['split']}, {row['kind']}s", *(row[head] for head in heads)] for row in report["splits"]]
    show("samples", splits, "split", *heads)
    lengths = [[name, *values.values()] for name, values in report["lengths"].items() if values]
    show("lengths", lengths, "of", "minimum", "5 %", "median", "95 %", "maximum")
    captions = report["captions"]
    words = captions["different words"]
    console.print(f"captions: {captions['all']:,}, {captions['different']:,} different, of {words:,} words")
    for text, times in captions["most repeated"]:
        console.print(f"  {times:,} times: {text}", markup=False)
    console.print(f"  {captions['repeated']:,} occur more than once")
    if report["unreadable"]:
        console.print(f"unreadable samples: {report['unreadable']:,} of {report['compared']:,}")
    also = {split: values for split, values in report["also in training"].items() if values["samples"]}
    overlaps = [
        [
            split,
            values["samples"],
            with_share(values["same group"], values["samples"]),
            with_share(values["same caption"], values["samples"]),
            with_share(values["same frames"], values["compared"]),
        ]
        for split, values in also.items()
    ]
    if overlaps:
        show("also in training", overlaps, "split", "samples", "same group", "same caption", "same frames")


def with_share(count: int, of: int) -> str:
    """A count and its share, as 3 of 40 (7.5 %)."""
    return f"{count:,} of {of:,} ({count / of:.1%})" if of else "-"


def print_line(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
