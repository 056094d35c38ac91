"""Evaluations side by side: what differs, scores with paired differences, and a verdict."""

from collections.abc import Sequence

from alpro.artifact import read_results
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

    built = []
    for _, evaluation in (first, second):
        built.append([record for _, record in lineage(artifacts, evaluation)])
    shared = set.intersection(*({one.stage for one in records} for records in built))

    # A stage that only one was built from is listed by its name.
    origins: list[Origin] = []
    for records in built:
        further = sorted({one.stage for one in records} - shared)
        values = origin(*(one for one in records if one.stage in shared))
        listed = ", ".join(further) or MISSING
        origins.append({("configuration", "further stages"): listed, **values})
    lines = [[one.kind, one.name, *one.values] for one in differences(*origins)]
    different = Table("What differs", ["", "", *names], lines)

    scores = comparison_tables(results, comparison)
    return [different, *scores], compare_models(names[0], names[1], comparison)
