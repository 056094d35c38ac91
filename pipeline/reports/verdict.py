"""Which of two models is better, in one sentence."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.stages.evaluation.comparison import Comparison, compare_scores
from alpro.stages.evaluation.score_names import AFTER_TUNING, BEFORE_TUNING, DECISIVE
from alpro.stages.evaluation.statistics import PairedDifference

SIGNIFICANT = 0.05
FEWEST = 6  # queries that are better, with none worse, for p < 0.05: 2 / 2 ** 6 = 0.03


def decisive(names: Iterable[str]) -> str:
    """The name of the score that counts among the names of scores; empty if there is none."""
    present = list(names)
    return next((name for name in (*DECISIVE, *present) if name in present), "")


def verdict_of(first: str, second: str, compared: Comparison) -> str:
    """The sentence on two models by the names that a person gave them; empty if nothing was
    compared."""
    scores = {row["name"]: (row, difference) for row, difference in compared.scores}
    name = decisive(scores)
    return verdict(first, second, *scores[name]) if name else ""


def verdict(first: str, second: str, row: Mapping[str, Any], difference: PairedDifference) -> str:
    """Whether the second model is better than the first, which is kept if there is no difference:
    it needs no training.

    row: of results.json, the score that counts. difference: second minus first, over the same
    queries.
    """
    clips = row.get("videos") or row["items"]
    unit = "points" if row["unit"] == "%" else row["unit"]
    where = f"on {clips} test clip{'s' * (clips != 1)}"
    scores = f"{row['metric']} {difference.a:.1f} and {difference.b:.1f}, {p_text(difference.p)}"

    if difference.p < SIGNIFICANT and difference.difference:
        # Of a rank, less is better.
        gain = (difference.difference > 0) == row["higher_is_better"]
        interval = ""
        if difference.low is not None and difference.high is not None:
            interval = (
                f" The difference is {f'{difference.difference:+.1f} {unit}'.strip()}, "
                f"between {difference.low:+.1f} and {difference.high:+.1f}."
            )

        return (
            f"{second} is {'better' if gain else 'worse'} than {first} {where} ({scores}): "
            f"keep {second if gain else first}.{interval}"
        )

    return (
        f"No difference between {first} and {second} {where} ({scores}): "
        f"keep {first}.{smallest(row, clips)}"
    )


def smallest(row: Mapping[str, Any], clips: int) -> str:
    """What so many test clips can show: the smallest difference whose p value is below 0.05."""
    if row["unit"] != "%":
        return ""

    counted = f" {clips} clip{'s' * (clips != 1)} cannot show"
    if clips < FEWEST:
        return f"{counted} any difference."
    # At least FEWEST of the queries have to change, all in one direction.
    return f"{counted} less than {100 * FEWEST / row['items']:.2g} points."


def fine_tuned_verdict(artifacts: Sequence[tuple[Path, Record]]) -> str:
    """The sentence on a run that scores a model before and after its fine-tuning over the same test
    queries; empty for another run, and if the test queries differ."""
    folders = {record.stage: folder for folder, record in artifacts}
    if not {"zero_shot", "evaluate", "finetune_retrieval"} <= folders.keys():
        return ""

    before = folders["zero_shot"]
    after = folders["evaluate"]
    try:
        found = compare_scores(before, BEFORE_TUNING, after, AFTER_TUNING)
    except InputError:  # an earlier version wrote no values of queries
        return ""
    return verdict("the model before fine-tuning", "finetune_retrieval", *found) if found else ""


def p_text(p: float) -> str:
    """A p value with two digits, and never as zero.

    >>> p_text(1.0), p_text(0.0213), p_text(0.0005)
    ('p = 1.0', 'p = 0.021', 'p < 0.001')
    """
    if p < 0.001:
        return "p < 0.001"
    # `.2g` would write 1.0 as 1.
    return f"p = {p:.1f}" if p > 0.995 else f"p = {p:.2g}"
