"""`alpro artifacts ...` and `alpro compare`: they read the artifacts of a workspace and run no stage."""

import argparse
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from alpro.artifact import RECORD
from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.pipeline.cli.arguments import (
    ARTIFACT,
    add_action,
    add_group,
    add_json,
    add_tracking_uri,
    add_workspace,
    print_json,
    user_path,
)
from alpro.stages import EVALUATIONS

if TYPE_CHECKING:
    from alpro.pipeline.store.artifacts import Store

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


def add_artifact_commands(commands: Any) -> None:
    """`alpro artifacts ...`: the commands about the artifacts of a workspace."""
    actions = add_group(commands, "artifacts", "list, show, verify and remove artifacts")
    listing = add_action(actions, "ls", list_artifacts, "list the artifacts, their inputs and their users")
    show = add_action(actions, "show", show_artifact, "show one artifact: configuration, inputs, counts, metrics")
    lineage = add_action(
        actions,
        "lineage",
        show_lineage,
        "show everything that an artifact was built from, and the command that builds it again",
    )
    verify = add_action(
        actions,
        "verify",
        verify_artifacts,
        "read every file of artifacts, and print which are damaged, missing or extra",
    )
    collect = add_action(actions, "gc", collect_garbage, "list the artifacts that no run in MLflow needs")
    for parser in (show, lineage):
        parser.add_argument("artifact", metavar="ARTIFACT", help=ARTIFACT)
    verify.add_argument(
        "artifacts", nargs="*", metavar="ARTIFACT", help="as `lineage` takes them (default: all artifacts)"
    )
    for parser in (listing, show, lineage, verify, collect):
        add_json(parser)
        add_workspace(parser, "folder of the artifacts")
    collect.add_argument("--yes", action="store_true", help="remove them")
    add_tracking_uri(collect)


def add_compare(commands: Any) -> None:
    parser = add_action(
        commands,
        "compare",
        compare_artifacts,
        "compare evaluations score by score",
        description="Prints what differs between artifacts of evaluate (or of zero_shot) in configuration, data, code "
        "and versions, and for each score that they have over the same queries the values, the difference of each to "
        "the first, its 95 % paired bootstrap interval, and the p value of a paired permutation test, by test video. "
        "Writes the same as a page.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"two or more evaluations: {ARTIFACT}, or the name of a pipeline's run in MLflow",
    )
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="the page (default: WORKSPACE/reports/compare-RUN-RUN.html)"
    )
    add_json(parser)
    add_workspace(parser, "folder of the artifacts")


def store_of(arguments: argparse.Namespace) -> "Store":
    from alpro.pipeline.store.artifacts import Store

    return Store(arguments.workspace / "artifacts")


def list_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro artifacts ls`: the artifacts, oldest first, with creation time, size, inputs and users. A file that
    several artifacts share belongs to the oldest of them."""
    from alpro.pipeline.store.lineage import sizes_of

    store = store_of(arguments)
    artifacts = store.all()
    records = {record["fingerprint"]: record for _, record in artifacts}
    sizes, users = sizes_of([folder for folder, _ in artifacts]), users_of(records.values())
    if arguments.json:
        print_json(
            [
                {
                    "fingerprint": record["fingerprint"],
                    "name": record["name"],
                    "stage": record["stage"],
                    "created": record["run"]["at"],
                    "seconds": record["run"]["seconds"],
                    "bytes": size,
                    "folder": str(folder),
                    "inputs": {name: source["fingerprint"] for name, source in record["inputs"].items()},
                    "used_by": [user["fingerprint"] for user in users.get(record["fingerprint"], [])],
                }
                for (folder, record), size in zip(artifacts, sizes, strict=True)
            ]
        )
        return
    if not artifacts:
        print(f"no artifacts in {store.root}; `alpro run` creates them")
        return
    repeated = repeated_names(records.values())
    rows, notes = [], []
    for (_, record), size in zip(artifacts, sizes, strict=True):
        rows.append((*title(record), f"{record['run']['seconds']:.0f} s", megabytes(size)))
        used = names(users.get(record["fingerprint"], []), repeated)
        notes.append([from_inputs(record, records, repeated), f"used by {used}" if used else ""])
    print_rows(("fingerprint", "artifact", "created (UTC)", "took", "size"), rows, notes, right=("took", "size"))
    print(f"{len(artifacts)} artifacts, {megabytes(sum(sizes))}")


def show_artifact(arguments: argparse.Namespace) -> None:
    """`alpro artifacts show`: the record of an artifact, and the artifacts that use it."""
    folder, record = find_artifact(arguments.artifact, arguments.workspace)
    used = users_of(other for _, other in store_of(arguments).all()).get(record["fingerprint"], [])
    if arguments.json:
        print_json({"folder": str(folder), **record, "used_by": [user["fingerprint"] for user in used]})
        return
    run = record["run"]
    print(f"{record['name']}  {folder}")
    print(f"fingerprint {record['fingerprint']}")
    print(f"built {run['at']} in {run['seconds']:g} s, commit {run.get('commit')}, MLflow run {run.get('mlflow_run')}")
    for heading in ("inputs", "files", "counts", "metrics", "config", "versions"):
        if values := record[heading]:
            print(f"\n{heading}")
        for key, value in values.items():
            if heading == "inputs":
                value = f"{value['stage']} {value['fingerprint'][:16]}"
            print(f"  {key}: {value:g}" if isinstance(value, float) else f"  {key}: {value}")
    print("\nused by")
    print(*([f"  {other['name']} {other['fingerprint'][:16]}" for other in used] or ["  nothing"]), sep="\n")


def show_lineage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts lineage`: the artifacts that one was built from, inputs first, with their inputs, files, counts,
    seeds, commits, folders and versions; then the command that builds the last one."""
    from alpro.pipeline.store.lineage import lineage

    artifacts = lineage(store_of(arguments), find_artifact(arguments.artifact, arguments.workspace)[1])
    command = shlex.join(command_of(artifacts[-1][1]))
    if arguments.json:
        listed = [{"folder": str(folder), **record} for folder, record in artifacts]
        print_json({"artifacts": listed, "command": command or None})
        return
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
    print(f"\nIn each folder, {RECORD} has the whole configuration, the versions and the checksums.")
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["versions"].items()) for _, record in artifacts)
    for text in versions:
        print(f"built with {text}")
    if not command:
        return
    run = artifacts[-1][1]["run"]
    commit, folder = run.get("commit") or "unknown", run["arguments"].get("folder", "")
    place = f", in the folder {folder}" if folder not in ("", ".") else ""
    print(f"\nTo build it again, at commit {commit.removesuffix('+')}{place}:\n  {command}")
    if commit.endswith("+"):
        print("The checkout had changes that are not in this commit.")


def command_of(record: Record) -> list[str]:
    """The command that builds an artifact; empty if its record has none."""
    if not (arguments := record["run"].get("arguments")):
        return []
    words = ["alpro", "run", record["stage"], "--config", arguments["config"]]
    words += ["--data", arguments["data"]] if arguments["data"] else []
    return words + [word for change in arguments["changes"] for word in ("--set", change)]


def verify_artifacts(arguments: argparse.Namespace) -> int:
    """`alpro artifacts verify`: a line for each file that is not as recorded, with status 1, and a summary."""
    from alpro.pipeline.store.checksums import unreadable_records, verify

    store = store_of(arguments)
    artifacts = [find_artifact(name, arguments.workspace) for name in arguments.artifacts] or store.all()
    unreadable = [] if arguments.artifacts else unreadable_records(store.root)
    problems = chain(unreadable, verify(artifacts))
    if arguments.json:
        rows = [{**vars(problem), "folder": str(problem.folder)} for problem in problems]
        print_json(rows)
        return 1 if rows else 0
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        what = ": ".join(part for part in (problem.file, problem.detail) if part)
        print(f"{problem.kind:8} {problem.name} {problem.folder.name}  {what}")
    contents = [record["contents"] for _, record in artifacts if "contents" in record]
    size = sum(file["size"] for files in contents for file in files.values())
    found = ", ".join(f"{counts[kind]} {kind}" for kind in ("damaged", "missing", "extra") if counts[kind])
    number = sum(map(len, contents))
    print(f"{len(contents)} artifacts, {number} files, {megabytes(size)}: {found or 'as recorded'}")
    if found:
        print("delete the folder of an artifact, and the next run that needs it builds it again")
    return 1 if found else 0


def collect_garbage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts gc`. Deleting a run in MLflow is how a person says that it is no longer needed."""
    from alpro.pipeline.store.lineage import leftovers, occupied, remove, required_by, unneeded
    from alpro.pipeline.tracking.queries import forget_deleted_runs, logged_fingerprints, running

    database = arguments.workspace.resolve() / "mlflow.db"
    if not arguments.tracking_uri and not database.is_file():
        raise InputError(f"{database} does not exist; name the MLflow server of the runs with --tracking-uri")
    store = store_of(arguments)
    uri = arguments.tracking_uri or f"sqlite:///{database}"
    kept, known = logged_fingerprints(uri)
    items = unneeded(store, kept, known)
    needed = required_by((record for _, record in store.all()), kept)
    files, sizes = leftovers(arguments.workspace, known - needed), {"before": occupied(arguments.workspace)}
    if arguments.yes:
        if active := running(uri):
            raise InputError(
                f"{active[0]} is running, and may need any artifact; run this command when it is done. A run whose "
                "machine is gone can be deleted in MLflow"
            )
        remove(store, items, files)
        if not arguments.tracking_uri:
            forget_deleted_runs(database)
        sizes["after"] = occupied(arguments.workspace)
    if arguments.json:
        listed = [{"name": item.name, "folder": str(item.folder), "bytes": item.size} for item in items]
        others = [str(file) for file in files]
        print_json({"removed": arguments.yes, "artifacts": listed, "files": others, "bytes": {"after": None, **sizes}})
        return
    if items:
        rows = [(i.folder.name, i.name, created(i.record) if i.record else "", megabytes(i.size)) for i in items]
        print_rows(("fingerprint", "artifact", "created (UTC)", "frees"), rows, right=("frees",))
    else:
        print("runs in MLflow need all artifacts; to remove some, delete runs there first")
    print(*files, sep="\n", end="\n" if files else "")
    total = f"{len(items)} artifacts, {megabytes(sum(item.size for item in items))}, and {len(files)} other files"
    print(f"removed {total}" if arguments.yes else f"{total} could be removed; add --yes to remove them")
    for when, occupying in sizes.items():
        largest = ", ".join(f"{name} {megabytes(size)}" for name, size in list(occupying.items())[:5])
        print(f"the workspace {when}: {megabytes(sum(occupying.values()))} ({largest})")


def compare_artifacts(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.reports.comparison import compared_runs
    from alpro.pipeline.reports.terminal import print_result_table, print_text_table

    if len(arguments.runs) < 2:
        raise InputError("compare needs two evaluations or more")
    store = store_of(arguments)
    # The name of a run ends with the fingerprint of its last artifact.
    artifacts = [find_artifact(name.split(" · ")[-1], arguments.workspace) for name in arguments.runs]
    compared = compared_runs(store, artifacts)
    if arguments.json:
        print_json(compared.json())
    else:
        if (differences := compared.differences_table()).lines:
            print_text_table(differences)
        print_result_table(compared.scores_table(intervals=len(artifacts) > 2))
    page = arguments.out or arguments.workspace / "reports" / f"compare-{'-'.join(compared.names)}.html"
    print(f"page: {compared.write(page)}", file=sys.stderr)


def print_rows(
    heads: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    notes: Sequence[list[str]] = (),
    right: tuple[str, ...] = (),
) -> None:
    """Prints columns of text, and below each row its notes, wrapped at the width of the terminal. Columns named in
    `right` are aligned to the right."""
    from alpro.pipeline.reports.terminal import console

    wrapper = textwrap.TextWrapper(console.width, " " * 4, " " * 6, break_long_words=False, break_on_hyphens=False)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for number, row in enumerate([heads, *rows]):
        cells = (
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, head, width in zip(row, heads, widths, strict=True)
        )
        print("  ".join(cells).rstrip())
        for note in notes[number - 1] if notes and number else ():
            for line in wrapper.wrap(note):
                print(line)


def users_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records that have each fingerprint among their inputs."""
    users: dict[str, list[Record]] = {}
    for record in records:
        for fingerprint in dict.fromkeys(source["fingerprint"] for source in record["inputs"].values()):
            users.setdefault(fingerprint, []).append(record)
    return users


def title(record: Record) -> tuple[str, str, str]:
    """Fingerprint, name and creation time of an artifact."""
    return record["fingerprint"][:16], record["name"], created(record)


def created(record: Record) -> str:
    return record["run"]["at"][:16].replace("T", " ")


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
