"""Evaluations side by side: what differs, scores with paired differences, and verdicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alpro.artifact import Record, read_results
from alpro.pipeline.plan.difference import MISSING, Origin, differences, origin
from alpro.pipeline.reports.results import Table, tables
from alpro.pipeline.reports.verdict import compare_models
from alpro.pipeline.store.snapshot import Snapshot
from alpro.stages.evaluation.comparison import compare


class ComparedRuns(NamedTuple):
    """Runs side by side: tables, and a sentence on each run but the first."""

    tables: list[Table]
    verdicts: list[str]


def compare_runs(snapshot: Snapshot, artifacts: Sequence[tuple[Path, Record]]) -> ComparedRuns:
    """Compare the first of several evaluations with each of the others.

    Raises:
        InputError: As `compare` does.
    """
    folders = {folder.name[:8]: folder for folder, _ in artifacts}
    results = {name: read_results(folder) for name, folder in folders.items()}
    first, *others = folders
    comparisons = []
    verdicts = []
    for name in others:
        comparison = compare(folders[first], folders[name])
        comparisons.append(comparison)
        verdicts.append(compare_models(first, name, comparison))

    all_tables = [difference_table(snapshot, artifacts)]
    all_tables += tables(results, comparisons)
    return ComparedRuns(
        tables=[table for table in all_tables if table.lines],
        verdicts=[sentence for sentence in verdicts if sentence],
    )


def difference_table(snapshot: Snapshot, artifacts: Sequence[tuple[Path, Record]]) -> Table:
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
