"""The results of runs as tables, with the runs as columns: for the terminal, the document of a run,
and the card of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`). Their numbers are
formatted here only.
"""

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from alpro.artifact import Record, read_record, read_results
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED, SHORT_METRICS, full_name
from alpro.stages.evaluation.statistics import PairedDifference

Rows = list[dict[str, Any]]  # rows of results.json
Columns = dict[str, dict[str, str]]  # by their heads: texts by the names of scores
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

    def markdown(self) -> str:
        """Return the table and its note as Markdown."""
        columns = range(len(self.heads))
        rule = ["---:" if column in self.numeric else "---" for column in columns]
        lines = []
        for cells in [self.heads, rule, *self.lines]:
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


def read_artifacts(folders: Iterable[Path]) -> list[tuple[Path, Record]]:
    """Return the artifacts in folders with their records."""
    records = [(folder, read_record(folder)) for folder in folders]
    return [(folder, record) for folder, record in records if record]


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


def tables(
    runs: Mapping[str, Rows], comparison: Comparison | None = None
) -> list[Table]:
    """Return a table for each kind of score, with a line for each score.

    Args:
        runs: Rows by the head of their column. If there are several, each has one model.
        comparison: The comparison of two runs, for the columns of differences and p values. A score
            over other queries has none.
    """
    # Several runs share the lines of a table: the heads of their columns name the models.
    name_row = itemgetter("name") if len(runs) > 1 else full_name
    label_row = itemgetter("what") if len(runs) > 1 else row_label
    groups: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in TITLES}
    for row in chain.from_iterable(runs.values()):
        group_scores = groups.setdefault(row["table"], {})
        group_scores.setdefault(name_row(row), row)

    columns: Columns = {}
    for run, run_rows in runs.items():
        columns[run] = {name_row(row): score_text(row) for row in run_rows}
    if comparison:
        scores = comparison.scores
        head = " - ".join(reversed([*runs]))
        columns[head] = {row["name"]: difference_text(change) for row, change in scores}
        columns["p"] = {row["name"]: f"{change.p:.4f}" for row, change in scores}

    score_tables = []
    for group, rows_by_name in groups.items():
        if not rows_by_name:
            continue
        group_rows = list(rows_by_name.values())
        labels = {
            name: [label_row(row), metric_text(row)]
            for name, row in rows_by_name.items()
        }
        baseline = group_rows[0]["baseline"] or "chance"
        chances = {name: chance_text(row) for name, row in rows_by_name.items()}
        items = {name: str(row["items"]) for name, row in rows_by_name.items()}
        all_columns = {**columns, baseline: chances, "items": items}
        notes = [describe_scores(group_rows), describe_differences(comparison)]
        title = TITLES.get(group, group.capitalize())
        score_tables.append(join_columns(title, labels, all_columns, notes))
    return score_tables


def join_columns(
    title: str, labels: Mapping[str, list[str]], columns: Columns, notes: Iterable[str]
) -> Table:
    """Return a table with a line for each label, and a cell in it for each column."""
    lines = []
    for name, label in labels.items():
        lines.append([*label, *(texts.get(name, "") for texts in columns.values())])
    note = "\n".join(filter(None, notes))
    return Table(title, ["", "", *columns], lines, note)


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
    scores = {full_name(row): row for row in main_rows(results)}
    if not scores:
        return None

    labels = {}
    for name, row in scores.items():
        metric = SHORT_METRICS.get(row["name"]) or metric_text(row)
        labels[name] = [row_label(row), metric]
    has_intervals = any(row["low"] is not None for row in scores.values())
    columns = {
        "score [95 %]" if has_intervals else "score": {
            name: score_text(row) for name, row in scores.items()
        },
        "chance": {name: chance_text(row) for name, row in scores.items()},
    }
    return join_columns(
        "Results", labels, columns, [warn_of_few_videos(list(scores.values()))]
    )


def count_text(record: Record) -> str:
    """Return what the stage of an artifact counted, without zeros."""
    counts = record.counts.items()
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in counts if value
    )


def describe_scores(scores: Rows) -> str:
    """Return what the brackets are, whether there are few videos, and the protocols."""
    notes = []
    if any(row["low"] is not None for row in scores):
        notes.append("In brackets: 95 % bootstrap interval over test videos.")
    notes.append(warn_of_few_videos(scores))
    protocols = [
        f"{row_label(row)}: {row['protocol']}." for row in scores if row["protocol"]
    ]
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


def describe_differences(comparison: Comparison | None) -> str:
    """Return how differences and p values are computed, and which scores have none."""
    if not comparison:
        return ""
    lines = [
        "Differences: over the same queries, with their 95 % interval, paired bootstrap over test "
        "videos. p: permutation test by video, two-sided, not corrected for the number of scores."
    ]
    for score, (first, second, shared) in comparison.other_queries.items():
        lines.append(
            f"Other queries of {score}: {first} and {second}, {shared} of them shared."
        )
    return "\n".join(lines)


def metric_text(row: Mapping[str, Any]) -> str:
    """Return the metric of a row with its direction of retrieval, and ↓ if lower is better."""
    name = f"{row['direction']} {row['metric']}".strip()
    return name if row["higher_is_better"] else f"{name} ↓"


def number_text(value: float | None, unit: str) -> str:
    """Return a score with its unit if it is a percentage, without one if it is a rank."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.1f}"


def chance_text(row: Mapping[str, Any]) -> str:
    """Return the chance level of a row."""
    return number_text(row["chance"], row["unit"])


def score_text(row: Mapping[str, Any]) -> str:
    """Return the score of a row with its interval, if it has one, as 49.5 [42.5, 56.5]."""
    if row["low"] is None:
        return number_text(row["value"], row["unit"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def signed(value: float) -> str:
    """Return a number with its sign and one digit; a rounded 0 is +0.0, never -0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"
