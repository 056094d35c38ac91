"""The score of a run that counts, and which of two models is better, each in a sentence."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alpro.artifact import Record, read_results
from alpro.errors import InputError
from alpro.pipeline.reports.results import (
    Rows,
    main_rows,
    metric_text,
    number_text,
    row_label,
    score_text,
)
from alpro.stages.evaluation.comparison import Comparison, compare
from alpro.stages.evaluation.score_names import DECISIVE, FINE_TUNED, PRETRAINED
from alpro.stages.evaluation.statistics import PairedDifference

SIGNIFICANT = 0.05
# Models that a run compares: the first pair of steps that it has.
COMPARED_STEPS = (
    ("evaluate baseline", "evaluate retrieval"),
    ("evaluate baseline", "evaluate prompter"),
    ("evaluate pretrained", "evaluate retrieval"),
)
# Standard errors: the normal quantiles of 1 - 0.05 / 2 and of a power of 0.8, 1.96 + 0.84.
DETECTABLE_ERRORS = 2.8
INTERVAL_ERRORS = 3.92  # width of a 95 % interval


def headline(results: Rows) -> str:
    """Return the score that counts with its interval, clips and chance; empty without a score.

    >>> row = {"model": "fine-tuned", "name": "qa/acc", "what": "question answering"}
    >>> row |= {"table": "qa", "direction": "", "unit": "%", "value": 60.0, "videos": 90}
    >>> row |= {"metric": "all questions", "higher_is_better": True}
    >>> headline([row | {"low": 50.0, "high": 70.0, "chance": 25.0, "baseline": "best constant"}])
    'fine-tuned, question answering, all questions 60.0 [50.0, 70.0] on 90 test clips, best constant 25.0 %'
    """
    # The last model is what the run trained.
    rows_by_name = {row["name"]: row for row in main_rows(results)}
    row = rows_by_name.get(decisive(rows_by_name))
    if row is None:
        return ""
    baseline = row["baseline"] or "chance"
    chance = f"{baseline} {number_text(row['chance'], row['unit'])}"
    score = f"{row_label(row)}, {metric_text(row)} {score_text(row)}"
    return f"{score} on {count_clips(row)}, {chance}"


def decisive(names: Iterable[str]) -> str:
    """Return the name of the score that counts among names of scores; empty without one."""
    present = list(names)
    return next((name for name in (*DECISIVE, *present) if name in present), "")


def compare_models(first: str, second: str, comparison: Comparison) -> str:
    """Return the sentence on two models by the names that the user gave; empty if nothing was
    compared."""
    scores = {row["name"]: (row, difference) for row, difference in comparison.scores}
    name = decisive(scores)
    return verdict(first, second, *scores[name]) if name else ""


def compare_with_start(artifacts: Iterable[tuple[Path, Record]]) -> str:
    """Return the sentence on whether the model that a run trained is better in retrieval than the
    one it should beat: the baseline, or else the pre-trained model. Empty for a run without both,
    or if they have different queries."""
    folders = {record.name: folder for folder, record in artifacts}
    for first, second in COMPARED_STEPS:
        if first in folders and second in folders:
            break
    else:
        return ""
    try:
        comparison = compare(folders[first], folders[second], (DECISIVE[0],))
    except InputError:
        return ""
    names = []
    for step in (first, second):
        *_, last = read_results(folders[step])
        names.append(describe_model(last["model"]))
    sentence = compare_models(names[0], names[1], comparison)
    return sentence[0].upper() + sentence[1:]


def describe_model(name: str) -> str:
    """Return the name of a model in a sentence.

    >>> describe_model("fine-tuned"), describe_model("clip-vit-base-patch16")
    ('the fine-tuned model', 'clip-vit-base-patch16')
    """
    return f"the {name} model" if name in (PRETRAINED, FINE_TUNED) else name


def verdict(
    first: str, second: str, row: Mapping[str, Any], difference: PairedDifference
) -> str:
    """Return whether the second model is better than the first.

    Without a significant difference the first is kept: it needs no training.

    Args:
        row: Row of results.json, the score that counts.
        difference: Second minus first, over the same queries.
    """
    scores = f"{row['metric']} {difference.a:.1f} and {difference.b:.1f}, {format_p(difference.p)}"
    scope = f"on {count_clips(row)} ({scores})"
    if difference.p >= SIGNIFICANT or not difference.difference:
        return (
            f"No significant difference between {first} and {second} {scope}: keep {first}."
            f"{describe_power(row, difference)}"
        )

    # Lower ranks are better.
    is_gain = (difference.difference > 0) == row["higher_is_better"]
    outcome = "better" if is_gain else "worse"
    best = second if is_gain else first
    sentence = f"{second} is {outcome} than {first} {scope}: keep {best}."
    if difference.low is not None and difference.high is not None:
        unit = " points" if row["unit"] == "%" else ""
        sentence += (
            f" The difference is {difference.difference:+.1f}{unit}, between "
            f"{difference.low:+.1f} and {difference.high:+.1f}."
        )
    return sentence


def describe_power(row: Mapping[str, Any], difference: PairedDifference) -> str:
    """Return the smallest difference that the test clips show with power 0.8; empty for ranks.

    It is 2.8 standard errors of the difference. At least the clips that it changes differ between
    the models, so that n clips show no less than 2.8^2 / n (Connor, Sample size for testing
    differences in proportions for the paired-sample design, 1987).
    """
    if row["unit"] != "%":
        return ""
    videos = row.get("independent_videos", row["items"])
    points = 100 * DETECTABLE_ERRORS**2 / videos
    if difference.low is not None and difference.high is not None:
        error = (difference.high - difference.low) / INTERVAL_ERRORS
        points = max(points, DETECTABLE_ERRORS * error)
    if points >= 100:
        return f" {count_clips(row).capitalize()} cannot show any difference."
    return f" This test set shows differences of {points:.1f} points or more with power 0.8."


def count_clips(row: Mapping[str, Any]) -> str:
    """Return the number of test clips of a score."""
    return f"{row.get('videos') or row['items']} test clips"


def format_p(p: float) -> str:
    """Return a p value with two digits, and never as zero.

    >>> format_p(1.0), format_p(0.0213), format_p(0.0005)
    ('p = 1.0', 'p = 0.021', 'p < 0.001')
    """
    if p < 0.001:
        return "p < 0.001"
    # The format `.2g` would print 1.0 as 1.
    return f"p = {p:.1f}" if p > 0.995 else f"p = {p:.2g}"
