"""Evaluations side by side: their scores with paired differences, and all that differs in what they were built from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alpro.artifact import Record, flatten, read_results
from alpro.errors import InputError
from alpro.pipeline.reports.page import write_page
from alpro.pipeline.reports.results import Table, tables
from alpro.pipeline.store.artifacts import Store
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.comparison import compare

MISSING = "-"
KINDS = ("configuration", "data", "code", "version")  # of what decides a result, and may differ


def compared_runs(store: Store, artifacts: Sequence[tuple[Path, Record]]) -> list[Table]:
    """Compares artifacts of evaluations, the first with each of the others. Raises InputError as `compare` does."""
    names = [folder.name[:8] for folder, _ in artifacts]
    (first, _), *others = artifacts
    compared = [compare(first, folder) for folder, _ in others]
    differing = differences([[found for _, found in store.lineage(dict(record))] for _, record in artifacts])
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
    results = dict(zip(names, [read_results(folder) for folder, _ in artifacts], strict=True))
    return shown + tables(results, compared)


def write_comparison(path: Path, shown: Sequence[Table]) -> Path:
    """Writes the tables of a comparison as a page. Raises InputError if it cannot be written."""
    try:
        return write_page(path, " and ".join(line[0] for line in shown[0].lines), tables=shown)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def differences(runs: Sequence[Sequence[Record]]) -> list[tuple[str, str, list[str]]]:
    """What is not the same in all runs, each with all the records that it was built from: the kind of KINDS, a name,
    and the value in each run."""
    described = [origins(records) for records in runs]
    names = dict.fromkeys(name for of_run in described for name in of_run)
    return [
        (kind, name, values)
        for kind, name in sorted(names, key=lambda both: KINDS.index(both[0]))
        if len(set(values := [of_run.get((kind, name), MISSING) for of_run in described])) > 1
    ]


def origins(records: Sequence[Record]) -> Mapping[tuple[str, str], str]:
    """What decides the result of a run, by kind and name: configurations, corpora with their counts, digests of files,
    commits, versions of stages, precisions and packages."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        name, stage = record["name"], record["stage"]
        found = {("configuration", key): str(v) for key, v in flatten({name: record["config"]}).items()}
        if stage in CORPUS_STAGES:
            counts = ", ".join(f"{count} {what}" for what, count in record["counts"].items() if count)
            found["data", name.partition(" ")[2] or name] = f"{record['fingerprint'][:8]}: {counts}"
        found |= {("data", f"{name} {file}"): digest[:8] for file, digest in record["files"].items()}
        found["code", "commit"] = record["run"].get("commit") or MISSING
        found["code", f"{stage}, version"] = str(record["stage_version"])
        found |= {("code", f"{name} in"): record["precision"]} if record.get("precision") else {}
        found |= {("version", package): version for package, version in record["versions"].items()}
        for key, value in found.items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(each) for key, each in values.items()}
