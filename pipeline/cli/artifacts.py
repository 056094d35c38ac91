"""`alpro artifacts ...`: the commands that read the artifacts of a workspace and run no stage."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from alpro.errors import InputError
from alpro.names import find_artifact
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Artifact,
    File,
    Json,
    TrackingUri,
    Workspace,
    print_json,
    toml_text,
)

if TYPE_CHECKING:
    from alpro.pipeline.store.artifacts import Store

group = App(name="artifacts", help="List, show, verify, compare and remove artifacts.")
Record = dict[str, Any]


def store_of(workspace: Path) -> "Store":
    from alpro.pipeline.store.artifacts import Store

    return Store(workspace / "artifacts")


@group.command(name="ls")
def list_artifacts(*, json: Json = False, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts and their inputs, oldest first."""
    found = store_of(workspace).all()
    if json:
        from alpro.pipeline.store.checksums import size_of

        print_json(
            [
                {"folder": str(folder), "bytes": size_of(folder), **record}
                for folder, record in found
            ]
        )
    elif not found:
        print(f"no artifacts in {workspace / 'artifacts'}; `alpro run` creates them")
    else:
        print_artifacts(found)


@group.command(name="show")
def show_artifact(artifact: Artifact, /, *, workspace: Workspace = WORKSPACE) -> None:
    """Show an artifact, what it was built from, and the command that builds it again."""
    folder, record = find_artifact(artifact, workspace)
    built_from = store_of(workspace).lineage(record)
    command, run = shlex.join(command_of(record)), record["run"]
    print(f"{record['name']}  {folder}\nfingerprint {record['fingerprint']}")
    print(f"built {run['at']}, commit {run.get('commit')}, MLflow run {run.get('mlflow_run')}\n")
    shown = ("files", "counts", "metrics", "config", "versions")
    print(toml_text({key: record[key] for key in shown if record[key]}))
    if built_from:
        print("it and what it was built from")
        print_artifacts(built_from)
    if command:
        commit, place = run.get("commit") or "unknown", run["arguments"].get("folder", "")
        print(
            f"\nTo build it again, at commit {commit.removesuffix('+')}, in the folder {place}:\n  {command}"
        )
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
def verify_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> int:
    """Read every file of artifacts, by default of all, and print which are damaged, missing or extra.

    The exit status is 1 if some are.
    """
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import unreadable_records, verify

    store = store_of(workspace)
    found = [find_artifact(name, workspace) for name in artifacts] or store.all()
    problems = list(chain([] if artifacts else unreadable_records(store.root), verify(found)))
    print_rows([problem._asdict() for problem in problems])
    files = sum(len(record.get("contents", {})) for _, record in found)
    counts = ", ".join(
        f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items()
    )
    print(f"{len(found)} artifacts, {files} files: {counts or 'as recorded'}")
    if problems:
        print(
            "`alpro artifacts rm` removes an artifact, and the next run that needs it builds it again"
        )
    return 1 if problems else 0


@group.command(name="rm")
def remove_artifacts(
    artifact: Artifact, /, *more: Artifact, workspace: Workspace = WORKSPACE
) -> None:
    """Remove artifacts, or what an interrupted stage left."""
    store, folders = store_of(workspace), dict[Path, None]()
    interrupted = store.unfinished()
    for name in (artifact, *more):
        named = [folder for folder in interrupted if name in (folder.name, str(folder))]
        folders[named[0] if named else find_artifact(name, workspace)[0]] = None
    store.remove(folders)
    print(*(f"removed {folder}" for folder in folders), sep="\n")


@group.command(name="gc")
def collect_garbage(
    *artifacts: Artifact, yes: bool = False, workspace: Workspace = WORKSPACE
) -> None:
    """List the artifacts that the newest one of each name, or those that are named, were not built from.

    What interrupted stages left, and links to other places, are only listed.

    Args:
        yes: Remove them.
    """
    store = store_of(workspace)
    unused = store.unreachable(
        [find_artifact(name, workspace)[1]["fingerprint"] for name in artifacts]
    )
    chosen = [(folder, record) for folder, record in unused if not store.is_elsewhere(folder)]
    for folder, _ in unused:
        if store.is_elsewhere(folder):
            print(f"elsewhere, stays: {folder}")
    for folder in store.unfinished():
        print(
            f"interrupted, stays; the same run continues it, `alpro artifacts rm {folder.name}` removes it: {folder}"
        )
    if not chosen:
        print("nothing to remove")
        return
    print_artifacts(chosen)
    if yes:
        store.remove([folder for folder, _ in chosen])
    print("removed" if yes else "add --yes to remove them")


@group.command(name="log")
def log_artifacts(
    artifact: Artifact,
    /,
    *more: Artifact,
    workspace: Workspace = WORKSPACE,
    tracking_uri: TrackingUri = "",
) -> None:
    """Log artifacts to MLflow again, or to another server.

    Each becomes a new run in the experiment of its configuration.
    """
    from alpro.pipeline.tracking.tracker import Tracker

    for name in (artifact, *more):
        folder, record = find_artifact(name, workspace)
        experiment = (
            record["run"]
            .get("arguments", {})
            .get("config", "alpro")
            .rpartition("/")[2]
            .removesuffix(".toml")
        )
        tracker = Tracker.open(tracking_uri, workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        if not run or tracker.warned:
            raise InputError(f"MLflow store {tracker.uri}: {record['name']} is not logged")
        print(
            f"{record['name']} {record['fingerprint'][:16]}: run {run} in the experiment {experiment}"
        )


@group.command(name="compare")
def compare_artifacts(
    first: Artifact,
    second: Artifact,
    /,
    *more: Artifact,
    out: File | None = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Compare evaluations score by score.

    Prints what differs in configuration, data, code and versions, and for each score that they have over the same
    queries the values, the difference of each to the first, its 95 % paired bootstrap interval, and the p value of a
    paired permutation test, by test video. Writes the same as a page.

    Args:
        out: The page; by default WORKSPACE/reports/compare-RUN-RUN.html.
    """
    from alpro.pipeline.reports.page import compared_runs, write_page
    from alpro.pipeline.reports.terminal import print_table

    artifacts = [find_artifact(name, workspace) for name in (first, second, *more)]
    tables = compared_runs(store_of(workspace), artifacts)
    for table in tables:
        print_table(table)
    names = [folder.name[:8] for folder, _ in artifacts]
    page = out or workspace / "reports" / f"compare-{'-'.join(names)}.html"
    print(f"page: {write_page(page, ' and '.join(names), tables=tables)}", file=sys.stderr)


def print_artifacts(found: Sequence[tuple[Path, Record]]) -> None:
    """Prints a line for each artifact, with its inputs; at the end the number and the size of all."""
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import size_of

    sizes = [size_of(folder) for folder, _ in found]
    print_rows(
        [
            {
                "fingerprint": record["fingerprint"][:16],
                "name": record["name"],
                "built": record["run"]["at"][:16].replace("T", " "),
                "seconds": round(record["run"]["seconds"]),
                "MB": f"{size / 1e6:,.1f}",
                "inputs": ", ".join(
                    f"{name} {source['fingerprint'][:8]}"
                    for name, source in record["inputs"].items()
                ),
            }
            for (_, record), size in zip(found, sizes, strict=True)
        ]
    )
    print(f"{len(found)} artifacts, {sum(sizes) / 1e6:,.1f} MB")
