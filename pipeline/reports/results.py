"""The results of runs as tables, with the runs as columns: for the terminal, the document of a run,
and the card of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`). Their numbers are
formatted here only.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from alpro.artifact import Record, read_results
from alpro.stages import CORPUS_STAGES, EVALUATIONS
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED, SHORT_METRICS, full_name
from alpro.stages.evaluation.statistics import PairedDifference

Rows = list[dict[str, Any]]  # rows of results.json
FEW_VIDEOS = 100
CONTROL = "control: "  # prefix of a control's label
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
        grouped = []
        above = ""
        for line in self.lines:
            name, *cells = line
            grouped.append(["", *cells] if name == above else line)
            above = name
        return grouped

    def markdown(self) -> str:
        """Return the table and its note as Markdown."""
        columns = range(len(self.heads))
        rule = ["---:" if column in self.numeric else "---" for column in columns]
        lines = []
        for cells in [self.heads, rule, *self.grouped_lines()]:
            text = " | ".join(map(escape, cells))
            lines.append(f"| {text} |")
        notes = [escape(line) for line in self.note.splitlines()]
        return "\n\n".join(["\n".join(lines), *notes])


def escape(text: str) -> str:
    r"""Return a text that Markdown, also in a cell of a table, shows as it is.

    >>> escape("a|b *c* <d> finetune_qa")
    'a\\|b \\*c\\* &lt;d&gt; finetune_qa'
    """
    # Markdown ignores an underscore inside a word, and brackets without an address.
    special = r"[\\`*|~]|\b_|_\b|(?<=\])[(\[:]"
    line = text.replace("\n", " ")
    escaped = re.sub(special, r"\\\g<0>", line)
    return html.escape(escaped, quote=False)


def rows(artifacts: Iterable[tuple[Path, Record]]) -> Rows:
    """Return the rows of results.json of every evaluation among artifacts, each score once."""
    by_name: dict[str, dict[str, Any]] = {}
    for folder, record in artifacts:
        if record.stage not in EVALUATIONS:
            continue
        for row in read_results(folder):
            by_name[full_name(row)] = row
    return list(by_name.values())


def row_label(row: Mapping[str, Any]) -> str:
    """Return the model and the method of a score.

    >>> row_label({"model": "fine-tuned", "what": "by similarity"}), row_label({"what": "pretrain"})
    ('fine-tuned, by similarity', 'pretrain')
    """
    model = row.get("model", "")
    return f"{model}, {row['what']}" if model else row["what"]


def tables(runs: Mapping[str, Rows], comparisons: Sequence[Comparison] = ()) -> list[Table]:
    """Return a table for each kind of score, with a line for each score.

    Args:
        runs: Rows by the head of their column. If there are several, each has one model.
        comparisons: The comparison of the first run with each of the others, for columns of
            differences and p values. A score over other queries has none.
    """
    # Several runs share the lines of a table: the heads of their columns name the models.
    name_row = itemgetter("name") if len(runs) > 1 else full_name
    label_row = itemgetter("what") if len(runs) > 1 else row_label
    groups: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in TITLES}
    for row in chain.from_iterable(runs.values()):
        group_scores = groups.setdefault(row["table"], {})
        group_scores.setdefault(name_row(row), row)

    columns = list_columns(runs, comparisons, name_row)
    differences = describe_differences(list(runs)[1:], comparisons)
    score_tables = []
    for group, scores in groups.items():
        if not scores:
            continue
        lines = []
        for name, row in scores.items():
            label = [label_row(row), metric_text(row)]
            texts = [column.get(name, "") for _, column in columns]
            chance = number_text(row["chance"], row["unit"])
            lines.append([*label, *texts, chance, str(row["items"])])

        group_rows = list(scores.values())
        chance_head = group_rows[0]["baseline"] or "chance"
        heads = ["", "", *(head for head, _ in columns), chance_head, "items"]
        notes = [describe_scores(group_rows), differences]
        note = "\n".join(filter(None, notes))
        title = TITLES.get(group, group.capitalize())
        score_tables.append(Table(title, heads, lines, note))
    return score_tables


def list_columns(
    runs: Mapping[str, Rows],
    comparisons: Sequence[Comparison],
    name_row: Callable[[Mapping[str, Any]], str],
) -> list[tuple[str, dict[str, str]]]:
    """Return the columns of runs as their heads and their texts by the names of scores. After each
    run but the first come its difference to the first and the p value, if they are compared."""
    baseline, *contenders = runs
    comparison_by_run = dict(zip(contenders, comparisons, strict=False))
    columns = []
    for run, rows in runs.items():
        texts = {name_row(row): score_text(row) for row in rows}
        columns.append((run, texts))
        if run not in comparison_by_run:
            continue
        differences = {}
        p_values = {}
        for row, difference in comparison_by_run[run].scores:
            differences[row["name"]] = difference_text(difference)
            p_values[row["name"]] = f"{difference.p:.4f}"
        columns.append((f"{run} - {baseline}", differences))
        columns.append(("p", p_values))
    return columns


def difference_text(change: PairedDifference) -> str:
    """Return a difference with its interval, if it has one."""
    if change.low is None or change.high is None:
        return signed(change.difference)
    low = signed(change.low)
    high = signed(change.high)
    return f"{signed(change.difference)} [{low}, {high}]"


def main_rows(results: Rows) -> Rows:
    """Return the rows that users look at first, by table and then by model."""
    models = [row["model"] for row in results]
    order = [*TITLES, *models, *PRINTED]
    keys = ("table", "model", "name")

    def positions(row: Mapping[str, Any]) -> list[int]:
        return [order.index(row[key]) for key in keys]

    main = [row for row in results if row["name"] in PRINTED]
    return sorted(main, key=positions)


def main_table(results: Rows) -> Table | None:
    """Return the scores of a run that users look at first; None if it has none of them."""
    scores = main_rows(results)
    if not scores:
        return None

    lines = []
    for row in scores:
        metric = SHORT_METRICS.get(row["name"]) or metric_text(row)
        chance = number_text(row["chance"], row["unit"])
        lines.append([row_label(row), metric, score_text(row), chance])

    has_intervals = any(row["low"] is not None for row in scores)
    score_head = "score [95 %]" if has_intervals else "score"
    warning = warn_of_few_videos(scores)
    return Table("Results", ["", "", score_head, "chance"], lines, warning)


def list_corpora(artifacts: Iterable[tuple[Path, Record]]) -> Table | None:
    """Return the corpora among artifacts with their counts; None without a corpus."""
    lines = []
    for _, record in artifacts:
        if record.stage in CORPUS_STAGES:
            corpus = record.name.partition(" ")[2] or record.name
            counts = [f"{record.counts.get(key, 0):,}" for key in CORPUS_COUNTS]
            lines.append([corpus, record.fingerprint[:8], *counts])
    heads = ["", "fingerprint", *CORPUS_COUNTS]
    return Table("Data", heads, lines) if lines else None


def describe_scores(scores: Rows) -> str:
    """Return what the brackets are, whether there are few videos, and the protocols."""
    notes = []
    if any(row["low"] is not None for row in scores):
        notes.append("In brackets: 95 % bootstrap interval over test videos.")
    notes.append(warn_of_few_videos(scores))
    protocols = [f"{row_label(row)}: {row['protocol']}." for row in scores if row["protocol"]]
    return "\n".join(filter(None, [*notes, *dict.fromkeys(protocols)]))


def warn_of_few_videos(scores: Rows) -> str:
    """Return a warning if there are few test videos: how far a score may be off by chance alone.

    It is half the 95 % interval of a proportion at its widest, 1.96 sqrt(0.5 x 0.5 / n). Queries of
    one video are right or wrong together, so that n is not their number (`independent_videos`).
    """
    # Scores by type use only part of the videos.
    counts = [row.get("independent_videos") or 0 for row in scores]
    independent = max(counts)
    if not 0 < independent < FEW_VIDEOS:
        return ""
    # A percentage: 98 = 100 x 1.96 x 0.5.
    points = 98 / math.sqrt(independent)
    return (
        f"Only {independent:.0f} independent test videos: by chance alone, a score may be off by "
        f"{points:.0f} points."
    )


def describe_differences(names: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """Return how differences and p values are computed, and which scores have none."""
    if not comparisons:
        return ""
    note = (
        "Differences: over the same queries, with their 95 % interval, paired bootstrap over test "
        "videos. p: permutation test by video, two-sided, not corrected for the number of scores."
    )
    for name, comparison in zip(names, comparisons, strict=True):
        for score, (first, second, shared) in comparison.other_queries.items():
            note += (
                f"\n{name} has other queries of {score}: {first} and {second}, {shared} of them "
                "shared."
            )
    return note


def metric_text(row: Mapping[str, Any]) -> str:
    """Return the metric of a row with its direction of retrieval, and ↓ if lower is better."""
    name = f"{row['direction']} {row['metric']}".strip()
    return name if row["higher_is_better"] else f"{name} ↓"


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


def signed(value: float) -> str:
    """Return a number with its sign and one digit; a rounded 0 is +0.0, never -0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"
