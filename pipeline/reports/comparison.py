"""Evaluations side by side: their scores with paired differences, and all that differs in what they were built from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import Record, flatten, read_results
from alpro.errors import InputError
from alpro.pipeline.reports.page import write_page
from alpro.pipeline.reports.results import Table, tables
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import lineage
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.comparison import compare

MISSING = "-"


def compared_runs(store: Store, artifacts: Sequence[tuple[Path, Record]]) -> tuple[list[Table], dict[str, Any]]:
    """Compares artifacts of evaluations, the first with each of the others: the tables, and all as values of JSON.
    Raises InputError as `compare` does."""
    names = [folder.name[:8] for folder, _ in artifacts]
    (first, _), *others = artifacts
    compared = [compare(first, folder) for folder, _ in others]
    differing = differences([origins(store, dict(record)) for _, record in artifacts])
    about = [
        [
            name,
            record["name"],
            record["run"]["at"][:16].replace("T", " "),
            record["run"].get("commit") or MISSING,
            " ".join(record["run"].get("arguments", {}).get("changes", [])),
        ]
        for name, (_, record) in zip(names, artifacts, strict=True)
    ]
    shown = [Table("Runs", ["", "", "created (UTC)", "commit", "changed values"], about, texts=True)]
    if differing:
        lines = [[kind, name, *values] for kind, name, values in differing]
        shown.append(Table("What differs", ["", "", *names], lines, texts=True))
    shown += tables(dict(zip(names, [read_results(folder) for folder, _ in artifacts], strict=True)), compared)
    scores = [
        [
            {key: row[key] for key in ("name", "what", "direction", "metric", "unit", "items")} | difference._asdict()
            for row, difference in one.scores
        ]
        for one in compared
    ]
    runs = [{key: record[key] for key in ("name", "fingerprint", "run", "metrics")} for _, record in artifacts]
    found = [{"kind": kind, "name": name, "values": values} for kind, name, values in differing]
    return shown, {"runs": runs, "differences": found, "scores": scores}


def write_comparison(path: Path, shown: Sequence[Table]) -> Path:
    """Writes the tables of a comparison as a page. Raises InputError if it cannot be written."""
    try:
        return write_page(path, " and ".join(line[0] for line in shown[0].lines), tables=shown)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def origins(store: Store, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of all that an artifact was built from, and its own; only its own if some are not in the store."""
    try:
        return [found for _, found in lineage(store, record)]
    except InputError:
        return [record]


def differences(runs: Sequence[Sequence[Record]]) -> list[tuple[str, str, list[str]]]:
    """What is not the same in all runs, each with all the records that it was built from: the kind (configuration,
    data, code, version), a name, and the value in each run."""
    kinds: dict[str, list[Mapping[str, Any]]] = {
        "configuration": [flatten({record["name"]: record["config"] for record in records}) for records in runs],
        "data": [data(records) for records in runs],
        "code": [code(records) for records in runs],
        "version": [versions(records) for records in runs],
    }
    return [
        (kind, name, values)
        for kind, of_runs in kinds.items()
        for name in dict.fromkeys(name for of_run in of_runs for name in of_run)
        if len(set(values := [str(of_run.get(name, MISSING)) for of_run in of_runs])) > 1
    ]


def data(records: Sequence[Record]) -> dict[str, str]:
    """Each corpus with its fingerprint and counts, and each file that a stage reads with its digest."""
    values = {}
    for record in records:
        if record["stage"] in CORPUS_STAGES:
            counts = ", ".join(f"{count} {name}" for name, count in record["counts"].items() if count)
            values[record["name"].partition(" ")[2] or record["name"]] = f"{record['fingerprint'][:8]}: {counts}"
        values |= {f"{record['name']} {name}": digest[:8] for name, digest in record["files"].items()}
    return values


def code(records: Sequence[Record]) -> dict[str, str]:
    """The commits that the artifacts were built at, the versions of the stages, and the precision of their models."""
    commits = dict.fromkeys(record["run"].get("commit") or MISSING for record in records)
    stages = {f"{record['stage']}, version": str(record["stage_version"]) for record in records}
    precisions = {f"{record['name']} in": record["precision"] for record in records if record.get("precision")}
    return {"commit": ", ".join(commits), **stages, **precisions}


def versions(records: Sequence[Record]) -> dict[str, str]:
    """The versions of each package that the artifacts were built with."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record["versions"].items():
            values.setdefault(package, {})[version] = None
    return {package: ", ".join(used) for package, used in values.items()}
