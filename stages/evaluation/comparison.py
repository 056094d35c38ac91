"""Two evaluations over the same queries: each score of both, the difference, its interval and its p value."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from alpro.artifact import check_artifact
from alpro.errors import InputError
from alpro.files import read_json
from alpro.stages.evaluation.statistics import PairedDifference, paired_difference

SCORES = "scores.parquet"  # the value of every score of results.json for each of its queries
SCORE_COLUMNS = ["score", "id", "text", "value"]
Values = dict[
    tuple[str, str, int], float
]  # of queries: the id of the video, the text, and its number among equal ones


class Comparison(NamedTuple):
    """`scores`: the row of results.json of each score that both evaluations have over the same queries, and its
    difference. `other_queries`: for each score whose queries differ, the numbers of queries of both and of shared ones.
    `single`: the number of scores that only one of them has."""

    scores: list[tuple[dict[str, Any], PairedDifference]]
    other_queries: dict[str, tuple[int, int, int]]
    single: int


def compare(a: Path, b: Path) -> Comparison:
    """Compares two artifacts of evaluations, score by score, by `paired_difference` (b minus a).

    Raises InputError if one of them is no evaluation, if they have no score in common, and if no common score is of the
    same queries in both: then the test sets differ.
    """
    first, second = values_of(a), values_of(b)
    rows = [
        row for row in read_json(a / "results.json") if row["name"] in first.keys() & second.keys()
    ]
    scores, other_queries = [], {}
    for row in rows:
        ours, theirs = first[row["name"]], second[row["name"]]
        if ours.keys() == theirs.keys():
            videos = np.array([video for video, _, _ in ours], object)
            values = (
                np.array([ours[query] for query in ours]),
                np.array([theirs[query] for query in ours]),
            )
            scores.append((row, paired_difference(*values, videos, row["statistic"])))
        else:
            other_queries[row["name"]] = len(ours), len(theirs), len(ours.keys() & theirs.keys())
    names = f"{a.parent.name} {a.name[:8]} and {b.parent.name} {b.name[:8]}"
    if not rows:
        raise InputError(
            f"{names} have no score in common; compare two artifacts of the same stage"
        )
    if not scores:
        name, (of_a, of_b, shared) = next(iter(other_queries.items()))
        raise InputError(
            f"{names}: the test sets differ: {name} has {of_a} and {of_b} queries, {shared} of them shared"
        )
    return Comparison(scores, other_queries, len(first.keys() ^ second.keys()))


def compare_scores(
    a: Path, first: str, b: Path, second: str
) -> tuple[dict[str, Any], PairedDifference] | None:
    """Compares one score of an evaluation with a score of another name, as `compare` does: the row of the second, and
    the difference. None if one of them is not there, or if they have other queries."""
    ours, theirs = values_of(a).get(first), values_of(b).get(second)
    if ours is None or theirs is None or ours.keys() != theirs.keys():
        return None
    row = next(row for row in read_json(b / "results.json") if row["name"] == second)
    videos = np.array([video for video, _, _ in ours], object)
    before = np.array(list(ours.values()))
    after = np.array([theirs[query] for query in ours])
    return row, paired_difference(before, after, videos, row["statistic"])


def values_of(folder: Path) -> dict[str, Values]:
    """The values of the queries of each score. Raises InputError if the folder has none."""
    if not (folder / SCORES).is_file():
        raise InputError(
            f"{folder}: no {SCORES}: only results of evaluate and zero_shot can be compared; rerun them if they are of "
            "an earlier version"
        )
    check_artifact(folder, (SCORES, "results.json"))
    columns = pq.read_table(folder / SCORES).select(SCORE_COLUMNS).to_pydict()
    scores: dict[str, Values] = {}
    repeats = Counter[tuple[str, str, str]]()
    for name, video, text, value in zip(*columns.values(), strict=True):
        scores.setdefault(name, {})[video, text, repeats[name, video, text]] = value
        repeats[name, video, text] += 1
    return scores
