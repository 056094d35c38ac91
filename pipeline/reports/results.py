"""The results of runs as tables, with the runs as columns: for the terminal, the page, and the card
of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`); every number that
people read of them is made into text here.
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
from alpro.stages.evaluation.statistics import PairedDifference

Rows = list[dict[str, Any]]  # of results.json
FEW_VIDEOS = 100
MARK = " ←"  # beside the score that counts
TITLES = {
    "retrieval": "Retrieval",
    "qa": "Question answering",
    "entities": "Entities",
    "decoded": "Decoded items",
    "left_out": "Left out: with the caption or the frames of a training item",
    "also_in_training": "With the caption or the frames of a training item",
}
CORPUS_COUNTS = ("samples", "captions", "questions", "rejected")


@dataclass(frozen=True)
class Table:
    """A table to show: the heads of its columns, lines, a note below. The first two columns are
    texts, the others numbers, unless all are `texts`."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ""
    texts: bool = False


def rows(artifacts: Iterable[tuple[Path, Record]]) -> Rows:
    """The rows of results.json of every evaluation among artifacts, each score once."""
    by_name: dict[str, dict[str, Any]] = {}
    for folder, record in artifacts:
        if record.stage in EVALUATIONS:
            by_name |= {row["name"]: row for row in read_results(folder)}
    return list(by_name.values())


def label_of(row: Mapping[str, Any]) -> str:
    """What a score is of, as people read it: results.json has the term of papers.

    >>> label_of({"what": "zero-shot by similarity"})
    'pre-trained only, by similarity'
    """
    return row["what"].replace("zero-shot ", "pre-trained only, ")


def tables(
    runs: Mapping[str, Rows], compared: Sequence[Comparison] = (), marked: str = ""
) -> list[Table]:
    """A table for each kind of score, with a line for each score.

    Args:
        runs: rows by the head of their column.
        compared: the comparison of the first run with each of the others, for columns of
            differences and p values; a score over other queries has none.
        marked: the name of the score that counts.
    """
    groups: dict[str, Rows] = {group: [] for group in TITLES}
    seen: set[str] = set()
    for row in chain.from_iterable(runs.values()):
        if row["name"] not in seen:  # the first run that has it
            seen.add(row["name"])
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
    """The scores `shown`, a line each: the value in each run, differences, the chance level, the
    number of queries. The line of the score `marked` has an arrow."""
    first, *others = runs
    by_run = [{row["name"]: row for row in of_run} for of_run in runs.values()]
    differences = [{row["name"]: difference for row, difference in one.scores} for one in compared]

    lines = []
    for row in shown:
        name = row["name"]
        mark = MARK if name == marked else ""
        line = [label_of(row), metric_text(row) + mark]
        for run_index, of_run in enumerate(by_run):
            line.append(score_text(of_run[name]) if name in of_run else "")
            if run_index and compared:
                # The first run is what the others are compared with.
                line += difference_cells(differences[run_index - 1].get(name))
        line += [number_text(row["chance"], row["unit"]), str(row["items"])]
        lines.append(line)

    heads = ["", "", first]
    for other in others:
        heads.append(other)
        if compared:
            heads += [f"{other} - {first}", "p"]
    heads += [shown[0]["baseline"] or "chance", "items"]

    notes = [note_of(shown), comparison_note(others, compared)]
    if any(row["name"] == marked for row in shown):
        notes.insert(0, "← the score that counts.")
    return Table(title, heads, lines, "\n".join(filter(None, notes)))


def difference_cells(change: PairedDifference | None) -> list[str]:
    """A difference with its interval, and its p value; empty for other queries."""
    if change is None:
        return ["", ""]
    return [change_text(change.difference, change.low, change.high), f"{change.p:.4f}"]


def main_table(of_run: Rows) -> Table | None:
    """The scores of a run that people look at first; None if it has none of them."""
    by_name = {row["name"]: row for row in of_run}
    # In the order of PRINTED, whatever the order in the file.
    chosen = [by_name[name] for name in PRINTED if name in by_name]
    if not chosen:
        return None

    lines = []
    for row in chosen:
        metric = SHORT_METRICS.get(row["name"]) or metric_text(row)
        chance = number_text(row["chance"], row["unit"])
        lines.append([label_of(row), metric, score_text(row), chance])

    brackets = " [95 %]" if any(row["low"] is not None for row in chosen) else ""
    heads = ["", "", f"score{brackets}", "chance"]
    return Table("Results", heads, lines, few_videos_note(chosen))


def data_table(artifacts: Iterable[tuple[Path, Record]]) -> Table | None:
    """The corpora among artifacts with their counts; None without a corpus."""
    lines = []
    for _, record in artifacts:
        if record.stage in CORPUS_STAGES:
            corpus = record.name.partition(" ")[2] or record.name
            counts = [f"{record.counts.get(key, 0):,}" for key in CORPUS_COUNTS]
            lines.append([corpus, record.fingerprint[:8], *counts])
    return Table("Data", ["", "fingerprint", *CORPUS_COUNTS], lines) if lines else None


def note_of(shown: Rows) -> str:
    """What a reader of scores has to know: what the brackets are, the protocols, and whether there
    are few videos."""
    first = []
    if any(row["low"] is not None for row in shown):
        first.append("In brackets: 95 % bootstrap interval over test videos.")
    few_videos = few_videos_note(shown)
    if few_videos:
        first.append(few_videos)

    protocols: dict[str, dict[str, None]] = {}  # the scores of each, in order
    for row in shown:
        if row["protocol"]:
            protocols.setdefault(row["protocol"], {})[label_of(row)] = None
    if len(protocols) == 1:
        lines = [f"Protocol: {next(iter(protocols))}."]
    else:
        lines = [f"{protocol}: {', '.join(scores)}." for protocol, scores in protocols.items()]
    return "\n".join(filter(None, [" ".join(first), *lines]))


def few_videos_note(shown: Rows) -> str:
    """A warning if there are few test videos: how far a score may be off by chance alone.

    That is half the 95 % interval of a share at its widest, 1.96 sqrt(0.5 x 0.5 / n). n is not the
    number of queries: those of one video are right or wrong together (`independent_videos`). Of the
    directions of retrieval, that with fewer videos counts.
    """
    # A clip with a known entity is no question: entities only count if there is nothing else.
    others = [row for row in shown if row["table"] != "entities"]
    most_items: dict[str, dict[str, Any]] = {}  # by direction: the row over all of its queries
    for row in others or shown:
        if "independent_videos" in row and row["items"]:
            largest = most_items.setdefault(row["direction"], row)
            if row["items"] > largest["items"]:
                most_items[row["direction"]] = row

    if not most_items:
        return ""

    fewest = min(most_items.values(), key=lambda row: row["independent_videos"])
    independent = fewest["independent_videos"]
    if independent >= FEW_VIDEOS:
        return ""

    videos = fewest["videos"]
    shown_videos = f"{videos} test video{'' if videos == 1 else 's'}"
    if independent < 0.8 * videos:
        shown_videos += f", which count as {independent:.0f} because some have most of the queries"
    # In percent: 98 = 100 x 1.96 x 0.5.
    points = min(100.0, 98 / math.sqrt(independent))
    return f"Only {shown_videos}: by chance alone, a score may be off by {points:.0f} points."


def comparison_note(others: Sequence[str], compared: Sequence[Comparison]) -> str:
    """What a reader of differences has to know, and which scores have none."""
    if not compared:
        return ""
    note = (
        "Differences: over the same queries, with their 95 % interval, paired bootstrap over test "
        "videos. p: "
        "permutation test by video, two-sided, not corrected for the number of scores."
    )
    for name, comparison in zip(others, compared, strict=True):
        for score, (first, second, shared) in comparison.other_queries.items():
            note += f"\n{name} has other queries of {score}: {first} and {second}, {shared} of them shared."
    return note


def metric_text(row: Mapping[str, Any]) -> str:
    """The metric of a row with its direction of retrieval; ↓ if lower is better."""
    arrow = "" if row["higher_is_better"] else " ↓"
    return f"{row['direction']} {row['metric']}".strip() + arrow


def number_text(value: float | None, unit: str) -> str:
    """A score as people write it: with its unit if it is a percentage, plain if it is a rank."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.1f}"


def score_text(row: Mapping[str, Any]) -> str:
    """The score of a row with its interval, if it has one, as 49.5 [42.5, 56.5]."""
    if row["low"] is None:
        return number_text(row["value"], row["unit"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def change_text(difference: float, low: float | None, high: float | None) -> str:
    """A difference with its sign, and its interval, if it has one."""
    if low is None or high is None:
        return signed(difference)
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A number with its sign and one digit; 0 is +0.0, also if rounding gives it a minus."""
    return f"{round(value, 1) + 0.0:+.1f}"
