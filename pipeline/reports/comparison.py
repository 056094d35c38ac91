"""`alpro compare`: evaluations side by side, with all that they were built from, as tables, as JSON and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.artifact import read_results
from alpro.errors import InputError
from alpro.pipeline.reports.differences import Difference, Record, differences
from alpro.pipeline.reports.pages import write_page
from alpro.pipeline.reports.results import ResultTable, shown, shown_score, signed
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import Artifact, lineage
from alpro.stages.evaluation.comparison import Comparison, compare
from alpro.stages.evaluation.statistics import PairedDifference

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

    def scores_table(self, intervals: bool) -> ResultTable:
        """A line for each score, with the difference of each evaluation to the first; with or without the intervals of
        the values themselves."""
        return comparison_table(self.names, self.comparisons, self.rows if intervals else ())

    def differences_table(self) -> ResultTable:
        """A line for each value that is not the same in all."""
        lines = [[row.kind, row.name, *row.values] for row in self.differences]
        return ResultTable("What differs", ["", "", *self.names], lines)

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
        runs = ResultTable("Runs", ["", "", "created (UTC)", "commit", "changed values"], about)
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


def comparison_table(
    names: Sequence[str], compared: Sequence[Comparison], rows: Sequence[Mapping[str, dict[str, Any]]] = ()
) -> ResultTable:
    """A line for each score of evaluations: the values, and the difference of each to the first with its interval and
    its p value.

    compared: of the first evaluation and each of the others. rows: the rows of results.json of every evaluation by
    name; if they are passed, values have their own intervals.
    """
    shared: dict[str, dict[str, Any]] = {}
    by_run = [{row["name"]: (row, difference) for row, difference in one.scores} for one in compared]
    for scores in by_run:
        shared |= {name: row for name, (row, _) in scores.items() if name not in shared}
    lines = []
    for name, row in shared.items():
        cells = [cell_of(row, next(scores[name][1].a for scores in by_run if name in scores), rows[:1])]
        for number, scores in enumerate(by_run, 1):
            if name in scores:
                _, difference = scores[name]
                value = cell_of(row, difference.b, rows[number : number + 1])
                cells += [value, change_of(difference), f"{difference.p:.4f}"]
            else:
                cells += [""] * 3
        metric = f"{row['direction']} {row['metric']}".strip() + ("" if row["higher_is_better"] else " ↓")
        lines.append([row["what"], metric, *cells, str(row["items"])])
    first, *others = names
    changes = [[name, "difference" if len(others) == 1 else f"{name} - {first}", "p"] for name in others]
    heads = ["", "", first, *(head for some in changes for head in some), "items"]
    return ResultTable("Comparison", heads, lines, comparison_note(others, compared))


def cell_of(row: dict[str, Any], value: float, own: Sequence[Mapping[str, dict[str, Any]]]) -> str:
    """The value of a score, with its interval if the evaluation's `own` rows are passed."""
    return shown_score(own[0][row["name"]]) if own else shown(value, row["unit"])


def change_of(difference: PairedDifference) -> str:
    """A difference with its interval, if it has one."""
    if difference.low is None or difference.high is None:
        return signed(difference.difference)
    return f"{signed(difference.difference)} [{signed(difference.low)}, {signed(difference.high)}]"


def comparison_note(others: Sequence[str], compared: Sequence[Comparison]) -> str:
    """What a reader of differences has to know, and which scores are left out."""
    note = (
        "All items are shared. In brackets: 95 % interval of the difference, paired bootstrap over test videos. p: "
        "permutation test by video, two-sided, not corrected for the number of scores."
    )
    for name, one in zip(others, compared, strict=True):
        mark = "" if len(others) == 1 else f"{name}: "
        for score, (of_a, of_b, queries) in one.other_queries.items():
            note += f"\n{mark}Left out, other queries: {score} ({of_a} and {of_b} queries, {queries} shared)."
        if one.single:
            note += f"\n{mark}Only one of them has {one.single} other scores."
    return note
