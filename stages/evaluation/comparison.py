"""Compare two evaluations over the same queries: each score of both, the difference, its interval and
its p value."""

from collections import defaultdict
from collections.abc import Collection
from operator import itemgetter
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
# The id of the video of a query, its text, and the value of the score.
Values = list[tuple[str, str, float]]


class Comparison(NamedTuple):
    """A comparison of two evaluations, a and b.

    Attributes:
        scores: The row of results.json of each score that both have over the same queries, and its
            difference.
        other_queries: For each score whose queries differ, how many queries a and b have.
    """

    scores: list[tuple[dict[str, Any], PairedDifference]]
    other_queries: dict[str, tuple[int, int]]


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

    names = f"{a.parent.name} {a.name[:8]} and {b.parent.name} {b.name[:8]}"
    rows = [row for row in read_json(a / "results.json") if row["name"] in common]
    if not rows:
        raise InputError(
            f"{names} have no score in common; compare two models of one task"
        )

    compared = []
    other_queries = {}
    for row in rows:
        # A paired test needs the value of each query in both.
        *queries_a, values_a = zip(*scores_a[row["name"]], strict=True)
        *queries_b, values_b = zip(*scores_b[row["name"]], strict=True)
        if queries_a != queries_b:
            other_queries[row["name"]] = (len(values_a), len(values_b))
        elif row["statistic"] == "mean":  # a median has no sums by video
            videos = np.array(queries_a[0], object)
            difference = paired_difference(
                np.array(values_a), np.array(values_b), videos
            )
            compared.append((row, difference))

    if other_queries and not compared:
        name, (of_a, of_b) = next(iter(other_queries.items()))
        raise InputError(
            f"{names}: the test sets differ in the queries of {name} ({of_a} and {of_b})"
        )
    return Comparison(compared, other_queries)


def read_values(folder: Path) -> dict[str, Values]:
    """Return the values of the queries of each score. Raise InputError if the folder has none."""
    if not (folder / SCORES).is_file():
        raise InputError(
            f"{folder}: no {SCORES}: only results of evaluate can be compared; rerun it "
            "if they are of an earlier version"
        )
    check_artifact(folder)

    # The order matters: the loop takes the columns by position.
    columns = pq.read_table(folder / SCORES).select(SCORE_COLUMNS).to_pydict()
    scores: dict[str, Values] = defaultdict(list)
    for name, *query_and_value in zip(*columns.values(), strict=True):
        scores[name].append(tuple(query_and_value))
    # Two evaluations may have the queries in another order. Stable: a video may have the same
    # question several times, which are matched in their order.
    for values in scores.values():
        values.sort(key=itemgetter(0, 1))
    return scores
