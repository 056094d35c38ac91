"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from pathlib import Path

from alpro.artifact import Record
from alpro.pipeline.plan.difference import differences, origin
from alpro.pipeline.reports.results import Table, comparison_table
from alpro.pipeline.reports.verdict import compare_models
from alpro.pipeline.store.snapshot import Snapshot
from alpro.stages.evaluation.comparison import compare


def compare_runs(
    snapshot: Snapshot, first: tuple[Path, Record], second: tuple[Path, Record]
) -> tuple[list[Table], str]:
    """Compare two evaluations.

    Returns:
        Tables of what differs and of the scores, and a sentence on which model is better.

    Raises:
        InputError: As `compare` does.
    """
    folders = [folder for folder, _ in (first, second)]
    names = [folder.name[:8] for folder in folders]
    comparison = compare(folders[0], folders[1])

    origins = []
    for _, record in (first, second):
        built_from = [ancestor for _, ancestor in snapshot.lineage(record)]
        origins.append(origin(*built_from))
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    different = Table("What differs", ["", "", *names], lines)

    scores = comparison_table(names[0], names[1], comparison)
    return [different, scores], compare_models(names[0], names[1], comparison)
