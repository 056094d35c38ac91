"""The score of a run that counts, and which of two models is better, each in a sentence."""

from collections.abc import Iterable, Mapping
from typing import Any

from alpro.artifact import Artifact
from alpro.errors import InputError
from alpro.pipeline.reports.results import (
    Rows,
    difference_text,
    metric_text,
    number_text,
    row_label,
    score_text,
)
from alpro.stages.evaluation.comparison import Comparison, compare, read_results
from alpro.stages.evaluation.score_names import DECISIVE
from alpro.stages.evaluation.statistics import PairedDifference

SIGNIFICANT = 0.05
# Models that a run compares: the first pair of steps that it has.
COMPARED_STEPS = (
    ("evaluate baseline", "evaluate retrieval"),
    ("evaluate baseline", "evaluate prompter"),
    ("evaluate pretrained", "evaluate retrieval"),
)


def headline(results: Rows) -> str:
    """Return the score that counts with its interval, clips and chance; empty without a score.

    >>> row = {"model": "fine-tuned", "name": "qa/acc", "what": "question answering"}
    >>> row |= {"table": "qa", "direction": "", "unit": "%", "value": 60.0, "videos": 90}
    >>> row |= {"metric": "all questions", "higher_is_better": True}
    >>> headline([row | {"low": 50.0, "high": 70.0, "chance": 25.0, "baseline": "best constant"}])
    'fine-tuned, question answering, all questions 60.0 [50.0, 70.0] on 90 test clips, best constant 25.0 %'
    """
    # The last model is what the run trained.
    rows_by_name = {row["name"]: row for row in results}
    for name in DECISIVE:
        if name in rows_by_name:
            row = rows_by_name[name]
            chance = number_text(row["chance"], row["unit"])
            score = f"{row_label(row)}, {metric_text(row)} {score_text(row)}"
            baseline = row["baseline"] or "chance"
            return f"{score} on {count_clips(row)}, {baseline} {chance}"
    return ""


def compare_models(first: str, second: str, comparison: Comparison) -> str:
    """Return the sentence on two models by the names that the user gave; empty if nothing was
    compared."""
    for name in DECISIVE:
        if name in comparison.scores:
            return verdict(first, second, *comparison.scores[name])
    return ""


def compare_with_start(artifacts: Iterable[Artifact]) -> str:
    """Return the sentence on whether the model that a run trained is better in retrieval than the
    one it should beat: the baseline, or else the pre-trained model. Empty for a run without both,
    or if they have different queries."""
    folders = {record.name: folder for folder, record in artifacts}
    pairs = [steps for steps in COMPARED_STEPS if folders.keys() >= {*steps}]
    if not pairs:
        return ""
    first, second = pairs[0]
    try:
        comparison = compare(folders[first], folders[second], (DECISIVE[0],))
    except InputError:
        return ""
    models = [read_results(folders[step])[-1]["model"] for step in (first, second)]
    return compare_models(models[0], models[1], comparison)


def verdict(
    first: str, second: str, row: Mapping[str, Any], difference: PairedDifference
) -> str:
    """Return whether the second model is better than the first.

    Without a significant difference the first is kept: it needs no training.

    Args:
        row: Row of results.json, the score that counts.
        difference: Second minus first, over the same queries.
    """
    scores = (
        f"{row['metric']} {difference.a:.1f} and {difference.b:.1f}, difference "
        f"{difference_text(difference)}, p = {difference.p:.4g}"
    )
    sentence = f"No significant difference between {first} and {second}"
    best = first
    if difference.p < SIGNIFICANT and difference.difference:
        # More is better in all scores that count.
        is_better = difference.difference > 0
        sentence = f"{second} is {'better' if is_better else 'worse'} than {first}"
        best = second if is_better else first
    return f"{sentence} on {count_clips(row)} ({scores}): keep {best}."


def count_clips(row: Mapping[str, Any]) -> str:
    """Return the number of clips of a score, and their split: `alpro eval` may have all videos."""
    count = row.get("videos") or row["items"]
    return " ".join(filter(None, [str(count), row.get("split"), "clips"]))
