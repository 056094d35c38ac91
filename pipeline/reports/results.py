"""The results of runs as tables, with the runs as columns: for the terminal, the page, and the card of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`); every number that people read of them is
made into text here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from alpro.artifact import Record, read_results
from alpro.stages import CORPUS_STAGES, EVALUATIONS
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED, SHORT_METRICS

Rows = list[dict[str, Any]]  # of results.json
FEW_VIDEOS = 100
MARK = " ←"  # beside the score that counts
TITLES = {
    "retrieval": "Retrieval",
    "qa": "Question answering",
    "entities": "Entities",
    "decoded": "Decoded items",
}
TITLES |= {"left_out": "Left out: with the caption or the frames of a training item"}
TITLES |= {"also_in_training": "With the caption or the frames of a training item"}


@dataclass(frozen=True)
class Table:
    """A table to show: the heads of its columns, lines, a note below. The first two columns are texts, the others
    numbers, unless all are `texts`."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ""
    texts: bool = False


def rows(artifacts: Iterable[tuple[Path, Record]]) -> Rows:
    """The rows of results.json of every evaluation among artifacts, each score once."""
    folders = [folder for folder, record in artifacts if record["stage"] in EVALUATIONS]
    return list({row["name"]: row for folder in folders for row in read_results(folder)}.values())


def tables(
    runs: Mapping[str, Rows], compared: Sequence[Comparison] = (), marked: str = ""
) -> list[Table]:
    """A table for each kind of score, with a line for each score.

    runs: rows by the head of their column. compared: the comparison of the first run with each of the others, for
    columns of differences and p values; a score over other queries has none. marked: the name of the score that counts.
    """
    groups: dict[str, Rows] = {table: [] for table in TITLES}
    merged: dict[str, dict[str, Any]] = {}
    for row in chain.from_iterable(runs.values()):
        if merged.setdefault(row["name"], row) is row:  # the first run that has it
            groups.setdefault(row["table"], []).append(row)
    return [
        score_table(TITLES.get(group, group.capitalize()), shown, runs, compared, marked)
        for group, shown in groups.items()
        if shown
    ]


def score_table(
    title: str,
    shown: Rows,
    runs: Mapping[str, Rows],
    compared: Sequence[Comparison] = (),
    marked: str = "",
) -> Table:
    """The scores `shown`, a line each: the value in each run, differences, the chance level, the number of queries. The
    line of the score `marked` has an arrow."""
    by_run = [{row["name"]: row for row in of_run} for of_run in runs.values()]
    differences = [{row["name"]: difference for row, difference in one.scores} for one in compared]
    lines = []
    for row in shown:
        cells = []
        for number, of_run in enumerate(by_run):
            cells.append(score_text(of_run[row["name"]]) if row["name"] in of_run else "")
            if number and compared:
                change = differences[number - 1].get(row["name"])
                cells += [change_text(*change[2:5]), f"{change.p:.4f}"] if change else ["", ""]
        lines.append(
            [
                row["what"],
                metric_text(row) + MARK * (row["name"] == marked),
                *cells,
                number_text(row["chance"], row["unit"]),
                str(row["items"]),
            ]
        )
    first, *others = runs
    changes = [[name, *([f"{name} - {first}", "p"] * bool(compared))] for name in others]
    heads = [
        "",
        "",
        first,
        *(head for some in changes for head in some),
        shown[0]["baseline"] or "chance",
        "items",
    ]
    counts = "← the score that counts." * any(row["name"] == marked for row in shown)
    notes = counts, note_of(shown), comparison_note(list(others), compared)
    return Table(title, heads, lines, "\n".join(filter(None, notes)))


def main_table(of_run: Rows) -> Table | None:
    """The scores of a run that people look at first; None if it has none of them."""
    by_name = {row["name"]: row for row in of_run}
    chosen = [by_name[name] for name in PRINTED if name in by_name]
    if not chosen:
        return None
    table = score_table("Results", chosen, {"score": chosen})
    brackets = " [95 %]" if any(row["low"] is not None for row in chosen) else ""
    lines = []
    for row, (what, metric, score, chance, *_) in zip(chosen, table.lines, strict=True):
        lines.append([what, SHORT_METRICS.get(row["name"], metric), score, chance])
    return Table("Results", ["", "", f"score{brackets}", "chance"], lines, few_videos_note(chosen))


def data_table(artifacts: Iterable[tuple[Path, Record]]) -> Table | None:
    """The corpora among artifacts with their counts; None without a corpus."""
    counted, lines = ("samples", "captions", "questions", "rejected"), []
    for _, record in artifacts:
        if record["stage"] in CORPUS_STAGES:
            counts = [f"{record['counts'].get(key, 0):,}" for key in counted]
            lines.append(
                [
                    record["name"].partition(" ")[2] or record["name"],
                    record["fingerprint"][:8],
                    *counts,
                ]
            )
    return Table("Data", ["", "fingerprint", *counted], lines) if lines else None


def note_of(shown: Rows) -> str:
    """What a reader of scores has to know: what the brackets are, the protocols, and whether there are few videos."""
    brackets = "In brackets: 95 % bootstrap interval over test videos." * any(
        row["low"] is not None for row in shown
    )
    protocols: dict[str, dict[str, None]] = {}
    for row in shown:
        protocols.setdefault(row["protocol"], {})[row["what"]] = None
    protocols.pop("", None)
    lines = [f"{protocol}: {', '.join(whats)}." for protocol, whats in protocols.items()]
    if len(protocols) == 1:
        lines = [f"Protocol: {next(iter(protocols))}."]
    first = " ".join(filter(None, (brackets, few_videos_note(shown))))
    return "\n".join(filter(None, [first, *lines]))


def few_videos_note(shown: Rows) -> str:
    """A warning if there are few test videos: how far a score may be off by chance alone, as half the 95 % interval of
    a share at its widest, 1.96 sqrt(0.5 x 0.5 / n). n is not the number of queries: those of one video are right or
    wrong together (`independent_videos`). Of the directions of retrieval, that with fewer videos counts."""
    whole: dict[str, dict[str, Any]] = {}
    for row in [
        row for row in shown if row["table"] != "entities"
    ] or shown:  # a clip with a known one is no question
        if (
            "independent_videos" in row
            and row["items"] > whole.get(row["direction"], {"items": 0})["items"]
        ):
            whole[row["direction"]] = row
    fewest = min(whole.values(), key=lambda row: row["independent_videos"], default=None)
    if not fewest or (independent := fewest["independent_videos"]) >= FEW_VIDEOS:
        return ""
    videos, points = fewest["videos"], min(100.0, 98 / math.sqrt(independent))
    counted = f", which count as {independent:.0f} because some have most of the queries" * (
        independent < 0.8 * videos
    )
    plural = "s" * (videos != 1)
    return f"Only {videos} test video{plural}{counted}: by chance alone, a score may be off by {points:.0f} points."


def comparison_note(others: Sequence[str], compared: Sequence[Comparison]) -> str:
    """What a reader of differences has to know, and which scores have none."""
    if not compared:
        return ""
    note = (
        "Differences: over the same queries, with their 95 % interval, paired bootstrap over test videos. p: "
        "permutation test by video, two-sided, not corrected for the number of scores."
    )
    for name, one in zip(others, compared, strict=True):
        for score, (of_a, of_b, queries) in one.other_queries.items():
            note += f"\n{name} has other queries of {score}: {of_a} and {of_b}, {queries} of them shared."
    return note


def metric_text(row: Mapping[str, Any]) -> str:
    """The metric of a row with its direction of retrieval; ↓ if lower is better."""
    return f"{row['direction']} {row['metric']}".strip() + ("" if row["higher_is_better"] else " ↓")


def number_text(value: float | None, unit: str) -> str:
    """A score as people write it: with its unit if it is a percentage, plain if it is a rank."""
    return "-" if value is None else f"{value:.1f}{' %' if unit == '%' else ''}"


def score_text(row: Mapping[str, Any]) -> str:
    """The score of a row with its interval, if it has one, as 49.5 [42.5, 56.5]."""
    if row["low"] is None:
        return number_text(row["value"], row["unit"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def change_text(difference: float, low: float | None, high: float | None) -> str:
    """A difference with its sign, and its interval, if it has one; 0 is +0.0, also if rounding gives it a minus."""
    of, *ends = (
        f"{round(value, 1) + 0.0:+.1f}" for value in (difference, low, high) if value is not None
    )
    return f"{of} [{', '.join(ends)}]" if ends else of
