"""The results of a pipeline as tables, for the terminal, the report and Prefect's page."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.stages import EVALUATIONS

Listed = tuple[str, Path, dict[str, Any], bool]  # name, folder, record, cached
FEW_ITEMS = 100


def results(made: list[Listed]) -> list[dict[str, Any]]:
    """The rows of results.json of every evaluation, zero-shot first; none if nothing was evaluated."""
    folders = [folder for _, folder, record, _ in made if record["stage"] in EVALUATIONS]
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
    ranked = [row for row in rows if row["metric"][:3] in ("t2v", "v2t")]
    answers = [row for row in rows if row["name"].startswith("qa")]
    decoded = [row for row in rows if row["name"].startswith("decoded/")]
    left_out = [row for row in rows if row["name"].startswith("left_out/")]
    others = [row for row in rows if row not in [*ranked, *answers, *decoded, *left_out]]
    found = []
    if ranked:
        found.append(retrieval_table(ranked))
    if answers:
        found.append(answers_table(answers))
    if others:
        lines = [[r["what"], r["metric"], shown(r["value"]), shown(r["chance"]), str(r["items"])] for r in others]
        note = small_sample_note(max(row["items"] for row in others))
        found.append(Table("Entities", ["", "", "score", "best constant", "items"], lines, note))
    if decoded:  # only if some were not
        lines = [[r["what"], r["metric"], shown(r["value"])] for r in decoded]
        found.append(Table("Items that could be decoded", ["", "", "share"], lines))
    if left_out:
        lines = [[r["what"], r["metric"], shown(r["value"])] for r in left_out]
        found.append(Table("Items left out: also in training", ["", "", "share"], lines))
    return found


def retrieval_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each ranker and direction, and one for each direction with what chance reaches."""
    columns = ["R@1", "R@5", "R@10", "MdR"]
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    chance: dict[str, dict[str, str]] = {}
    items: dict[str, int] = {}
    for row in rows:
        way, column = row["metric"].split()
        lines.setdefault((row["what"], way), {})[column] = row
        chance.setdefault(way, {}).setdefault(column, shown(row["chance"], column))
        items[way] = max(items.get(way, 0), row["items"])
    out = []
    for (what, way), cells in lines.items():
        scores = [shown(cells[c]["value"], c) if c in cells else "" for c in columns]
        out.append([what, way, *scores, str(next(iter(cells.values()))["items"])])
    out += [["chance", way, *(cells.get(c, "") for c in columns), ""] for way, cells in chance.items()]
    # Captions of one video are no independent items, so the direction with fewer counts.
    return Table("Retrieval", ["", "", *columns, "items"], out, small_sample_note(min(items.values())))


def answers_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each type of question: the score, those of the controls, what the most frequent answer reaches."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        cells = {row["what"]: row for row in rows if row["metric"] == metric}
        first = next(iter(cells.values()))
        scores = [shown(cells[what]["value"]) if what in cells else "" for what in whats]
        lines.append([metric, "", *scores, shown(first["chance"]), str(first["items"])])
    heads = [what.removeprefix("control: ") for what in whats]
    note = small_sample_note(max(row["items"] for row in rows))
    return Table("Question answering", ["", "", *heads, "most frequent answer", "items"], lines, note)


def small_sample_note(items: int) -> str:
    """A warning if there are few test items: how far a score may be off by chance alone, as half the 95 % interval of a
    share at its widest, 1.96 sqrt(0.5 x 0.5 / n)."""
    if items >= FEW_ITEMS:
        return ""
    points = min(100.0, 98 / math.sqrt(max(items, 1)))
    plural = "" if items == 1 else "s"
    return f"Only {items} test item{plural}: differences of less than {points:.0f} points are noise."


def shown(value: float | None, metric: str = "") -> str:
    """A score as people write it: ranks plain, shares in per cent."""
    if value is None:
        return "-"
    return f"{value:.1f}" if "MdR" in metric else f"{value:.1f} %"


def results_markdown(made: list[Listed]) -> str:
    """The results as Markdown tables; empty if nothing was evaluated."""
    parts = []
    for table in tables(results(made)):
        rule = ["---", "---", *["---:"] * (len(table.heads) - 2)]
        cells = [table.heads, rule, *table.lines]
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells))
        parts += [table.note] if table.note else []
    return "\n\n".join(parts)
