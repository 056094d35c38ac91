"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from collections.abc import Sequence
from pathlib import Path

from alpro.artifact import Artifact
from alpro.pipeline.plan.difference import MISSING, differences, origin
from alpro.pipeline.reports.results import (
    Table,
    difference_text,
    score_text,
    tables,
)
from alpro.pipeline.reports.verdict import compare_models
from alpro.pipeline.store.lineage import lineage
from alpro.stages.evaluation.comparison import compare, read_results

COMPARED = (
    "Differences: over the same queries, with their 95 % interval, paired bootstrap over test videos. "
    "p: permutation test by video, two-sided, not corrected for the number of scores."
)


def compare_runs(
    artifacts: Sequence[Artifact], first: Artifact, second: Artifact
) -> tuple[list[Table], str]:
    """Compare two evaluations, and what they depend on.

    Args:
        artifacts: all artifacts of their store.

    Returns:
        Tables of what differs and of the scores, and text: notes, and a sentence on which model is
        better.

    Raises:
        InputError: As `compare` does.
    """
    folders = [folder for folder, _ in (first, second)]
    names = [folder.name[:8] for folder in folders]
    scores, text = compare_scores(names, folders)

    origins = []
    stages = []
    for _, evaluation in (first, second):
        sources = lineage(artifacts, [evaluation.fingerprint])
        origins.append(origin(*(record for _, record in sources)))
        stages.append({record.stage for _, record in sources})
    shared = set.intersection(*stages)
    lines = [
        [one.kind, one.name, *one.values]
        for one in differences(*origins)
        # A stage that only one was built from is listed with its version, and not with each key.
        if one.kind != "configuration"
        or MISSING not in one.values
        or one.name.partition(".")[0] in shared
    ]
    different = Table("What differs", ["", "", *names], lines)
    return [different, *scores], text


def compare_scores(
    names: Sequence[str], folders: Sequence[Path]
) -> tuple[list[Table], str]:
    """Compare the scores of two evaluations.

    A score that only one of them has, that is a median, or that is over other queries has no
    difference.

    Args:
        names: Names of both.
        folders: Folders of both, with results.json and scores.parquet.

    Returns:
        A table for each kind of score, with the evaluations as columns; and text: notes, and a
        sentence on which model is better.

    Raises:
        InputError: As `compare` does.
    """
    comparison = compare(folders[0], folders[1])
    changes = {name: change for name, (_, change) in comparison.scores.items()}
    models = [{row["name"]: row for row in read_results(folder)} for folder in folders]

    scores = []
    for name, row in (models[1] | models[0]).items():
        values = [score_text(one[name]) if name in one else "" for one in models]
        change = changes.get(name)
        tested = [difference_text(change), f"{change.p:.4f}"] if change else ["", ""]
        protocols = dict.fromkeys(
            one[name]["protocol"] for one in models if name in one
        )
        # The heads of the columns name the models.
        shown = {"model": "", "protocol": " / ".join(protocols)}
        scores.append(row | shown | {"cells": [*values, *tested]})

    heads = [*names, " - ".join(reversed(names)), "p"]
    notes = [COMPARED]
    for score, (of_first, of_second) in comparison.other_queries.items():
        notes.append(f"Other queries of {score}: {of_first} and {of_second}.")
    notes += ["", compare_models(names[0], names[1], comparison)]
    return tables(scores, heads), "\n".join(notes).rstrip()
