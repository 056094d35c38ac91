"""`alpro artifacts ...`: commands that read the artifacts of a workspace and run no stage."""

import json
import shlex
import shutil
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from cyclopts import App

from alpro.artifact import RECORD, artifacts, check_artifact
from alpro.artifact import Artifact as Built
from alpro.errors import InputError
from alpro.inference.names import find_artifact, referenced_fingerprints
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Artifact,
    TrackingUri,
    Workspace,
)
from alpro.pipeline.config.command import command_of
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.score_names import main_score

group = App(name="artifacts", help="List, show, verify, compare and remove artifacts.")


def read_store(workspace: Path) -> list[Built]:
    """Return the artifacts of a workspace, oldest first. Raises InputError if it has no store:
    another one was probably meant."""
    root = workspace / "artifacts"
    if not root.is_dir():
        raise InputError(f"{root}: no artifacts; --workspace names the folder of a run")
    return artifacts(root)


def choose(names: Sequence[str], workspace: Path) -> list[Built]:
    """Return the artifacts that names stand for; without any, all of a workspace."""
    every = read_store(workspace)
    return [find_artifact(name, workspace) for name in names] or every


@group.command(name="ls")
def list_artifacts(*, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts, oldest first, with their scores and the run that built each."""
    print_artifacts(read_store(workspace))


@group.command(name="show")
def show_artifact(artifact: Artifact, /, *, workspace: Workspace = WORKSPACE) -> None:
    """Show an artifact, what it was built from, and the command that builds it again."""
    from alpro.pipeline.store.lineage import lineage

    folder, record = find_artifact(artifact, workspace)
    command = command_of(record)
    if command.config:
        print(shlex.join(command.words))
    print_artifacts(lineage(read_store(workspace), [record.fingerprint]))
    shown = {key: value for key, value in record.values.items() if key != "contents"}
    print(json.dumps({"folder": str(folder), **shown}, indent=1, ensure_ascii=False))


@group.command(name="verify")
def verify_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> int:
    """Read every file of artifacts and print which are damaged or missing.

    The exit status is 1 if some are.
    """
    from alpro.pipeline.store.checksums import verify

    if artifacts:
        chosen = [folder for folder, _ in choose(artifacts, workspace)]
    else:
        read_store(workspace)  # raises if the workspace does not exist
        # Also those whose record cannot be read.
        chosen = [
            record.parent
            for record in sorted(workspace.glob(f"artifacts/*/*/{RECORD}"))
        ]
    problems = [*verify(chosen)]

    for file in problems:
        print(f"damaged: {file}")
    print(f"{len(chosen)} artifacts: {len(problems)} problems")
    if problems:
        print("`alpro artifacts rm` removes one; the next run that needs it builds it")
    return int(bool(problems))


@group.command(name="rm")
def remove_artifacts(
    artifact: Artifact,
    /,
    *more: Artifact,
    yes: bool = False,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Remove artifacts. What was built from them stays.

    Args:
        yes: Remove them.
    """
    from alpro.pipeline.store.artifacts import Store

    chosen = dict(choose([artifact, *more], workspace))
    if not yes:
        raise InputError(f"remove {', '.join(map(str, chosen))}? Add --yes")
    Store(workspace / "artifacts").remove(chosen)
    print(*(f"removed {folder}" for folder in chosen), sep="\n")


@group.command(name="gc")
def collect_garbage(
    *,
    yes: bool = False,
    tracking_uri: TrackingUri = "",
    workspace: Workspace = WORKSPACE,
) -> None:
    """List the artifacts that nothing which is in use was built from, the decoded units that no
    corpus is made of, and the imported tables of earlier states of the data.

    In use are what a STAGE or CONFIG/STAGE stands for, and the models of indexes and of MLflow's
    registry. Links to other places stay, and what interrupted stages left, which is listed.

    Args:
        yes: Remove them.
    """
    from alpro.inference.index import find_indexed_models
    from alpro.pipeline.store.artifacts import Store
    from alpro.pipeline.store.lineage import lineage
    from alpro.shards.sources.manifest import find_outdated
    from alpro.stages.corpora.units import find_unused

    built = read_store(workspace)
    store = Store(workspace / "artifacts")
    used = referenced_fingerprints(workspace)
    if not used:  # such as artifacts that were copied here
        raise InputError(
            f"{workspace}: no STAGE stands for an artifact; `alpro artifacts rm` removes single ones"
        )
    # The model of an index embeds the text of each search. An index that is not there now may be on
    # a disk that is not mounted.
    used |= find_indexed_models(workspace)
    database = workspace.resolve() / "mlflow.db"
    # MLflow would create a store that is not there.
    if tracking_uri or database.is_file():
        from alpro.pipeline.tracking.registry import registered_fingerprints

        used |= registered_fingerprints(tracking_uri or f"sqlite:///{database}")

    kept = {folder for folder, _ in lineage(built, used)}
    # The last one first, so that users come before their inputs. Other workspaces may use what a
    # link leads to.
    chosen = [
        one
        for one in reversed(built)
        if one[0] not in kept and not store.is_elsewhere(one[0])
    ]
    folders = [folder for folder, _ in chosen]
    units = find_unused(workspace, removed=folders)
    manifests = find_outdated(workspace / "manifests")

    print_artifacts(chosen)
    print(
        f"{len(units)} units that no corpus is made of, {len(manifests)} outdated imports of data"
    )
    for folder in store.interrupted():
        print(f"{folder}: interrupted, stays until you delete it")
    if not yes:
        print("add --yes to remove them")
        return

    store.remove(folders)
    for folder in [*units, *manifests]:
        shutil.rmtree(folder)
    print("removed")


@group.command(name="log")
def log_artifacts(
    *artifacts: Artifact,
    workspace: Workspace = WORKSPACE,
    tracking_uri: TrackingUri = "",
) -> None:
    """Log artifacts to MLflow again, or to another server; by default all of them.

    Each becomes a new run in the experiment of its configuration.
    """
    from alpro.pipeline.tracking.tracker import Tracker

    for folder, record in choose(artifacts, workspace):
        check_artifact(folder)
        experiment = command_of(record).config_name or "alpro"
        tracker = Tracker.open(tracking_uri, workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        # A tracker only warns, so that a run goes on without MLflow.
        if not run or tracker.has_failed:
            raise InputError(f"MLflow store {tracker.uri}: {record.name} is not logged")
        print(
            f"{record.name} {record.fingerprint[:16]}: run {run} in the experiment {experiment}"
        )


@group.command(name="compare")
def compare_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> None:
    """Compare two evaluations score by score; by default the last two.

    Prints what differs in configuration, data, code and versions, and for each score that both have
    over the same queries the values, the difference of the second to the first, its 95 % paired
    bootstrap interval, and the p value of a paired permutation test, by test video.
    """
    from alpro.pipeline.reports.comparison import compare_runs
    from alpro.pipeline.reports.terminal import print_tables

    chosen = choose(artifacts, workspace)
    if not artifacts:
        evaluations = [one for one in chosen if one[1].stage in EVALUATIONS]
        kinds = [(record.name, record.config.get("split")) for _, record in evaluations]
        same = [kind == kinds[-1] for kind in kinds]
        chosen = [*compress(evaluations, same)][-2:]
    if not len(chosen) == len({record.fingerprint for _, record in chosen}) == 2:
        raise InputError(
            f"{workspace}: name two different evaluations, as `alpro artifacts ls` lists them, or "
            "none for the last two of one model and split"
        )

    print_tables(*compare_runs(read_store(workspace), *chosen))


def print_artifacts(listed: Sequence[Built]) -> None:
    """Print a line for each artifact; at the end the number and the size of all."""
    from alpro.pipeline.reports.columns import print_rows

    lines = []
    total = 0
    for _, record in listed:
        size = sum(file["size"] for file in record.contents.values())
        total += size
        command = command_of(record)
        lines.append(
            {
                "artifact": record.fingerprint[:8],
                "name": record.name,
                "built": record.run.get("at", "")[:16],
                "MB": f"{size / 1e6:,.1f}",
                "score": main_score(record.metrics),
                "run": " ".join([command.config_name, *command.changes]),
            }
        )

    print_rows(lines)
    print(f"{len(listed)} artifacts, {total / 1e6:,.1f} MB")
