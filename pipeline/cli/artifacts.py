"""`alpro artifacts ...` and `alpro compare`: they read the artifacts of a workspace and run no stage."""

import argparse
import shlex
import sys
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
    from alpro.pipeline.store.artifacts import Store


def add_artifact_commands(commands: Any) -> None:
    """`alpro artifacts ...`: the commands about the artifacts of a workspace."""
    actions = add_group(commands, "artifacts", "list, show, verify and remove artifacts")
    listing = add_action(actions, "ls", "list the artifacts, their inputs and their users")
    show = add_action(actions, "show", "show one artifact: configuration, inputs, counts, metrics")
    lineage = add_action(
        actions, "lineage", "show everything that an artifact was built from, and the command that builds it again"
    )
    verify = add_action(
        actions, "verify", "read every file of artifacts, and print which are damaged, missing or extra"
    )
    collect = add_action(actions, "gc", "list the artifacts that no run in MLflow needs, and with --yes remove them")
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
    listing.set_defaults(run=list_artifacts)
    show.set_defaults(run=show_artifact)
    lineage.set_defaults(run=show_lineage)
    verify.set_defaults(run=verify_artifacts)
    collect.set_defaults(run=collect_garbage)


def add_compare(commands: Any) -> None:
    """`alpro compare`."""
    parser: argparse.ArgumentParser = add_action(
        commands,
        "compare",
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
    parser.set_defaults(run=compare_artifacts)


def store_of(arguments: argparse.Namespace) -> "Store":
    from alpro.pipeline.store.artifacts import Store

    return Store(arguments.workspace / "artifacts")


def list_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro artifacts ls`. JSON: a list of the artifacts, oldest first."""
    from alpro.pipeline.cli.listings import print_artifacts, users_of
    from alpro.pipeline.store.lineage import sizes_once

    store = store_of(arguments)
    if not arguments.json:
        print_artifacts(store)
        return
    artifacts = list(store.all())
    sizes = sizes_once([folder for folder, _ in artifacts])
    users = users_of(record for _, record in artifacts)
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


def show_artifact(arguments: argparse.Namespace) -> None:
    """`alpro artifacts show`. JSON: the record, with its folder and its users."""
    from alpro.pipeline.cli.listings import print_artifact, users_of

    store = store_of(arguments)
    folder, record = find_artifact(arguments.artifact, arguments.workspace)
    if not arguments.json:
        print_artifact(store, folder, record)
        return
    users = users_of(other for _, other in store.all()).get(record["fingerprint"], [])
    print_json({"folder": str(folder), **record, "used_by": [user["fingerprint"] for user in users]})


def show_lineage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts lineage`. JSON: the records with their folders, inputs first, and the command."""
    from alpro.pipeline.cli.listings import command_of, print_lineage
    from alpro.pipeline.store.lineage import lineage

    store = store_of(arguments)
    artifacts = lineage(store, find_artifact(arguments.artifact, arguments.workspace)[1])
    if not arguments.json:
        print_lineage(artifacts)
        return
    command = command_of(artifacts[-1][1])
    listed = [{"folder": str(folder), **record} for folder, record in artifacts]
    print_json({"artifacts": listed, "command": shlex.join(command) if command else None})


def verify_artifacts(arguments: argparse.Namespace) -> int:
    """`alpro artifacts verify`. Returns 1 if a file of an artifact is damaged, missing or extra. JSON: a list of the
    files that are not as recorded."""
    from alpro.pipeline.cli.listings import print_problems
    from alpro.pipeline.store.checksums import unreadable_records, verify

    store = store_of(arguments)
    artifacts = [find_artifact(name, arguments.workspace) for name in arguments.artifacts] or list(store.all())
    unreadable = [] if arguments.artifacts else unreadable_records(store.root)
    problems = chain(unreadable, verify(artifacts))
    if not arguments.json:
        return 1 if print_problems(artifacts, problems) else 0
    rows = [{**vars(problem), "folder": str(problem.folder)} for problem in problems]
    print_json(rows)
    return 1 if rows else 0


def collect_garbage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts gc`. Deleting a run in MLflow is how a person says that it is no longer needed."""
    from alpro.pipeline.cli.listings import print_occupied, print_unneeded
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
    files, before = leftovers(arguments.workspace, known - needed), occupied(arguments.workspace)
    if arguments.yes:
        if active := running(uri):
            raise InputError(
                f"{active[0]} is running, and may need any artifact; run this command when it is done. A run whose "
                "machine is gone can be deleted in MLflow"
            )
        remove(store, items, files)
        if not arguments.tracking_uri:
            forget_deleted_runs(database)
    after = occupied(arguments.workspace) if arguments.yes else None
    if not arguments.json:
        print_unneeded(items, files, arguments.yes)
        print_occupied(before, after)
        return
    rows = [{"name": item.name, "folder": str(item.folder), "bytes": item.size} for item in items]
    sizes = {"before": before, "after": after}
    print_json({"removed": arguments.yes, "artifacts": rows, "files": [str(file) for file in files], "bytes": sizes})


def compare_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro compare`."""
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
