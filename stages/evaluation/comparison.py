"""Compare two evaluations over the same queries: each score of both, the difference, its interval and
its p value."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from alpro.artifact import check_artifact
from alpro.errors import InputError
from alpro.files import read_json
from alpro.stages.evaluation.statistics import PairedDifference, paired_difference

# The value of every score of results.json for each of its queries.
SCORES = "scores.parquet"
SCORE_COLUMNS = ["score", "id", "text", "value"]
# A query: the id of its video, its text, and how many equal ones are before it.
Query = tuple[str, str, int]
Values = dict[Query, float]


class Comparison(NamedTuple):
    """A comparison of two evaluations, a and b.

    Attributes:
        scores: The row of results.json of each score that both have over the same queries, and its
            difference.
        other_queries: For each score whose queries differ, how many queries a has, b has, and both
            have.
    """

    scores: list[tuple[dict[str, Any], PairedDifference]]
    other_queries: dict[str, tuple[int, int, int]]


def compare(a: Path, b: Path, chosen: Collection[str] = ()) -> Comparison:
    """Compare two artifacts of evaluations, score by score, by `paired_difference` (b minus a).

    Args:
        a: First artifact.
        b: Second artifact.
        chosen: Only these scores; empty: all.

    Raises:
        InputError: If one of them is no evaluation, they have no score in common, or no common score
            is of the same queries in both: then the test sets differ.
    """
    scores_a = read_values(a)
    scores_b = read_values(b)
    common = scores_a.keys() & scores_b.keys()
    if chosen:
        common &= {*chosen}

    name_a = f"{a.parent.name} {a.name[:8]}"
    name_b = f"{b.parent.name} {b.name[:8]}"
    names = f"{name_a} and {name_b}"
    rows = [row for row in read_json(a / "results.json") if row["name"] in common]
    if not rows:
        raise InputError(
            f"{names} have no score in common; compare two models of one task"
        )

    compared = []
    other_queries = {}
    for row in rows:
        values_a = scores_a[row["name"]]
        values_b = scores_b[row["name"]]
        # A paired test needs the value of each query in both.
        if values_a.keys() == values_b.keys():
            if row["statistic"] == "mean":  # a median has no sums by video
                compared.append((row, difference(values_a, values_b)))
        else:
            shared = values_a.keys() & values_b.keys()
            other_queries[row["name"]] = (len(values_a), len(values_b), len(shared))

    if other_queries and not compared:
        name, (of_a, of_b, shared_count) = next(iter(other_queries.items()))
        raise InputError(
            f"{names}: the test sets differ: {name} has {of_a} and {of_b} queries, {shared_count} "
            f"of them shared"
        )
    return Comparison(compared, other_queries)


def difference(a: Values, b: Values) -> PairedDifference:
    """Return the `paired_difference` of two scores of the same queries."""
    # The two evaluations may have the queries in another order.
    videos = np.array([video for video, _, _ in a], object)
    values_a = np.array(list(a.values()))
    values_b = np.array([b[query] for query in a])
    return paired_difference(values_a, values_b, videos)


def read_values(folder: Path) -> dict[str, Values]:
    """Return the values of the queries of each score. Raise InputError if the folder has none."""
    if not (folder / SCORES).is_file():
        raise InputError(
            f"{folder}: no {SCORES}: only results of evaluate can be compared; rerun it "
            "if they are of an earlier version"
        )
    check_artifact(folder, (SCORES, "results.json"))

    # The order matters: the loop takes the columns by position.
    columns = pq.read_table(folder / SCORES).select(SCORE_COLUMNS).to_pydict()
    scores: dict[str, Values] = {}
    repeats = Counter[tuple[str, str, str]]()
    for name, video, text, value in zip(*columns.values(), strict=True):
        # A video may have the same caption or question several times.
        repeat = repeats[name, video, text]
        repeats[name, video, text] += 1
        scores.setdefault(name, {})[video, text, repeat] = value
    return scores
