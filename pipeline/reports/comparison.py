"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from pathlib import Path

from alpro.artifact import Record, read_results
from alpro.pipeline.plan.difference import MISSING, Origin, differences, origin
from alpro.pipeline.reports.results import Table, tables
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
    first_folder, _ = first
    second_folder, _ = second
    names = [first_folder.name[:8], second_folder.name[:8]]
    results = dict(
        zip(names, map(read_results, (first_folder, second_folder)), strict=True)
    )
    comparison = compare(first_folder, second_folder)
    shown = [difference_table(snapshot, first, second), *tables(results, comparison)]
    sentence = compare_models(names[0], names[1], comparison)
    return [table for table in shown if table.lines], sentence


def difference_table(snapshot: Snapshot, *artifacts: tuple[Path, Record]) -> Table:
    """Return what differs between artifacts and all that they were built from. Of a stage that only
    some of them have, only the name is listed."""
    lineages = []
    for _, record in artifacts:
        lineages.append([ancestor for _, ancestor in snapshot.lineage(record)])
    stages = [{record.stage for record in records} for records in lineages]
    shared = set.intersection(*stages)

    origins: list[Origin] = []
    for records, present in zip(lineages, stages, strict=True):
        further = ", ".join(sorted(present - shared)) or MISSING
        comparable = [record for record in records if record.stage in shared]
        values = origin(*comparable)
        origins.append({("configuration", "further stages"): further, **values})

    names = [folder.name[:8] for folder, _ in artifacts]
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    return Table("What differs", ["", "", *names], lines, texts=True)
