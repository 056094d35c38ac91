"""`alpro artifacts ...`: the commands that read the artifacts of a workspace and run no stage."""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.pipeline.cli.options import ARTIFACT, WORKSPACE, Artifact, File, Json, TrackingUri, Workspace, print_json

if TYPE_CHECKING:
    from alpro.pipeline.store.artifacts import Store

group = App(name="artifacts", help="List, show, verify, compare and remove artifacts.")
Artifacts = Annotated[str, Parameter(help=ARTIFACT)]
Record = dict[str, Any]


def store_of(workspace: Path) -> "Store":
    from alpro.pipeline.store.artifacts import Store

    return Store(workspace / "artifacts")


@group.command(name="ls")
def list_artifacts(*, json: Json = False, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts and their inputs, oldest first.

    A file that several artifacts share counts for the oldest.
    """
    from alpro.pipeline.store.lineage import sizes_of

    found = store_of(workspace).all()
    sizes = sizes_of([folder for folder, _ in found])
    if json:
        rows = zip(found, sizes, strict=True)
        print_json([{"folder": str(folder), "bytes": size, **record} for (folder, record), size in rows])
    elif not found:
        print(f"no artifacts in {workspace / 'artifacts'}; `alpro run` creates them")
    else:
        print_artifacts([record for _, record in found], sizes)


@group.command(name="show")
def show_artifact(artifact: Artifact, /, *, json: Json = False, workspace: Workspace = WORKSPACE) -> None:
    """Show an artifact, what it was built from, and the command that builds it again."""
    from alpro.pipeline.store.lineage import lineage

    folder, record = find_artifact(artifact, workspace)
    try:
        built_from = [other for _, other in lineage(store_of(workspace), record)[:-1]]
    except InputError as error:  # an input was removed
        print(error, file=sys.stderr)
        built_from = []
    command = shlex.join(command_of(record))
    if json:
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


@group.command(name="verify")
def verify_artifacts(*artifacts: Artifacts, json: Json = False, workspace: Workspace = WORKSPACE) -> int:
    """Read every file of artifacts, by default of all, and print which are damaged, missing or extra.

    The exit status is 1 if some are.
    """
    from alpro.pipeline.store.checksums import unreadable_records, verify

    store = store_of(workspace)
    found = [find_artifact(name, workspace) for name in artifacts] or store.all()
    problems = list(chain([] if artifacts else unreadable_records(store.root), verify(found)))
    if json:
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


@group.command(name="rm")
def remove_artifacts(*artifacts: Artifacts, workspace: Workspace = WORKSPACE) -> None:
    """Remove artifacts, or what an interrupted stage left."""
    from alpro.pipeline.store.lineage import remove, unfinished

    if not artifacts:
        raise InputError("alpro artifacts rm: name the artifacts to remove")
    store, folders = store_of(workspace), []
    interrupted = unfinished(store)
    for name in artifacts:
        named = [folder for folder in interrupted if folder.name == name or str(folder) == name]
        folders.append(named[0] if named else find_artifact(name, workspace)[0])
    remove(store, dict.fromkeys(folders))
    print(*(f"removed {folder}" for folder in dict.fromkeys(folders)), sep="\n")


@group.command(name="gc")
def collect_garbage(*artifacts: Artifacts, yes: bool = False, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts that the newest one of each name, or those that are named, were not built from.

    What interrupted stages left, and links to other places, are only listed.

    Parameters
    ----------
    yes
        Remove them.
    """
    from alpro.pipeline.store.lineage import is_elsewhere, remove, sizes_of, unfinished, unreachable

    store = store_of(workspace)
    kept = [find_artifact(name, workspace)[1]["fingerprint"] for name in artifacts]
    unused = unreachable(store.all(), kept)
    chosen = [(folder, record) for folder, record in unused if not is_elsewhere(store, folder)]
    folders = [folder for folder, _ in chosen]
    sizes = sizes_of(folders)
    if yes:
        remove(store, folders)
    for folder, _ in unused:
        if folder not in folders:
            print(f"elsewhere, stays: {folder}")
    for folder in unfinished(store):
        print(f"interrupted, stays; the same run continues it, `alpro artifacts rm {folder.name}` removes it: {folder}")
    if not chosen:
        print("nothing to remove")
        return
    print_artifacts([record for _, record in chosen], sizes)
    print("removed" if yes else "add --yes to remove them")


@group.command(name="log")
def log_artifacts(*artifacts: Artifacts, workspace: Workspace = WORKSPACE, tracking_uri: TrackingUri = "") -> None:
    """Log artifacts to MLflow again, or to another server.

    Each becomes a new run in the experiment of its configuration.
    """
    from alpro.pipeline.tracking.tracker import Tracker

    if not artifacts:
        raise InputError("alpro artifacts log: name the artifacts to log")
    for name in artifacts:
        folder, record = find_artifact(name, workspace)
        experiment = record["run"].get("arguments", {}).get("config", "alpro").rpartition("/")[2].removesuffix(".toml")
        tracker = Tracker.open(tracking_uri, workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        if not run or tracker.warned:
            raise InputError(f"MLflow store {tracker.uri}: {record['name']} is not logged")
        print(f"{record['name']} {record['fingerprint'][:16]}: run {run} in the experiment {experiment}")


@group.command(name="compare")
def compare_artifacts(
    *runs: Artifacts, out: File | None = None, json: Json = False, workspace: Workspace = WORKSPACE
) -> None:
    """Compare evaluations score by score.

    Prints what differs in configuration, data, code and versions, and for each score that they have over the same
    queries the values, the difference of each to the first, its 95 % paired bootstrap interval, and the p value of a
    paired permutation test, by test video. Writes the same as a page.

    Parameters
    ----------
    out
        The page; by default WORKSPACE/reports/compare-RUN-RUN.html.
    """
    from alpro.pipeline.reports.comparison import compared_runs, write_comparison
    from alpro.pipeline.reports.terminal import print_table

    if len(runs) < 2:
        raise InputError("alpro artifacts compare: name two evaluations or more")
    # The name of a run has the start of the fingerprint of its last artifact: "sample 3f2a9c · pretrain.lr=1e-4".
    marks = [re.search(r" ([0-9a-f]{6,})( ·|$)", name) for name in runs]
    chosen = [mark[1] if mark else name for mark, name in zip(marks, runs, strict=True)]
    artifacts = [find_artifact(name, workspace) for name in chosen]
    tables, values = compared_runs(store_of(workspace), artifacts)
    if json:
        print_json(values)
    else:
        for table in tables[1:]:
            print_table(table)
    names = "-".join(folder.name[:8] for folder, _ in artifacts)
    page = out or workspace / "reports" / f"compare-{names}.html"
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
