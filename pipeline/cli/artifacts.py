"""`alpro artifacts ...` and `alpro compare`: they read the artifacts of a workspace and run no stage."""

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from pathlib import Path

    from alpro.pipeline.store.artifacts import Store

Record = dict[str, Any]


def add_artifact_commands(commands: Any) -> None:
    """`alpro artifacts ...`: the commands about the artifacts of a workspace."""
    actions = add_group(commands, "artifacts", "list, show, verify and remove artifacts")
    listing = add_action(actions, "ls", list_artifacts, "list the artifacts and their inputs")
    show = add_action(
        actions, "show", show_artifact, "show an artifact, what it was built from, and the command that builds it again"
    )
    verify = add_action(
        actions,
        "verify",
        verify_artifacts,
        "read every file of artifacts, and print which are damaged, missing or extra",
    )
    logging = add_action(actions, "log", log_artifacts, "log artifacts to MLflow again, or to another server")
    logging.add_argument("artifacts", nargs="+", metavar="ARTIFACT", help=ARTIFACT)
    add_workspace(logging, "folder of the artifacts")
    add_tracking_uri(logging)
    remove = add_action(actions, "rm", remove_artifacts, "remove artifacts, or what an interrupted stage left")
    collect = add_action(
        actions, "gc", collect_garbage, "list the artifacts that the newest one of each name was not built from"
    )
    show.add_argument("artifact", metavar="ARTIFACT", help=ARTIFACT)
    verify.add_argument("artifacts", nargs="*", metavar="ARTIFACT", help="as `show` takes it (default: all artifacts)")
    remove.add_argument("artifacts", nargs="+", metavar="ARTIFACT", help=ARTIFACT)
    collect.add_argument(
        "artifacts", nargs="*", metavar="ARTIFACT", help="keep these, and what they were built from, instead"
    )
    collect.add_argument("--yes", action="store_true", help="remove them")
    for parser in (listing, show, verify, remove, collect):
        add_json(parser)
        add_workspace(parser, "folder of the artifacts")


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
    """`alpro artifacts ls`: the artifacts, oldest first. A file that several artifacts share counts for the oldest."""
    from alpro.pipeline.store.lineage import sizes_of

    found = store_of(arguments).all()
    sizes = sizes_of([folder for folder, _ in found])
    if arguments.json:
        rows = zip(found, sizes, strict=True)
        print_json([{"folder": str(folder), "bytes": size, **record} for (folder, record), size in rows])
    elif not found:
        print(f"no artifacts in {arguments.workspace / 'artifacts'}; `alpro run` creates them")
    else:
        print_artifacts([record for _, record in found], sizes)


def show_artifact(arguments: argparse.Namespace) -> None:
    """`alpro artifacts show`: the record of an artifact, everything that it was built from, inputs before their users,
    and the command that builds it again."""
    from alpro.pipeline.store.lineage import lineage

    folder, record = find_artifact(arguments.artifact, arguments.workspace)
    try:
        built_from = [other for _, other in lineage(store_of(arguments), record)[:-1]]
    except InputError as error:  # an input was removed
        print(error, file=sys.stderr)
        built_from = []
    command = shlex.join(command_of(record))
    if arguments.json:
        print_json({"folder": str(folder), **record, "built_from": built_from, "command": command})
        return
    run = record["run"]
    print(f"{record['name']}  {folder}")
    print(f"fingerprint {record['fingerprint']}")
    print(f"built {run['at']} in {run['seconds']:g} s, commit {run.get('commit')}, MLflow run {run.get('mlflow_run')}")
    for heading in ("files", "counts", "metrics", "config", "versions"):
        if values := record[heading]:
            print(f"\n{heading}")
        for key, value in values.items():
            print(f"  {key}: {value:g}" if isinstance(value, float) else f"  {key}: {value}")
    if built_from:
        print("\nbuilt from")
        print_artifacts(built_from)
    if command:
        commit, place = run.get("commit") or "unknown", run["arguments"].get("folder", "")
        where = f", in the folder {place}" if place not in ("", ".") else ""
        print(f"\nTo build it again, at commit {commit.removesuffix('+')}{where}:\n  {command}")
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
    found = [find_artifact(name, arguments.workspace) for name in arguments.artifacts] or store.all()
    problems = list(chain([] if arguments.artifacts else unreadable_records(store.root), verify(found)))
    if arguments.json:
        print_json([{**vars(problem), "folder": str(problem.folder)} for problem in problems])
        return 1 if problems else 0
    for problem in problems:
        what = ": ".join(part for part in (problem.file, problem.detail) if part)
        print(f"{problem.kind:8} {problem.name} {problem.folder.name}  {what}")
    files = [file for _, record in found for file in record.get("contents", {}).values()]
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items())
    size = megabytes(sum(file["size"] for file in files))
    print(f"{len(found)} artifacts, {len(files)} files, {size}: {counts or 'as recorded'}")
    if problems:
        print("`alpro artifacts rm` removes an artifact, and the next run that needs it builds it again")
    return 1 if problems else 0


def remove_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro artifacts rm`: the artifacts of these names, and interrupted stages by their fingerprints."""
    from alpro.pipeline.store.lineage import remove, unfinished

    store, folders = store_of(arguments), []
    interrupted = unfinished(store)
    for name in arguments.artifacts:
        named = [folder for folder in interrupted if folder.name == name or str(folder) == name]
        folders.append(named[0] if named else find_artifact(name, arguments.workspace)[0])
    remove(store, dict.fromkeys(folders))
    print_removed(arguments, list(dict.fromkeys(folders)))


def collect_garbage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts gc`. What interrupted stages left, and links to other places, are only listed."""
    from alpro.pipeline.store.lineage import is_elsewhere, remove, sizes_of, unfinished, unreachable

    store = store_of(arguments)
    kept = [find_artifact(name, arguments.workspace)[1]["fingerprint"] for name in arguments.artifacts]
    unused = unreachable(store.all(), kept)
    chosen = [(folder, record) for folder, record in unused if not is_elsewhere(store, folder)]
    folders = [folder for folder, _ in chosen]
    sizes = sizes_of(folders)
    if arguments.yes:
        remove(store, folders)
    if arguments.json:
        print_removed(arguments, folders)
        return
    for folder, _ in unused:
        if folder not in folders:
            print(f"elsewhere, stays: {folder}")
    for folder in unfinished(store):
        print(f"interrupted, stays; the same run continues it, `alpro artifacts rm {folder.name}` removes it: {folder}")
    if not chosen:
        print("nothing to remove")
        return
    print_artifacts([record for _, record in chosen], sizes)
    print("removed" if arguments.yes else "add --yes to remove them")


def print_removed(arguments: argparse.Namespace, folders: "list[Path]") -> None:
    if arguments.json:
        print_json({"removed": getattr(arguments, "yes", True), "artifacts": [str(folder) for folder in folders]})
    else:
        print(*(f"removed {folder}" for folder in folders), sep="\n")


def log_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro artifacts log`: logs artifacts again, each as a new run in the experiment of its configuration."""
    from alpro.pipeline.tracking.tracker import Tracker

    for name in arguments.artifacts:
        folder, record = find_artifact(name, arguments.workspace)
        experiment = record["run"].get("arguments", {}).get("config", "alpro").rpartition("/")[2].removesuffix(".toml")
        tracker = Tracker.open(arguments.tracking_uri, arguments.workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        if not run or tracker.warned:
            raise InputError(f"MLflow store {tracker.uri}: {record['name']} is not logged")
        print(f"{record['name']} {record['fingerprint'][:16]}: run {run} in the experiment {experiment}")


def compare_artifacts(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.reports.comparison import compared_runs, write_comparison
    from alpro.pipeline.reports.terminal import print_table

    if len(arguments.runs) < 2:
        raise InputError("compare needs two evaluations or more")
    # The name of a run has the start of the fingerprint of its last artifact: "sample 3f2a9c · pretrain.lr=1e-4".
    marks = [re.search(r" ([0-9a-f]{6,})( ·|$)", name) for name in arguments.runs]
    chosen = [mark[1] if mark else name for mark, name in zip(marks, arguments.runs, strict=True)]
    artifacts = [find_artifact(name, arguments.workspace) for name in chosen]
    tables, values = compared_runs(store_of(arguments), artifacts)
    if arguments.json:
        print_json(values)
    else:
        for table in tables[1:]:
            print_table(table)
    names = "-".join(folder.name[:8] for folder, _ in artifacts)
    page = arguments.out or arguments.workspace / "reports" / f"compare-{names}.html"
    print(f"page: {write_comparison(page, tables)}", file=sys.stderr)


def print_artifacts(records: Sequence[Record], sizes: Sequence[int] = ()) -> None:
    """Prints a line for each artifact, and below it its inputs; at the end the number and the size of all."""
    width = max(len(record["name"]) for record in records)
    for number, record in enumerate(records):
        size = f"  {megabytes(sizes[number]):>12}" if sizes else ""
        at, mark = record["run"]["at"][:16].replace("T", " "), record["fingerprint"][:16]
        print(f"{mark}  {record['name']:{width}}  {at}  {record['run']['seconds']:7.0f} s{size}")
        for name, source in record["inputs"].items():
            print(f"    {name}: {source['stage']} {source['fingerprint'][:8]}")
    if sizes:
        print(f"{len(records)} artifacts, {megabytes(sum(sizes))}")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
