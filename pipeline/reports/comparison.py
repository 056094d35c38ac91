"""`alpro compare`: evaluations side by side, with all that they were built from, as tables, as JSON and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.artifact import read_results
from alpro.errors import InputError
from alpro.pipeline.reports.differences import Difference, Record, differences, differences_table
from alpro.pipeline.reports.pages import write_page
from alpro.pipeline.reports.results import Table, comparison_table
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import Artifact, lineage
from alpro.stages.evaluation.comparison import Comparison, compare

LETTERS = 8  # of a fingerprint, in tables


@dataclass(frozen=True)
class ComparedRuns:
    """Evaluations, what differs in what they were built from, and the comparison of the first with each of the
    others."""

    artifacts: list[Artifact]
    differences: list[Difference]
    comparisons: list[Comparison]

    @property
    def names(self) -> list[str]:
        """A name for each evaluation: the first characters of its fingerprint."""
        return [folder.name[:LETTERS] for folder, _ in self.artifacts]

    @property
    def rows(self) -> list[dict[str, dict[str, Any]]]:
        """The rows of results.json of each evaluation, by name."""
        return [{row["name"]: row for row in read_results(folder)} for folder, _ in self.artifacts]

    def scores_table(self, intervals: bool) -> Table:
        """A line for each score, with the difference of each evaluation to the first; with or without the intervals of
        the values themselves."""
        return comparison_table(self.names, self.comparisons, self.rows if intervals else ())

    def differences_table(self) -> Table:
        """A line for each value that is not the same in all."""
        return differences_table(self.names, self.differences)

    def json(self) -> dict[str, Any]:
        """Everything as values of JSON: `scores` has an entry for each evaluation but the first."""
        runs = [{key: record[key] for key in ("name", "fingerprint", "run", "metrics")} for _, record in self.artifacts]
        scores = [
            [
                {key: row[key] for key in ("name", "what", "direction", "metric", "unit", "items")}
                | difference._asdict()
                for row, difference in comparison.scores
            ]
            for comparison in self.comparisons
        ]
        return {"runs": runs, "differences": [row._asdict() for row in self.differences], "scores": scores}

    def write(self, path: Path) -> Path:
        """Writes a page. Raises InputError if it cannot be written."""
        about = [
            [
                name,
                record["name"],
                record["run"]["at"][:16].replace("T", " "),
                record["run"].get("commit", ""),
                " ".join(record["run"].get("arguments", {}).get("changes", [])),
            ]
            for name, (_, record) in zip(self.names, self.artifacts, strict=True)
        ]
        runs = Table("Runs", ["", "", "created (UTC)", "commit", "changed values"], about)
        try:
            return write_page(
                path,
                "compare",
                title=" and ".join(self.names),
                runs=runs,
                differences=self.differences_table(),
                scores=self.scores_table(intervals=True),
            )
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error


def compared_runs(store: Store, artifacts: Sequence[Artifact]) -> ComparedRuns:
    """Compares two or more artifacts of evaluations, the first with each of the others. Raises InputError as `compare`
    does."""
    (first, _), *others = artifacts
    comparisons = [compare(first, folder) for folder, _ in others]
    return ComparedRuns(list(artifacts), differences([origins(store, record) for _, record in artifacts]), comparisons)


def origins(store: Store, record: Record) -> list[Record]:
    """The records of all that an artifact was built from, and its own; only its own if some are not in the store."""
    try:
        return [found for _, found in lineage(store, record)]
    except InputError:
        return [record]
