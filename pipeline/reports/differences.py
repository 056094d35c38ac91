"""What differs between runs: configuration, data, code, versions and precisions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alpro.artifact import flatten
from alpro.stages import CORPUS_STAGES

Record = dict[str, Any]  # artifact.json
MISSING = "-"


class Difference(NamedTuple):
    """A value that is not the same in all runs. kind: configuration, data, code, version or machine."""

    kind: str
    name: str
    values: list[str]  # of each run


def differing(kind: str, runs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The keys whose values differ between the runs, in the order in which they occur."""
    keys = dict.fromkeys(key for run in runs for key in run)
    rows = (Difference(kind, key, [str(run.get(key, MISSING)) for run in runs]) for key in keys)
    return [row for row in rows if len(set(row.values)) > 1]


def differences(runs: Sequence[Sequence[Record]]) -> list[Difference]:
    """What differs between the artifacts of runs, each with all that it was built from."""
    values = [flatten({record["name"]: record["config"] for record in records}) for records in runs]
    parts = {"data": data, "code": code, "version": versions, "precision": precisions}
    rows = differing("configuration", values)
    return rows + [row for kind, of in parts.items() for row in differing(kind, [of(records) for records in runs])]


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
    """The commits that the artifacts were built at, and the versions of the stages."""
    commits = dict.fromkeys(record["run"].get("commit") or MISSING for record in records)
    stages = {f"{record['stage']}, version": str(record["stage_version"]) for record in records}
    return {"commit": ", ".join(commits), **stages}


def versions(records: Sequence[Record]) -> dict[str, str]:
    """The versions of each package that the artifacts were built with."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record["versions"].items():
            values.setdefault(package, {})[version] = None
    return {package: ", ".join(used) for package, used in values.items()}


def precisions(records: Sequence[Record]) -> dict[str, str]:
    """The type of the matrix products of each artifact that a model built."""
    return {record["name"]: record["precision"] for record in records if record.get("precision")}
