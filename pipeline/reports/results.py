"""The results of a pipeline as tables, for the terminal and the report."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from alpro.artifact import read_results
from alpro.stages import EVALUATIONS

Listed = tuple[str, Path, dict[str, Any], bool]  # name, folder, record, cached
FEW_VIDEOS = 100
# The scores that a person looks at first, by the short names under which MLflow has them, with their names in results.
HEADLINES = {
    "R1": "retrieval/t2v/R1",
    "R10": "retrieval/t2v/R10",
    "R1_zero_shot": "zero_shot/t2v/R1",
    "QA": "qa/acc",
    "entities": "entities/acc",
}

# The scores that a run prints at its end: on one screen, beside what a single frame or the text alone reaches.
PRINTED = (
    "zero_shot/t2v/R1",
    "zero_shot_vtc/t2v/R1",
    "retrieval/t2v/R1",
    "retrieval_vtc/t2v/R1",
    "retrieval/t2v/R10",
    "retrieval_single_frame/t2v/R1",
    "qa/acc",
    "qa_text_only/acc",
    "entities/acc",
)


def results(artifacts: list[Listed]) -> list[dict[str, Any]]:
    """The rows of results.json of every evaluation, zero-shot first; none if nothing was evaluated."""
    folders = [folder for _, folder, record, _ in artifacts if record["stage"] in EVALUATIONS]
    rows = {row["name"]: row for folder in folders for row in read_results(folder)}
    return list(rows.values())


@dataclass(frozen=True)
class ResultTable:
    """A table to print: the heads of its columns (the first two are texts, the others numbers), lines, a note below."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ""


def tables(rows: list[dict[str, Any]]) -> list[ResultTable]:
    """The results as people compare them: retrieval by recall, answers with their controls side by side, the rest."""
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(row["table"], []).append(row)
    overlap = [overlap_note(row) for table in OVERLAPS for row in by_table.pop(table, ())]
    names = dict.fromkeys([*LAYOUTS, *by_table])
    shown = {name: LAYOUTS.get(name, scores_table)(by_table[name]) for name in names if name in by_table}
    return [with_notes(table, [] if name == "decoded" else overlap) for name, table in shown.items()]


def with_notes(table: ResultTable, notes: list[str]) -> ResultTable:
    """The table with more lines in its note."""
    return replace(table, note="\n".join(filter(None, [table.note, *notes])))


def retrieval_table(rows: list[dict[str, Any]]) -> ResultTable:
    """A line for each ranker and direction with its protocol, and one for each direction with its chance level."""
    columns = {row["metric"]: row["metric"] + ("" if row["higher_is_better"] else " ↓") for row in rows}
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    chance: dict[str, dict[str, str]] = {}
    for row in rows:
        direction, metric = row["direction"], row["metric"]
        lines.setdefault((row["what"], direction), {})[metric] = row
        chance.setdefault(direction, {}).setdefault(metric, shown(row["chance"], row["unit"]))
    out = []
    for (what, direction), cells in lines.items():
        scores = [shown_score(cells[c]) if c in cells else "" for c in columns]
        first = next(iter(cells.values()))
        out.append([what, direction, *scores, str(first["items"]), first["protocol"]])
    out += [["chance", direction, *(cells.get(c, "") for c in columns), "", ""] for direction, cells in chance.items()]
    heads = ["", "", *columns.values(), "items", "protocol"]
    return ResultTable("Retrieval", heads, out, note_of(rows))


def answers_table(rows: list[dict[str, Any]]) -> ResultTable:
    """A line for each type of question: the score, those of the controls, and the chance level."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        cells = {row["what"]: row for row in rows if row["metric"] == metric}
        first = next(iter(cells.values()))
        scores = [shown_score(cells[what]) if what in cells else "" for what in whats]
        lines.append([metric, "", *scores, shown(first["chance"], first["unit"]), str(first["items"])])
    heads = [what.removeprefix("control: ") for what in whats]
    note = note_of(rows)
    return ResultTable("Question answering", ["", "", *heads, rows[0]["baseline"], "items"], lines, note)


def scores_table(rows: list[dict[str, Any]]) -> ResultTable:
    """A line for each score, with its chance level."""
    lines = [
        [
            row["what"],
            row["metric"],
            shown_score(row),
            shown(row["chance"], row["unit"]),
            str(row["items"]),
        ]
        for row in rows
    ]
    note = note_of(rows)
    return ResultTable(rows[0]["table"].capitalize(), ["", "", "score", rows[0]["baseline"], "items"], lines, note)


def shares_table(title: str, rows: list[dict[str, Any]]) -> ResultTable:
    """A line for each share of a corpus."""
    return ResultTable(title, ["", "", "share"], [[r["what"], r["metric"], shown(r["value"], r["unit"])] for r in rows])


# How the tables of the rows are laid out, in order; a table that is not listed has the layout of `entities`.
LAYOUTS: dict[str, Callable[[list[dict[str, Any]]], ResultTable]] = {
    "retrieval": retrieval_table,
    "qa": answers_table,
    "entities": scores_table,
    "decoded": partial(shares_table, "Items that could be decoded"),
}
# Rows that are a note below every table: test items that share a caption or frames with a training item.
OVERLAPS = {
    "left_out": "are left out, because a training item has the same caption or frames (evaluate.exclude_overlap = "
    "false keeps them)",
    "also_in_training": "have the caption or the frames of a training item (evaluate.exclude_overlap = true leaves "
    "them out)",
}


def headline_scores(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The scores that a person looks at first: what each is of, its value with its interval, and its chance level."""
    by_name = {row["name"]: row for row in rows}
    return [
        {
            "what": row["what"],
            "metric": f"{row['direction']} {row['metric']}".strip(),
            "score": shown_score(row),
            "baseline": f"{row['baseline']} {shown(row['chance'], row['unit'])}",
        }
        for name in HEADLINES.values()
        if (row := by_name.get(name))
    ]


def printed_table(rows: list[dict[str, Any]]) -> ResultTable | None:
    """The scores of PRINTED with their chance levels; None if no row has one of these names."""
    by_name = {row["name"]: row for row in rows}
    chosen = [by_name[name] for name in PRINTED if name in by_name]
    if not chosen:
        return None
    lines = [
        [
            row["what"].split(",")[0],
            f"{row['direction']} {row['metric']}".strip(),
            shown_score(row),
            shown(row["chance"], row["unit"]),
        ]
        for row in chosen
    ]
    brackets = " [95 %]" if any(row["low"] is not None for row in chosen) else ""
    return ResultTable("Results", ["", "", f"score{brackets}", "chance"], lines, few_videos_note(chosen))


def overlap_note(row: dict[str, Any]) -> str:
    """How many test items are also in training, and whether the scores are without them."""
    return f"{row['metric']} {row['what']} {OVERLAPS[row['table']]}."


def note_of(rows: list[dict[str, Any]]) -> str:
    """What a reader of scores has to know: what the brackets are, and a warning if there are few test videos."""
    intervals = any(row["low"] is not None for row in rows)
    brackets = "In brackets: 95 % bootstrap interval over test videos." if intervals else ""
    return " ".join(filter(None, (brackets, few_videos_note(rows))))


def few_videos_note(rows: list[dict[str, Any]]) -> str:
    """A warning if there are few test videos. Of the directions of retrieval, that with the queries of fewer videos
    counts."""
    whole: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["items"] > whole.get(row["direction"], {"items": 0})["items"]:
            whole[row["direction"]] = row
    fewest = min(whole.values(), key=lambda row: row["independent_videos"])
    return small_sample_note(fewest["videos"], fewest["independent_videos"])


def small_sample_note(videos: int, independent: float) -> str:
    """A warning if there are few test videos: how far a score may be off by chance alone, as half the 95 % interval of
    a share at its widest, 1.96 sqrt(0.5 x 0.5 / n). n is not the number of queries: those of one video are right or
    wrong together (`independent_videos`)."""
    if independent >= FEW_VIDEOS:
        return ""
    points = min(100.0, 98 / math.sqrt(independent))
    plural = "" if videos == 1 else "s"
    counted = (
        f", which count as {independent:.0f} because some have most of the queries"
        if independent < 0.8 * videos
        else ""
    )
    return f"Only {videos} test video{plural}{counted}: differences of less than {points:.0f} points are noise."


def shown(value: float | None, unit: str) -> str:
    """A score as people write it: with its unit if it is a percentage, plain if it is a rank."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.1f}"


def shown_score(row: dict[str, Any]) -> str:
    """The score of a row with its interval, if it has one, as 49.5 [42.5, 56.5]."""
    if row["low"] is None:
        return shown(row["value"], row["unit"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def signed(difference: float) -> str:
    """A difference with its sign; 0 is +0.0, also if rounding gives it a minus."""
    return f"{round(difference, 1) + 0.0:+.1f}"
