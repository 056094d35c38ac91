"""The results of runs as tables, with the runs as columns: for the terminal, the document of a run,
and the card of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`); every number of them
that users read is made into text here.
"""

import html
import math
import re
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
CONTROL = "control: "  # begins the label of a control
TITLES = {
    "retrieval": "Retrieval",
    "qa": "Question answering",
    "entities": "Entities",
    "decoded": "Decoded items",
    "left_out": "Overlap with training: left out",
    "also_in_training": "Overlap with training",
}
CORPUS_COUNTS = ("samples", "captions", "questions", "rejected")


@dataclass(frozen=True)
class Table:
    """A table to show. The first two columns are texts, the others numbers, unless `texts`."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ""
    texts: bool = False

    @property
    def numeric(self) -> range:
        """Indices of the columns with numbers."""
        return range(0) if self.texts else range(2, len(self.heads))

    def grouped_lines(self) -> list[list[str]]:
        """Return the lines without a first cell that is the same as in the line above."""
        above = [None, *(line[0] for line in self.lines)]
        return [
            ["" if first == previous else first, *cells]
            for previous, (first, *cells) in zip(above, self.lines, strict=False)
        ]

    def markdown(self) -> str:
        """Return the table and its note as Markdown."""
        rule = ["---:" if column in self.numeric else "---" for column in range(len(self.heads))]
        lines = [self.heads, rule, *self.grouped_lines()]
        text = "\n".join(f"| {' | '.join(map(escape, cells))} |" for cells in lines)
        notes = [escape(line) for line in self.note.splitlines()]
        return "\n\n".join([text, *notes])


def escape(text: str) -> str:
    r"""Return a text that Markdown, also in a cell of a table, shows as it is.

    >>> escape("a|b *c* <d> finetune_qa")
    'a\\|b \\*c\\* &lt;d&gt; finetune_qa'
    """
    # An underscore inside a word is no emphasis, and brackets alone are no link.
    special = r"[\\`*|~]|\b_|_\b|(?<=\])[(\[:]"
    escaped = re.sub(special, r"\\\g<0>", text.replace("\n", " "))
    return html.escape(escaped, quote=False)


def rows(artifacts: Iterable[tuple[Path, Record]]) -> Rows:
    """Return the rows of results.json of every evaluation among artifacts, each score once."""
    by_name: dict[str, dict[str, Any]] = {}
    for folder, record in artifacts:
        if record.stage in EVALUATIONS:
            by_name |= {row["name"]: row for row in read_results(folder)}
    return list(by_name.values())


def row_label(row: Mapping[str, Any]) -> str:
    """Return the model and the method of a score.

    >>> row_label({"what": "zero-shot by similarity"}), row_label({"what": "fine-tuned by matching"})
    ('pre-trained, by similarity', 'fine-tuned, by matching')
    """
    return re.sub("^(zero-shot|fine-tuned) by", r"\1, by", row["what"]).replace(
        "zero-shot", "pre-trained"
    )


def tables(
    runs: Mapping[str, Rows], compared: Sequence[Comparison] = (), marked: str = ""
) -> list[Table]:
    """Return a table for each kind of score, with a line for each score.

    Args:
        runs: Rows by the head of their column.
        compared: The comparison of the first run with each of the others, for columns of
            differences and p values. A score over other queries has none.
        marked: Name of the score that counts.
    """
    groups: dict[str, Rows] = {group: [] for group in TITLES}
    names = set[str]()
    for row in chain.from_iterable(runs.values()):
        if row["name"] not in names:  # the first run that has it
            names.add(row["name"])
            groups.setdefault(row["table"], []).append(row)

    return [
        score_table(TITLES.get(group, group.capitalize()), scores, runs, compared, marked)
        for group, scores in groups.items()
        if scores
    ]


def score_table(
    title: str,
    scores: Rows,
    runs: Mapping[str, Rows],
    compared: Sequence[Comparison] = (),
    marked: str = "",
) -> Table:
    """Return a table of scores: values, differences, chance level, number of queries.

    The line of the score `marked` has an arrow.
    """
    first, *others = runs
    rows_by_run = [{row["name"]: row for row in of_run} for of_run in runs.values()]
    differences = [{row["name"]: difference for row, difference in one.scores} for one in compared]

    lines = []
    for row in scores:
        name = row["name"]
        line = [row_label(row), metric_text(row) + (MARK if name == marked else "")]
        for run_index, by_name in enumerate(rows_by_run):
            line.append(score_text(by_name[name]) if name in by_name else "")
            # The first run is what the others are compared with.
            if run_index and compared:
                line += difference_cells(differences[run_index - 1].get(name))
        lines.append([*line, number_text(row["chance"], row["unit"]), str(row["items"])])

    heads = ["", "", first]
    for other in others:
        heads += [other, f"{other} - {first}", "p"] if compared else [other]
    heads += [scores[0]["baseline"] or "chance", "items"]

    notes = [describe_scores(scores), describe_differences(others, compared)]
    if any(row["name"] == marked for row in scores):
        notes.insert(0, "← the score that counts.")
    return Table(title, heads, lines, "\n".join(filter(None, notes)))


def difference_cells(change: PairedDifference | None) -> list[str]:
    """Return a difference with its interval, and its p value; empty cells without one."""
    if change is None:
        return ["", ""]
    return [change_text(change.difference, change.low, change.high), f"{change.p:.4f}"]


def main_rows(results: Rows) -> Rows:
    """Return the rows that users look at first, in the order of PRINTED."""
    by_name = {row["name"]: row for row in results}
    return [by_name[name] for name in PRINTED if name in by_name]


def main_table(results: Rows) -> Table | None:
    """Return the scores of a run that users look at first; None if it has none of them."""
    chosen = main_rows(results)
    if not chosen:
        return None

    lines = []
    for row in chosen:
        metric = SHORT_METRICS.get(row["name"]) or metric_text(row)
        chance = number_text(row["chance"], row["unit"])
        lines.append([row_label(row), metric, score_text(row), chance])

    brackets = " [95 %]" if any(row["low"] is not None for row in chosen) else ""
    heads = ["", "", f"score{brackets}", "chance"]
    return Table("Results", heads, lines, few_videos_note(chosen))


def data_table(artifacts: Iterable[tuple[Path, Record]]) -> Table | None:
    """Return the corpora among artifacts with their counts; None without a corpus."""
    lines = []
    for _, record in artifacts:
        if record.stage in CORPUS_STAGES:
            corpus = record.name.partition(" ")[2] or record.name
            counts = [f"{record.counts.get(key, 0):,}" for key in CORPUS_COUNTS]
            lines.append([corpus, record.fingerprint[:8], *counts])
    return Table("Data", ["", "fingerprint", *CORPUS_COUNTS], lines) if lines else None


def describe_scores(scores: Rows) -> str:
    """Return what the brackets are, whether there are few videos, and the protocols."""
    sentences = []
    if any(row["low"] is not None for row in scores):
        sentences.append("In brackets: 95 % bootstrap interval over test videos.")
    few_videos = few_videos_note(scores)
    if few_videos:
        sentences.append(few_videos)

    labels_by_protocol: dict[str, dict[str, None]] = {}
    for row in scores:
        if row["protocol"]:
            labels_by_protocol.setdefault(row["protocol"], {})[row_label(row)] = None
    if len(labels_by_protocol) == 1:
        lines = [f"Protocol: {next(iter(labels_by_protocol))}."]
    else:
        lines = [
            f"{protocol}: {', '.join(labels)}." for protocol, labels in labels_by_protocol.items()
        ]
    return "\n".join(filter(None, [" ".join(sentences), *lines]))


def few_videos_note(scores: Rows) -> str:
    """Return a warning if there are few test videos: how far a score may be off by chance alone.

    That is half the 95 % interval of a proportion at its widest, 1.96 sqrt(0.5 x 0.5 / n). n is not
    the number of queries: those of one video are right or wrong together (`independent_videos`). If
    the directions of retrieval differ, the one with fewer videos counts.
    """
    counted = [row for row in scores if row.get("independent_videos") and row["items"]]
    # A clip with a known entity is no question: entities only count if there is nothing else.
    counted = [row for row in counted if row["table"] != "entities"] or counted
    if not counted:
        return ""
    # The row over all queries of a direction, and not over a part of them, is the last.
    largest_by_direction = {
        row["direction"]: row for row in sorted(counted, key=lambda row: row["items"])
    }
    fewest = min(largest_by_direction.values(), key=lambda row: row["independent_videos"])
    independent = fewest["independent_videos"]
    if independent >= FEW_VIDEOS:
        return ""

    videos = fewest["videos"]
    shown = f"{videos} test video{'' if videos == 1 else 's'}"
    if independent < 0.8 * videos:
        shown += f", which count as {independent:.0f} because some have most of the queries"
    # In percent: 98 = 100 x 1.96 x 0.5.
    points = min(100.0, 98 / math.sqrt(independent))
    return f"Only {shown}: by chance alone, a score may be off by {points:.0f} points."


def describe_differences(others: Sequence[str], compared: Sequence[Comparison]) -> str:
    """Return how differences and p values are computed, and which scores have none."""
    if not compared:
        return ""
    note = (
        "Differences: over the same queries, with their 95 % interval, paired bootstrap over test "
        "videos. p: permutation test by video, two-sided, not corrected for the number of scores."
    )
    for name, comparison in zip(others, compared, strict=True):
        for score, (first, second, shared) in comparison.other_queries.items():
            note += (
                f"\n{name} has other queries of {score}: {first} and {second}, {shared} of them "
                "shared."
            )
    return note


def metric_text(row: Mapping[str, Any]) -> str:
    """Return the metric of a row with its direction of retrieval, and ↓ if lower is better."""
    arrow = "" if row["higher_is_better"] else " ↓"
    return f"{row['direction']} {row['metric']}".strip() + arrow


def number_text(value: float | None, unit: str) -> str:
    """Return a score with its unit if it is a percentage, without one if it is a rank."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.1f}"


def score_text(row: Mapping[str, Any]) -> str:
    """Return the score of a row with its interval, if it has one, as 49.5 [42.5, 56.5]."""
    if row["low"] is None:
        return number_text(row["value"], row["unit"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def change_text(difference: float, low: float | None, high: float | None) -> str:
    """Return a difference with its sign, and its interval, if it has one."""
    if low is None or high is None:
        return signed(difference)
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """Return a number with its sign and one digit; a rounded 0 is +0.0, never -0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"
