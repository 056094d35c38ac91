"""A run compared with the finished run before it: which values changed, and which scores."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.pipeline.reporting.differences import Record, differences, differences_table
from alpro.pipeline.reporting.result_tables import Listed, Table, comparison_table
from alpro.pipeline.reporting.run_summary import RunSummary, run_before
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.comparison import Comparison, compare

HEADS = ("before", "this run")
LEVEL = 0.05  # of p, for a score to be listed as changed


@dataclass(frozen=True)
class Before:
    """The run before: what differs, for each evaluation the scores that changed and all scores, and why scores are not
    compared."""

    run: RunSummary
    differences: Table
    changed: list[Table] = field(default_factory=list)
    all: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compared_with_before(path: Path, run: RunSummary, artifacts: list[Listed]) -> Before | None:
    """Compares a run with the one before it; None if there is none. path: of the run's summary."""
    earlier = run_before(path, run)
    if earlier is None:
        return None
    root = artifacts[0][1].parents[1] if artifacts else path.parent
    steps = {step.name: step for step in earlier.steps}
    folders = {name: root / step.stage / step.fingerprint[:16] for name, step in steps.items()}
    old = {name: record for name, folder in folders.items() if (record := read_record(folder))}
    new: dict[str, Record] = {name: record for name, _, record, _ in artifacts}
    shared = [name for name in new if name in old]  # a run that failed has not built all of them
    records = [[records[name] for name in shared] for records in (old, new)]
    rows = differences(records, [earlier.config, run.config])
    before = Before(earlier, differences_table(HEADS, rows))
    for name, folder, record, _ in artifacts:
        if record["stage"] not in EVALUATIONS or name not in steps:
            continue
        if steps[name].fingerprint == record["fingerprint"]:
            before.notes.append(f"{name} is the same artifact in both runs.")
            continue
        try:
            compared = compare(folders[name], folder)
        except InputError as error:
            before.notes.append(f"{name}: {error}")
            continue
        before.all.append(replace(comparison_table(HEADS, [compared]), title=name))
        if kept := [pair for pair in compared.scores if pair[1].p < LEVEL]:
            before.changed.append(replace(comparison_table(HEADS, [Comparison(kept, {}, 0)]), title=name))
        else:
            before.notes.append(f"{name}: no score differs with p < {LEVEL}.")
    return before
