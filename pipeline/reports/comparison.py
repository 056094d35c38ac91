"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from collections.abc import Sequence

from alpro.artifact import Record, read_results
from alpro.names import Artifact
from alpro.pipeline.plan.difference import MISSING, Origin, differences, origin
from alpro.pipeline.reports.results import Table, comparison_tables
from alpro.pipeline.reports.verdict import compare_models
from alpro.pipeline.store.lineage import lineage
from alpro.stages.evaluation.comparison import compare


def compare_runs(
    artifacts: Sequence[Artifact], first: Artifact, second: Artifact
) -> tuple[list[Table], str]:
    """Compare two evaluations.

    Args:
        artifacts: all artifacts of their store.

    Returns:
        Tables of what differs and of the scores, and a sentence on which model is better.

    Raises:
        InputError: As `compare` does.
    """
    comparison = compare(first[0], second[0])
    results = [(folder.name[:8], read_results(folder)) for folder, _ in (first, second)]
    names = [name for name, _ in results]

    origins = find_origins(artifacts, [first[1], second[1]])
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    different = Table("What differs", ["", "", *names], lines)

    scores = comparison_tables(results, comparison)
    return [different, *scores], compare_models(names[0], names[1], comparison)


def find_origins(
    artifacts: Sequence[Artifact], records: Sequence[Record]
) -> list[Origin]:
    """Return what each artifact depends on. Of a stage that only one was built from, only the name
    is listed."""
    lineages = []
    for one in records:
        lineages.append([record for _, record in lineage(artifacts, one)])
    stages = [{record.stage for record in sources} for sources in lineages]
    shared = set.intersection(*stages)

    origins: list[Origin] = []
    for sources, present in zip(lineages, stages, strict=True):
        further = ", ".join(sorted(present - shared)) or MISSING
        values = origin(*(record for record in sources if record.stage in shared))
        origins.append({("configuration", "further stages"): further, **values})
    return origins
