"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from collections.abc import Sequence

from alpro.artifact import read_results
from alpro.names import Artifact
from alpro.pipeline.plan.difference import differences, origin
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

    origins = []
    for _, evaluation in (first, second):
        records = [record for _, record in lineage(artifacts, evaluation)]
        origins.append(origin(*records))
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    different = Table("What differs", ["", "", *names], lines)

    scores = comparison_tables(results, comparison)
    return [different, *scores], compare_models(names[0], names[1], comparison)
