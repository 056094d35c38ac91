"""Compare two evaluations over the same queries: each score of both, the difference, its interval and
its p value."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.artifact import check_artifact
from alpro.errors import InputError
from alpro.files import read_json
from alpro.stages.evaluation.statistics import PairedDifference, paired_difference

# The value of every score of results.json for each of its queries.
SCORES = "scores.parquet"
QUERY = ["id", "text"]  # the id of the video of a query, and its text
VALUES = pa.schema(
    [(name, pa.string()) for name in ("score", *QUERY)] + [("value", pa.float64())]
)


class Comparison(NamedTuple):
    """A comparison of two evaluations, a and b.

    Attributes:
        scores: By its name, the row of results.json of each score that both have over the same
            queries, and its difference.
        other_queries: For each score whose queries differ, how many queries a and b have.
    """

    scores: dict[str, tuple[dict[str, Any], PairedDifference]]
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
    values_a = read_values(a)
    values_b = read_values(b)
    common = values_a.keys() & values_b.keys()
    if chosen:
        common &= {*chosen}

    names = f"{a.parent.name} {a.name[:8]} and {b.parent.name} {b.name[:8]}"
    rows = [row for row in read_results(a) if row["name"] in common]
    if not rows:
        raise InputError(
            f"{names} have no score in common; compare two models of one task"
        )

    compared = {}
    other_queries = {}
    for row in rows:
        name = row["name"]
        of_a = values_a[name]
        of_b = values_b[name]
        # A paired test needs the value of each query in both.
        if of_a.select(QUERY) != of_b.select(QUERY):
            other_queries[name] = (len(of_a), len(of_b))
        elif row["statistic"] == "mean":  # a median has no sums by video
            difference = paired_difference(
                of_a["value"].to_numpy(),
                of_b["value"].to_numpy(),
                videos=of_a["id"].to_numpy(),
            )
            compared[name] = (row, difference)

    if other_queries and not compared:
        name, (queries_a, queries_b) = next(iter(other_queries.items()))
        raise InputError(
            f"{names}: the test sets differ in the queries of {name} ({queries_a} and {queries_b}); "
            "compare evaluations of one split of a corpus"
        )
    return Comparison(compared, other_queries)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of an evaluation's results.json, with their split. Raise InputError if the file
    is damaged."""
    record = check_artifact(folder)
    split = {"split": record.config["split"]} if record and record.config else {}
    return [row | split for row in read_json(folder / "results.json")]


def read_values(folder: Path) -> dict[str, pa.Table]:
    """Return the value of each query, sorted by query, by the name of the score. Raise InputError if
    the folder has none."""
    if not (folder / SCORES).is_file():
        raise InputError(
            f"{folder}: no {SCORES}: only results of evaluate can be compared; rerun it "
            "if they are of an earlier version"
        )
    check_artifact(folder)

    table = pq.read_table(folder / SCORES).select(VALUES.names).cast(VALUES)
    # Two evaluations may have the queries in another order. The sort is stable: a video may have
    # the same question several times, which are matched in their order.
    table = table.sort_by([(name, "ascending") for name in QUERY])
    names = table["score"].unique().to_pylist()
    return {name: table.filter(pc.equal(table["score"], name)) for name in names}
