"""`alpro artifacts ...`: commands that read the artifacts of a workspace and run no stage."""

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.names import find_artifact, referenced_fingerprints
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Artifact,
    Json,
    TrackingUri,
    Workspace,
    Yes,
    print_json,
    toml_text,
)
from alpro.pipeline.config.command import Command, concerns, data_changes
from alpro.stages import CORPUS_STAGES, EVALUATIONS

if TYPE_CHECKING:
    from alpro.pipeline.store.snapshot import Snapshot

group = App(name="artifacts", help="List, show, verify, compare and remove artifacts.")


def read_store(workspace: Path) -> "Snapshot":
    from alpro.pipeline.store.snapshot import Snapshot

    return Snapshot(workspace / "artifacts")


def check_exists(snapshot: "Snapshot") -> None:
    """Raise InputError if a workspace has no store: another one was probably meant."""
    if not snapshot.root.is_dir():
        raise InputError(
            f"{snapshot.root}: no artifacts; --workspace names the folder that has them"
        )


@group.command(name="ls")
def list_artifacts(*, json: Json = False, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts and their inputs, oldest first."""
    from alpro.pipeline.store.checksums import measure_folder

    artifacts = read_store(workspace).artifacts
    if json:
        rows = []
        for folder, record in artifacts:
            size = {"folder": str(folder), "bytes": measure_folder(folder)}
            rows.append({**size, **record.values})
        print_json(rows)
    elif not artifacts:
        print(f"no artifacts in {workspace / 'artifacts'}; `alpro run` creates them")
    else:
        print_artifacts(artifacts)


@group.command(name="show")
def show_artifact(artifact: Artifact, /, *, workspace: Workspace = WORKSPACE) -> None:
    """Show an artifact, what it was built from, and the command that builds it again."""
    folder, record = find_artifact(artifact, workspace)
    built_from = read_store(workspace).lineage(record)
    run = record.run

    command = command_of(record)
    if command:
        # A "+" at its end: the checkout had changes that were not committed.
        commit = run.get("commit") or "unknown"
        lacks = ", which lacks changes of the checkout" if commit.endswith("+") else ""
        print(shlex.join(["alpro", *command.words]))
        print(f"  in the folder {run['arguments'].get('folder', '')}", end="")
        print(f", at commit {commit.removesuffix('+')}{lacks}")

    print(f"\n{record.name}  {folder}\nfingerprint {record.fingerprint}")
    print(f"built {run['at']}, MLflow run {run.get('mlflow_run')}")
    if score := headline(record):
        print(f"score: {score}")
    if built_from:
        print("\nit and what it was built from")
        print_artifacts(built_from)

    # An evaluation's counts are the queries of each score, which `compare` and the report show.
    shown = {"config": record.config, "files": record.files, "metrics": record.metrics}
    if record.stage not in EVALUATIONS:
        shown["counts"] = record.counts
    shown["versions"] = record.versions
    print()
    print(toml_text({key: values for key, values in shown.items() if values}), end="")


def command_of(record: Record) -> Command | None:
    """Return the command that builds an artifact; None if its record has none."""
    arguments = record.run.get("arguments")
    if not arguments:
        return None
    changes = data_changes(arguments.get("data", ""), arguments["changes"])
    return Command(arguments["config"], changes, record.stage)


@group.command(name="verify")
def verify_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> int:
    """Read every file of artifacts and print which are damaged, missing or extra.

    The exit status is 1 if some are.
    """
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import unreadable_records, verify

    snapshot = read_store(workspace)
    chosen = [find_artifact(name, workspace) for name in artifacts] or snapshot.artifacts
    if not chosen:
        check_exists(snapshot)
    # Records that cannot be read count as unfinished, so the snapshot lacks them.
    unreadable = [] if artifacts else unreadable_records(snapshot.root)
    problems = list(chain(unreadable, verify(chosen)))
    print_rows([problem._asdict() for problem in problems])

    files = sum(len(record.contents) for _, record in chosen)
    kinds = Counter(problem.kind for problem in problems)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{len(chosen)} artifacts, {files} files: {counts or 'as recorded'}")
    if not problems:
        return 0

    print("`alpro artifacts rm` removes an artifact; the next run that needs it builds it again")
    return 1


@group.command(name="rm")
def remove_artifacts(
    artifact: Artifact, /, *more: Artifact, yes: Yes = False, workspace: Workspace = WORKSPACE
) -> None:
    """Remove artifacts, or what an interrupted stage left. Asks before it does.

    Args:
        yes: Remove them without a question.
    """
    from alpro.pipeline.store.artifacts import Store

    snapshot = read_store(workspace)
    interrupted = snapshot.unfinished()
    folders = dict[Path, None]()
    for name in (artifact, *more):
        # Unfinished work has no record by which `find_artifact` could find it.
        named = [folder for folder in interrupted if is_named(folder, name)]
        folders[named[0] if named else find_artifact(name, workspace)[0]] = None

    users = [
        f"{record.name} {record.fingerprint[:8]}"
        for _, record in snapshot.dependents(folders.keys())
    ]
    if users:
        print(f"built from what is removed, and stays: {', '.join(users)}")
    confirm(f"remove {', '.join(map(str, folders))}?", yes)
    Store(snapshot.root).remove(folders)
    print(*(f"removed {folder}" for folder in folders), sep="\n")
    if any(folder.parent.name in CORPUS_STAGES for folder in folders):
        print("its units stay, so that it can be made again; `alpro artifacts gc` removes them")


def is_named(folder: Path, name: str) -> bool:
    """Return whether a name is that of a folder, or a path of it."""
    return name == folder.name or Path(name).resolve() == folder.resolve()


def confirm(question: str, yes: bool) -> None:
    """Ask at a terminal whether to go on. Raise InputError if the answer is no, or if there is no
    terminal."""
    if yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise InputError(f"{question} Add --yes")

    answer = input(f"{question} [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError("nothing was removed")


@group.command(name="gc")
def collect_garbage(
    *artifacts: Artifact, yes: Yes = False, workspace: Workspace = WORKSPACE
) -> None:
    """List the artifacts that nothing which is in use was built from, and the decoded units that no
    corpus is made of.

    In use is what a STAGE or CONFIG/STAGE stands for, or only what is named here; and always the
    models of indexes and of MLflow's registry. What interrupted stages left, and links to other
    places, are only listed.

    Args:
        yes: Remove them.
    """
    from alpro.inference.index import indexed_fingerprints
    from alpro.pipeline.store.artifacts import Store
    from alpro.stages.corpora.units import find_unused

    snapshot = read_store(workspace)
    store = Store(snapshot.root)
    check_exists(snapshot)
    named = {find_artifact(name, workspace)[1].fingerprint for name in artifacts}

    used = named or referenced_fingerprints(workspace)
    if not used:  # such as artifacts that were copied here
        raise InputError(
            f"{workspace}: no STAGE stands for an artifact; name the artifacts to keep"
        )
    # The model of an index embeds the text of each search.
    used |= indexed_fingerprints(workspace)
    used |= registered(workspace)

    chosen = []
    for folder, record in snapshot.unreachable(used):
        # Other workspaces may use what a link leads to.
        if store.is_elsewhere(folder):
            print(f"elsewhere, stays: {folder}")
        else:
            chosen.append((folder, record))
    for folder in snapshot.unfinished():
        print(
            f"interrupted, stays; the same run continues it, `alpro artifacts rm {folder.name}` "
            f"removes it: {folder}"
        )

    folders = [folder for folder, _ in chosen]
    units = find_unused(workspace, removed=folders)
    if not folders and not units:
        print("nothing to remove")
        return

    if folders:
        print_artifacts(chosen)
    if units:
        size = sum(path.stat().st_size for unit in units for path in unit.iterdir())
        print(f"{len(units)} units that no corpus is made of: {size / 2**20:,.1f} MiB")
    if yes:
        store.check_idle()
        store.remove(folders)
        for unit in units:
            shutil.rmtree(unit)
    print("removed" if yes else "add --yes to remove them")


def registered(workspace: Path) -> set[str]:
    """Return the fingerprints of the models in the registry of a workspace's MLflow store, if it
    has one."""
    database = workspace.resolve() / "mlflow.db"
    # MLflow would create a store that is not there.
    if not database.is_file():
        return set()

    from alpro.pipeline.tracking.registry import registered_fingerprints

    return registered_fingerprints(f"sqlite:///{database}")


@group.command(name="log")
def log_artifacts(
    *artifacts: Artifact, workspace: Workspace = WORKSPACE, tracking_uri: TrackingUri = ""
) -> None:
    """Log artifacts to MLflow again, or to another server; by default all of them.

    Each becomes a new run in the experiment of its configuration.
    """
    from alpro.pipeline.tracking.tracker import Tracker

    named = [find_artifact(name, workspace) for name in artifacts]
    for folder, record in named or read_store(workspace).artifacts:
        command = command_of(record)
        experiment = command.config_name if command else "alpro"

        tracker = Tracker.open(tracking_uri, workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        # A tracker only warns, so that a run goes on without MLflow.
        if not run or tracker.warnings:
            raise InputError(f"MLflow store {tracker.uri}: {record.name} is not logged")
        print(f"{record.name} {record.fingerprint[:16]}: run {run} in the experiment {experiment}")


@group.command(name="compare")
def compare_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> None:
    """Compare evaluations score by score; by default the last two.

    Prints what differs in configuration, data, code and versions, and for each score that they have
    over the same queries the values, the difference of each to the first, its 95 % paired bootstrap
    interval, and the p value of a paired permutation test, by test video.
    """
    from alpro.pipeline.reports.comparison import compare_runs
    from alpro.pipeline.reports.terminal import print_table

    if len(artifacts) == 1:
        raise InputError(f"{artifacts[0]}: name two or more, or none for the last two evaluations")
    snapshot = read_store(workspace)
    chosen = [find_artifact(name, workspace) for name in artifacts] or last_two(snapshot)

    counts = Counter(record.fingerprint for _, record in chosen)
    for _, record in chosen:
        if counts[record.fingerprint] > 1:
            raise InputError(
                f"{record.name} {record.fingerprint[:8]}: the same artifact twice; name two "
                "different ones, or none for the last two evaluations"
            )

    compared = compare_runs(snapshot, chosen)
    for table in compared.tables:
        print_table(table)
    for sentence in compared.verdicts:
        print(sentence)


def last_two(snapshot: "Snapshot") -> list[tuple[Path, Record]]:
    """Return the last two evaluations of the same model of a pipeline, the older first."""
    evaluated: dict[str, list[tuple[Path, Record]]] = {}
    for folder, record in reversed(snapshot.artifacts):
        if record.stage in EVALUATIONS:
            evaluated.setdefault(record.name, []).append((folder, record))

    # The model that was evaluated last comes first.
    for newest in evaluated.values():
        if len(newest) > 1:
            return [newest[1], newest[0]]
    raise InputError(f"{snapshot.root}: no two evaluations of one model to compare")


def print_artifacts(artifacts: Sequence[tuple[Path, Record]]) -> None:
    """Print a line for each artifact, with its inputs; at the end the number and the size of
    all."""
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import measure_folder

    lines = []
    total = 0
    for folder, record in artifacts:
        size = measure_folder(folder)
        total += size
        inputs = (f"{name} {source.fingerprint[:8]}" for name, source in record.inputs.items())
        lines.append(
            {
                "fingerprint": record.fingerprint[:16],
                "name": record.name,
                "built": record.run["at"][:16].replace("T", " "),
                "seconds": round(record.run["seconds"]),
                "MB": f"{size / 1e6:,.1f}",
                "score": headline(record),
                "changes": own_changes(record),
                "inputs": ", ".join(inputs),
            }
        )

    print_rows(lines)
    plural = "s" if len(artifacts) != 1 else ""
    print(f"{len(artifacts)} artifact{plural}, {total / 1e6:,.1f} MB")


def own_changes(record: Record) -> str:
    """Return the configuration of the run that built an artifact, with the changes of its stage."""
    command = command_of(record)
    if not command:
        return ""
    changes = [change for change in command.changes if concerns(change, record.name)]
    return " ".join([command.config_name, *changes])


def headline(record: Record) -> str:
    """Return the score of an artifact that a user looks at first: of an evaluation on its split, of
    a training on the validation split; empty without one."""
    from alpro.stages.evaluation.score_names import HEADLINES, VALIDATION_SCORES

    shown = []
    if record.stage in EVALUATIONS:
        # The names of an evaluation's metrics start with its split.
        metrics = {name.partition("/")[2]: value for name, value in record.metrics.items()}
        for short, name in HEADLINES.items():
            if name in metrics:
                label = short.rpartition("/")[2].replace("_", " ")
                shown.append(f"{label} {metrics[name]:.1f}")
        return ", ".join(shown[:2])

    for name, short in VALIDATION_SCORES.items():
        if name in record.metrics:
            shown.append(f"{short} {record.metrics[name]:.1f}")
    return ", ".join(shown[:1])
