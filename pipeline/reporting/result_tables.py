"""The results of a pipeline as tables, for the terminal, the report and Prefect's page."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.stages import EVALUATIONS

Listed = tuple[str, Path, dict[str, Any], bool]  # name, folder, record, cached
FEW_ITEMS = 100


def results(artifacts: list[Listed]) -> list[dict[str, Any]]:
    """The rows of results.json of every evaluation, zero-shot first; none if nothing was evaluated."""
    folders = [folder for _, folder, record, _ in artifacts if record["stage"] in EVALUATIONS]
    rows = {row["name"]: row for folder in folders for row in read_json(folder / "results.json")}
    return list(rows.values())


@dataclass(frozen=True)
class Table:
    """A table to print: the heads of its columns (the first two are texts, the others numbers), lines, a note below."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ""


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """The results as people compare them: retrieval by recall, answers with their controls side by side, the rest."""
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(row["table"], []).append(row)
    names = dict.fromkeys([*LAYOUTS, *by_table])
    return [LAYOUTS.get(name, scores_table)(by_table[name]) for name in names if name in by_table]


def retrieval_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each ranker and direction, and one for each direction with its chance level."""
    columns = {row["metric"]: row["metric"] + ("" if row["higher_is_better"] else " ↓") for row in rows}
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    chance: dict[str, dict[str, str]] = {}
    items: dict[str, int] = {}
    for row in rows:
        direction, metric = row["direction"], row["metric"]
        lines.setdefault((row["what"], direction), {})[metric] = row
        chance.setdefault(direction, {}).setdefault(metric, shown(row["chance"], row["unit"]))
        items[direction] = max(items.get(direction, 0), row["items"])
    out = []
    for (what, direction), cells in lines.items():
        scores = [shown(cells[c]["value"], cells[c]["unit"]) if c in cells else "" for c in columns]
        out.append([what, direction, *scores, str(next(iter(cells.values()))["items"])])
    out += [["chance", direction, *(cells.get(c, "") for c in columns), ""] for direction, cells in chance.items()]
    # Captions of one video are no independent items, so the direction with fewer counts.
    heads = ["", "", *columns.values(), "items"]
    return Table("Retrieval", heads, out, small_sample_note(min(items.values())))


def answers_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each type of question: the score, those of the controls, and the chance level."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        cells = {row["what"]: row for row in rows if row["metric"] == metric}
        first = next(iter(cells.values()))
        scores = [shown(cells[what]["value"], cells[what]["unit"]) if what in cells else "" for what in whats]
        lines.append([metric, "", *scores, shown(first["chance"], first["unit"]), str(first["items"])])
    heads = [what.removeprefix("control: ") for what in whats]
    note = small_sample_note(max(row["items"] for row in rows))
    return Table("Question answering", ["", "", *heads, rows[0]["baseline"], "items"], lines, note)


def scores_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each score, with its chance level."""
    lines = [
        [
            row["what"],
            row["metric"],
            shown(row["value"], row["unit"]),
            shown(row["chance"], row["unit"]),
            str(row["items"]),
        ]
        for row in rows
    ]
    note = small_sample_note(max(row["items"] for row in rows))
    return Table(rows[0]["table"].capitalize(), ["", "", "score", rows[0]["baseline"], "items"], lines, note)


def shares_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """A line for each share of a corpus."""
    return Table(title, ["", "", "share"], [[r["what"], r["metric"], shown(r["value"], r["unit"])] for r in rows])


# How the tables of the rows are laid out, in order; a table that is not listed has the layout of `entities`.
LAYOUTS: dict[str, Callable[[list[dict[str, Any]]], Table]] = {
    "retrieval": retrieval_table,
    "qa": answers_table,
    "entities": scores_table,
    "decoded": partial(shares_table, "Items that could be decoded"),
    "left_out": partial(shares_table, "Items left out: also in training"),
}


def small_sample_note(items: int) -> str:
    """A warning if there are few test items: how far a score may be off by chance alone, as half the 95 % interval of a
    share at its widest, 1.96 sqrt(0.5 x 0.5 / n)."""
    if items >= FEW_ITEMS:
        return ""
    points = min(100.0, 98 / math.sqrt(max(items, 1)))
    plural = "" if items == 1 else "s"
    return f"Only {items} test item{plural}: differences of less than {points:.0f} points are noise."


def shown(value: float | None, unit: str) -> str:
    """A score as people write it: with its unit if it is a percentage, plain if it is a rank."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.1f}"


def results_markdown(artifacts: list[Listed]) -> str:
    """The results as Markdown tables; empty if nothing was evaluated."""
    parts = []
    for table in tables(results(artifacts)):
        parts += [f"**{table.title}**", markdown(table)]
        parts += [table.note] if table.note else []
    return "\n\n".join(parts)


def markdown(table: Table) -> str:
    """A table in Markdown, without its title and note."""
    rule = ["---", "---", *["---:"] * (len(table.heads) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [table.heads, rule, *table.lines])
