"""The results of a run as tables: for the terminal, the document of a run, and the card of a model.

results.json of an evaluation has the rows (`alpro.stages.evaluation.results`). Their numbers are
formatted here only.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from alpro.artifact import Artifact
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.comparison import read_results
from alpro.stages.evaluation.score_names import PRINTED, full_name
from alpro.stages.evaluation.statistics import PairedDifference

Rows = list[dict[str, Any]]  # rows of results.json
VALUE = ("score [95 %]",)  # head of the column of a score
TITLES = {
    "retrieval": "Retrieval",
    "qa": "Question answering",
    "entities": "Entities",
    "decoded": "Decoded items",
    "left_out": "Overlap with training: left out",
    "also_in_training": "Overlap with training",
}


class Table(NamedTuple):
    """A table to show. Its cells are texts."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def rows(artifacts: Iterable[Artifact]) -> Rows:
    """Return the rows of results.json of every evaluation among artifacts, each score once."""
    by_name: dict[str, dict[str, Any]] = {}
    for folder, record in artifacts:
        if record.stage in EVALUATIONS:
            by_name |= {full_name(row): row for row in read_results(folder)}
    return list(by_name.values())


def list_warnings(artifacts: Iterable[Artifact]) -> list[str]:
    """List the warnings of stages, each once: several stages read the same texts."""
    stages: dict[str, list[str]] = {}
    for _, record in artifacts:
        for text in record.warnings:
            stages.setdefault(text, []).append(record.name)
    return [f"{', '.join(names)}: {text}" for text, names in stages.items()]


def main_rows(results: Rows) -> Rows:
    """Return the rows that users look at first."""
    return [row for row in results if row["name"] in PRINTED]


def main_table(results: Rows) -> Table | None:
    """Return the scores of a run that users look at first; None if it has none of them."""
    main = main_rows(results)
    return score_table("Results", main) if main else None


def tables(results: Rows, heads: Sequence[str] = VALUE) -> list[Table]:
    """Return a table for each kind of score, as `score_table` does."""
    shown = []
    for kind, title in TITLES.items():
        scores = [row for row in results if row["table"] == kind]
        if scores:
            shown.append(score_table(title, scores, heads))
    return shown


def score_table(title: str, scores: Rows, heads: Sequence[str] = VALUE) -> Table:
    """Return a table with a line for each score, beside its chance level, number of items and
    protocol.

    Args:
        title: Title of the table.
        scores: The scores. The cells below `heads` are the row's `cells`, if it has some, or its
            score.
        heads: Heads of the columns of values.
    """
    lines = []
    for row in scores:
        line = [
            row_label(row),
            metric_text(row),
            *row.get("cells", [score_text(row)]),
            number_text(row["chance"], row["unit"]),
            str(row["items"]),
            row["protocol"],
        ]
        lines.append(line)

    baseline = scores[0]["baseline"] or "chance"
    all_heads = ["", "", *heads, baseline, "items", "protocol"]
    return Table(title, all_heads, lines)


def row_label(row: Mapping[str, Any]) -> str:
    """Return the model and the method of a score.

    >>> row_label({"model": "fine-tuned", "what": "by similarity"}), row_label({"what": "pretrain"})
    ('fine-tuned, by similarity', 'pretrain')
    """
    model = row.get("model", "")
    return f"{model}, {row['what']}" if model else row["what"]


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


def difference_text(change: PairedDifference) -> str:
    """Return a difference with its interval, if it has one."""
    text = f"{change.difference:+.1f}"
    if change.low is None or change.high is None:
        return text
    return f"{text} [{change.low:+.1f}, {change.high:+.1f}]"
