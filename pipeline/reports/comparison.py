"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from pathlib import Path

from alpro.artifact import Record, read_results
from alpro.pipeline.plan.difference import MISSING, Origin, differences, origin
from alpro.pipeline.reports.results import Table, comparison_tables
from alpro.pipeline.reports.verdict import compare_models
from alpro.pipeline.store.snapshot import Snapshot
from alpro.stages.evaluation.comparison import compare


def compare_runs(
    snapshot: Snapshot, first: tuple[Path, Record], second: tuple[Path, Record]
) -> tuple[list[Table], str]:
    """Compare two evaluations.

    Returns:
        Tables of what differs and of the scores, and a sentence on which model is better. Of a
        stage that only one of them was built from, only the name is listed.

    Raises:
        InputError: As `compare` does.
    """
    folders = [folder for folder, _ in (first, second)]
    names = [folder.name[:8] for folder in folders]
    comparison = compare(folders[0], folders[1])

    lineages = []
    for _, record in (first, second):
        lineages.append([ancestor for _, ancestor in snapshot.lineage(record)])
    stages = [{record.stage for record in lineage} for lineage in lineages]
    shared = set.intersection(*stages)

    origins: list[Origin] = []
    for lineage, present in zip(lineages, stages, strict=True):
        further = ", ".join(sorted(present - shared)) or MISSING
        comparable = [record for record in lineage if record.stage in shared]
        values = origin(*comparable)
        origins.append({("configuration", "further stages"): further, **values})
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    different = Table("What differs", ["", "", *names], lines)

    results = list(zip(names, map(read_results, folders), strict=True))
    scores = comparison_tables(results, comparison)
    return [different, *scores], compare_models(names[0], names[1], comparison)
