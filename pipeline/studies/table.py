"""The scores of a study: means over seeds and paired differences, with Student's intervals, as rows and as a table."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from alpro.pipeline.reports.results import ResultTable, shown, signed

Scores = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # rows of results.json by variant and seed
LEVEL = 0.95
NOTE = (
    "Means over the seeds, with Student's 95 % interval of the mean. Differences are paired by seed: the variant minus "
    "{base} with the same seed. The intervals cover what a seed changes, and not the choice of test items."
)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of the mean; None for fewer than two values.

    >>> round(interval([1.0, 2.0, 3.0]), 2)  # 4.303 x 1 / sqrt(3)
    2.48
    """
    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + LEVEL) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))


def score_rows(scores: Scores, bases: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """A row for each score and variant, scores in the order of the results.

    bases: the base of each variant, if it has one; default: the first variant is the base of the others.

    `values`, `items` and `seeds` are lists in the same order; `difference` is the mean of value - base over the seeds
    that both have. `interval` and `difference_interval` are half widths, None for fewer than two seeds.
    """
    found = {
        variant: {seed: {row["name"]: row for row in rows if row["value"] is not None} for seed, rows in runs.items()}
        for variant, runs in scores.items()
    }
    names = dict.fromkeys(name for runs in found.values() for rows in runs.values() for name in rows)
    first, *others = found
    bases = dict.fromkeys(others, first) if bases is None else bases
    table = []
    for name in names:
        for variant, runs in found.items():
            rows = {seed: run[name] for seed, run in runs.items() if name in run}
            base = bases.get(variant)
            of_base = {seed: run[name]["value"] for seed, run in found[base].items() if name in run} if base else None
            if rows:
                table.append({"score": name, "variant": variant, "base": base, **summary(rows, of_base)})
    return table


def summary(rows: Mapping[int, Mapping[str, Any]], base: Mapping[int, float] | None) -> dict[str, Any]:
    """One score of one variant over its seeds, and its difference to the base's values by seed, if any."""
    first = next(iter(rows.values()))
    values = [row["value"] for row in rows.values()]
    pairs = [row["value"] - base[seed] for seed, row in rows.items() if seed in base] if base else []
    chances = [row["chance"] for row in rows.values() if row["chance"] is not None]
    return {
        **{key: first[key] for key in ("what", "direction", "metric", "unit", "higher_is_better")},
        "seeds": list(rows),
        "values": values,
        "items": [row["items"] for row in rows.values()],
        "mean": mean(values),
        "interval": interval(values),
        "difference": mean(pairs) if pairs else None,
        "difference_interval": interval(pairs),
        "chance": mean(chances) if chances else None,
    }


def study_table(title: str, rows: list[dict[str, Any]], base: str) -> ResultTable:
    """The rows as a table to print; without the columns of variants and differences if there is only the base."""
    several = any(row["variant"] != base for row in rows)
    bases = {row["base"] for row in rows} - {None}
    lines = []
    for row in rows:
        unit = row["unit"]
        cells = [shown(row["mean"], unit), plus_minus(row["interval"])]
        if several:
            difference = "" if row["difference"] is None else signed(row["difference"])
            cells += [difference, plus_minus(row["difference_interval"])]
        cells += [" ".join(f"{value:.1f}" for value in row["values"]), shown(row["chance"], unit)]
        lines.append([label(row), row["variant"] if several else "", *cells])
    differences = ["difference", "±"] if several else []
    heads = ["score", "variant" if several else "", "mean", "±", *differences, "each seed", "chance"]
    return ResultTable(title, heads, lines, NOTE.format(base=f'"{base}"' if bases <= {base} else "its base"))


def label(row: Mapping[str, Any]) -> str:
    """What a score is of, such as "zero-shot retrieval, t2v R@1"."""
    metric = f"{row['direction']} {row['metric']}".strip()
    return f"{row['what']}, {metric}{'' if row['higher_is_better'] else ' ↓'}"


def plus_minus(half_width: float | None) -> str:
    """Half the width of an interval, for a cell."""
    return "" if half_width is None else f"± {half_width:.1f}"
