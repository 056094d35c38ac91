"""Prints artifacts: which there are, what they were built from, whether they are intact, which can be removed."""

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.markup import escape

from alpro.artifact import RECORD
from alpro.pipeline.reports.terminal import console, print_line
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.checksums import Problem
from alpro.pipeline.store.lineage import Artifact, Unneeded, sizes_once
from alpro.stages import EVALUATIONS

Record = dict[str, Any]
# What to look at in an artifact's folder, and what it contains.
PARTS = {
    "index.parquet": "rows",
    "rejects.parquet": "rejected rows",
    "entities.parquet": "entities",
    "left_out.parquet": "nouns left out",
    "tokenizer.json": "word pieces",
    "prompts.safetensors": "embedded prompts",
    "model": "",
    "results.json": "",
}


def print_artifacts(store: Store) -> None:
    """Prints every artifact: its creation time, size, inputs, and the artifacts that use it. A file that several
    artifacts share belongs to the oldest of them."""
    artifacts = list(store.all())
    if not artifacts:
        console.print(f"no artifacts in {store.root}; `alpro run` creates them", markup=False)
        return
    records = {record["fingerprint"]: record for _, record in artifacts}
    users = users_of(records.values())
    repeated = repeated_names(records.values())
    sizes = sizes_once([folder for folder, _ in artifacts])
    rows, notes = [], []
    for (_, record), size in zip(artifacts, sizes, strict=True):
        rows.append((*title(record), f"{record['run']['seconds']:.0f} s", megabytes(size)))
        used = names(users.get(record["fingerprint"], []), repeated)
        notes.append([from_inputs(record, records, repeated), f"used by {used}" if used else ""])
    print_rows(("fingerprint", "artifact", "created (UTC)", "took", "size"), rows, notes, right=("took", "size"))
    print_line(f"{len(artifacts)} artifacts, {megabytes(sum(sizes))}")


def print_artifact(store: Store, folder: Path, record: Record) -> None:
    """Prints the record of an artifact and the artifacts that use it."""
    console.print(f"[bold]{record['name']}[/bold]  {escape(str(folder))}")
    print_line(f"fingerprint {record['fingerprint']}")
    run = record["run"]
    print_line(
        f"built {run['at']} in {run['seconds']:g} s, commit {run.get('commit')}, MLflow run {run.get('mlflow_run')}"
    )
    for heading in ("inputs", "files", "counts", "metrics", "config", "versions"):
        values = record[heading]
        if not values:
            continue
        console.print(f"\n[bold]{heading}[/bold]")
        for key, value in values.items():
            if heading == "inputs":
                value = f"{value['stage']} {value['fingerprint'][:16]}"
            text = f"  {key}: {value:g}" if isinstance(value, float) else f"  {key}: {value}"
            console.print(text, highlight=False, markup=False)
    used = users_of(other for _, other in store.all()).get(record["fingerprint"], [])
    console.print("\n[bold]used by[/bold]")
    for other in used:
        print_line(f"  {other['name']} {other['fingerprint'][:16]}")
    if not used:
        print_line("  nothing")


def print_lineage(artifacts: list[Artifact]) -> None:
    """Prints the artifacts that one was built from, inputs first: their inputs, files, counts, seeds, commits, folders
    and versions; then the command that builds the last one."""
    records = {record["fingerprint"]: record for _, record in artifacts}
    repeated = repeated_names(records.values())
    rows, notes = [], []
    for folder, record in artifacts:
        rows.append((*title(record), record["run"].get("commit") or "", str(record["config"].get("seed", ""))))
        counts = {} if record["stage"] in EVALUATIONS else record.get("counts", {})
        present = [f"{name} ({what})" if what else name for name, what in PARTS.items() if (folder / name).exists()]
        read = [f"reads {record['paths'].get(name, name)}, SHA-256 {value}" for name, value in record["files"].items()]
        counted = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
        place = ": ".join(part for part in (str(folder), ", ".join(present)) if part)
        notes.append([from_inputs(record, records, repeated), *read, counted, place])
    print_rows(("fingerprint", "artifact", "created (UTC)", "commit", "seed"), rows, notes)
    print_line(f"\nIn each folder, {RECORD} has the whole configuration, the versions and the checksums.")
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["versions"].items()) for _, record in artifacts)
    for text in versions:
        print_line(f"built with {text}")
    print_command(artifacts[-1][1])


def print_command(record: Record) -> None:
    """Prints the command that builds an artifact, and where to run it."""
    run = record["run"]
    if not (words := command_of(record)):
        return
    arguments, commit = run["arguments"], run.get("commit") or "unknown"
    folder = arguments.get("folder", "")
    place = f", in the folder {folder}" if folder not in ("", ".") else ""
    print_line(f"\nTo build it again, at commit {commit.removesuffix('+')}{place}:")
    print_line(f"  {shlex.join(words)}")
    if commit.endswith("+"):
        print_line("The checkout had changes that are not in this commit.")


def command_of(record: Record) -> list[str]:
    """The command that builds an artifact; empty if its record has none."""
    if not (arguments := record["run"].get("arguments")):
        return []
    words = ["alpro", record["stage"].replace("_", "-"), "--config", arguments["config"]]
    words += ["--data", arguments["data"]] if arguments["data"] else []
    return words + [word for change in arguments["changes"] for word in ("--set", change)]


def print_unneeded(items: list[Unneeded], files: list[Path], removed: bool) -> None:
    """Prints what `alpro artifacts gc` removes, and how much that frees."""
    if items:
        rows = []
        for item in items:
            created = item.record["run"]["at"][:16].replace("T", " ") if item.record else ""
            rows.append((item.folder.name, item.name, created, megabytes(item.size)))
        print_rows(("fingerprint", "artifact", "created (UTC)", "frees"), rows, right=("frees",))
    else:
        print_line("runs in MLflow need all artifacts; to remove some, delete runs there first")
    for file in files:
        print_line(str(file))
    total = f"{len(items)} artifacts, {megabytes(sum(item.size for item in items))}, and {len(files)} other files"
    print_line(f"removed {total}" if removed else f"{total} could be removed; add --yes to remove them")


def print_occupied(before: dict[str, int], after: dict[str, int] | None) -> None:
    """Prints what a workspace occupies, before and after files were removed."""
    for when, sizes in (("before", before), ("after", after)):
        if sizes is not None:
            largest = ", ".join(f"{name} {megabytes(size)}" for name, size in list(sizes.items())[:5])
            print_line(f"the workspace {when}: {megabytes(sum(sizes.values()))} ({largest})")


def print_problems(artifacts: list[Artifact], problems: Iterable[Problem]) -> int:
    """Prints each file that is not as recorded as one line, and a summary. Returns how many there are."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        what = ": ".join(part for part in (problem.file, problem.detail) if part)
        print_line(f"{problem.kind:8} {problem.name} {problem.folder.name}  {what}")
    described = [record for _, record in artifacts if "contents" in record]
    files = sum(len(record["contents"]) for record in described)
    size = sum(file["size"] for record in described for file in record["contents"].values())
    failed = counts["damaged"] + counts["missing"] + counts["extra"]
    found = ", ".join(f"{counts[kind]} {kind}" for kind in ("damaged", "missing", "extra") if counts[kind])
    print_line(f"{len(described)} artifacts, {files} files, {megabytes(size)}: {found or 'as recorded'}")
    if failed:
        print_line("delete the folder of an artifact, and the next run that needs it builds it again")
    return failed


def print_rows(
    heads: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    notes: Sequence[list[str]] = (),
    right: tuple[str, ...] = (),
) -> None:
    """Prints columns of text, and below each row its notes, wrapped at the width of the terminal. Columns named in
    `right` are aligned to the right."""
    wrapper = textwrap.TextWrapper(console.width, " " * 4, " " * 6, break_long_words=False, break_on_hyphens=False)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for number, row in enumerate([heads, *rows]):
        cells = (
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, head, width in zip(row, heads, widths, strict=True)
        )
        print_line("  ".join(cells).rstrip())
        for note in notes[number - 1] if notes and number else ():
            for line in wrapper.wrap(note):
                print_line(line)


def users_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records that have each fingerprint among their inputs."""
    users: dict[str, list[Record]] = {}
    for record in records:
        for fingerprint in dict.fromkeys(source["fingerprint"] for source in record["inputs"].values()):
            users.setdefault(fingerprint, []).append(record)
    return users


def title(record: Record) -> tuple[str, str, str]:
    """Fingerprint, name and creation time of an artifact."""
    return record["fingerprint"][:16], record["name"], record["run"]["at"][:16].replace("T", " ")


def repeated_names(records: Iterable[Record]) -> set[str]:
    """The names that several artifacts have."""
    return {name for name, count in Counter(record["name"] for record in records).items() if count > 1}


def from_inputs(record: Record, records: dict[str, Record], repeated: set[str]) -> str:
    """The inputs of an artifact by name; one that is not in `records` by its stage and fingerprint."""
    sources = {source["fingerprint"]: source["stage"] for source in record["inputs"].values()}
    absent = [f"{stage} {mark[:8]} (not here)" for mark, stage in sources.items() if mark not in records]
    text = names([records[mark] for mark in sources if mark in records], repeated)
    text = ", ".join(part for part in (text, *absent) if part)
    return f"from {text}" if text else ""


def names(records: list[Record], repeated: set[str]) -> str:
    """Artifacts by name; one whose name others have too with its fingerprint."""
    ordered = sorted(records, key=lambda record: record["name"])
    return ", ".join(
        " ".join([name, *(record["fingerprint"][:8] for record in group if name in repeated)])
        for name, group in groupby(ordered, key=lambda record: record["name"])
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
