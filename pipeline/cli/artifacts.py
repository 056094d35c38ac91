"""`alpro artifacts ...`: the commands that read the artifacts of a workspace and run no stage."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.names import config_name, find_artifact, index_folders, kept_by_name
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Artifact,
    File,
    Json,
    TrackingUri,
    Workspace,
    Yes,
    print_json,
    toml_text,
)
from alpro.stages import EVALUATIONS

if TYPE_CHECKING:
    from alpro.pipeline.store.artifacts import Store

group = App(name="artifacts", help="List, show, verify, compare and remove artifacts.")


def store_of(workspace: Path) -> "Store":
    from alpro.pipeline.store.artifacts import Store

    return Store(workspace / "artifacts")


def check_exists(store: "Store") -> None:
    """Raises InputError if a workspace has no store: another one was probably meant."""
    if not store.root.is_dir():
        raise InputError(f"{store.root}: no artifacts; --workspace names the folder that has them")


@group.command(name="ls")
def list_artifacts(*, json: Json = False, workspace: Workspace = WORKSPACE) -> None:
    """List the artifacts and their inputs, oldest first."""
    found = store_of(workspace).all()

    if json:
        from alpro.pipeline.store.checksums import size_of

        rows = []
        for folder, record in found:
            rows.append({"folder": str(folder), "bytes": size_of(folder), **record.values})
        print_json(rows)
    elif not found:
        print(f"no artifacts in {workspace / 'artifacts'}; `alpro run` creates them")
    else:
        print_artifacts(found)


@group.command(name="show")
def show_artifact(artifact: Artifact, /, *, workspace: Workspace = WORKSPACE) -> None:
    """Show an artifact, what it was built from, and the command that builds it again."""
    folder, record = find_artifact(artifact, workspace)
    built_from = store_of(workspace).lineage(record)

    run = record.run
    # A "+" at its end: the checkout had changes that were not committed.
    commit = run.get("commit") or "unknown"
    if command := shlex.join(command_of(record)):
        print(f"{command}\n  in the folder {run['arguments'].get('folder', '')}", end="")
        print(f", at commit {commit.removesuffix('+')}", end="")
        print(", which lacks changes of the checkout" if commit.endswith("+") else "")

    print(f"\n{record.name}  {folder}\nfingerprint {record.fingerprint}")
    print(f"built {run['at']}, MLflow run {run.get('mlflow_run')}")
    if score := score_of(record):
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


def command_of(record: Record) -> list[str]:
    """The command that builds an artifact; empty if its record has none."""
    if not (arguments := record.run.get("arguments")):
        return []

    words = ["alpro", "run", record.stage, "--config", arguments["config"]]
    words += ["--data", arguments["data"]] if arguments["data"] else []
    return words + [word for change in arguments["changes"] for word in ("--set", change)]


@group.command(name="verify")
def verify_artifacts(*artifacts: Artifact, workspace: Workspace = WORKSPACE) -> int:
    """Read every file of artifacts and print which are damaged, missing or extra.

    The exit status is 1 if some are.
    """
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import unreadable_records, verify

    store = store_of(workspace)
    found = [find_artifact(name, workspace) for name in artifacts] or store.all()
    if not found:
        check_exists(store)
    # Records that cannot be read count as unfinished, so `store.all` lacks them.
    problems = list(chain([] if artifacts else unreadable_records(store.root), verify(found)))
    print_rows([problem._asdict() for problem in problems])

    files = sum(len(record.contents) for _, record in found)
    counts = ", ".join(
        f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items()
    )
    print(f"{len(found)} artifacts, {files} files: {counts or 'as recorded'}")

    if problems:
        print(
            "`alpro artifacts rm` removes an artifact, and the next run that needs it builds it "
            "again"
        )
    return 1 if problems else 0


@group.command(name="rm")
def remove_artifacts(
    artifact: Artifact, /, *more: Artifact, yes: Yes = False, workspace: Workspace = WORKSPACE
) -> None:
    """Remove artifacts, or what an interrupted stage left. Asks before it does.

    Args:
        yes: Remove them without a question.
    """
    store = store_of(workspace)
    interrupted = store.unfinished()
    folders = dict[Path, None]()
    for name in (artifact, *more):
        # Unfinished work has no record by which `find_artifact` could find it.
        named = [folder for folder in interrupted if is_named(folder, name)]
        folders[named[0] if named else find_artifact(name, workspace)[0]] = None

    print_dependents(store, list(folders))
    confirm(f"remove {', '.join(map(str, folders))}?", yes)
    store.remove(folders)
    print(*(f"removed {folder}" for folder in folders), sep="\n")


def is_named(folder: Path, name: str) -> bool:
    """Whether a name is that of a folder, or a path of it."""
    return name == folder.name or Path(name).resolve() == folder.resolve()


def print_dependents(store: "Store", folders: Sequence[Path]) -> None:
    """Prints the names of the artifacts that were built from some that are about to be removed."""
    removed = {folder.resolve() for folder in folders}
    built = []
    for folder, record in store.all():
        # The last of a lineage is the artifact itself.
        sources = {source.resolve() for source, _ in store.lineage(record)[:-1]}
        if folder.resolve() not in removed and sources & removed:
            built.append(f"{record.name} {record.fingerprint[:8]}")

    if built:
        print(f"built from what is removed, and stays: {', '.join(built)}")


def confirm(question: str, yes: bool) -> None:
    """Asks at a terminal whether to go on. Raises InputError if the answer is no, and where nobody
    can answer."""
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
    """List the artifacts that nothing which is in use was built from.

    In use is what a STAGE or CONFIG/STAGE stands for, or only what is named here; and always the
    models of indexes and of MLflow's registry. What interrupted stages left, and links to other
    places, are only listed.

    Args:
        yes: Remove them.
    """
    from alpro.inference.index import indexed_fingerprints

    store = store_of(workspace)
    check_exists(store)
    named = {find_artifact(name, workspace)[1].fingerprint for name in artifacts}

    kept = named or kept_by_name(workspace)
    # The model of an index embeds the text of each search.
    kept |= indexed_fingerprints(index_folders(workspace))
    kept |= registered(workspace)

    unused = store.unreachable(kept)
    # Other workspaces may use what a link leads to.
    chosen = [(folder, record) for folder, record in unused if not store.is_elsewhere(folder)]

    for folder, _ in unused:
        if store.is_elsewhere(folder):
            print(f"elsewhere, stays: {folder}")
    for folder in store.unfinished():
        print(
            f"interrupted, stays; the same run continues it, `alpro artifacts rm {folder.name}` "
            f"removes it: {folder}"
        )

    if not chosen:
        print("nothing to remove")
        return

    print_artifacts(chosen)
    if yes:
        store.remove([folder for folder, _ in chosen])
    print("removed" if yes else "add --yes to remove them")


def registered(workspace: Path) -> set[str]:
    """The fingerprints of the models in the registry of a workspace's MLflow store, if it has
    one."""
    database = workspace.resolve() / "mlflow.db"
    # MLflow would create a store that is not there.
    if not database.is_file():
        return set()

    from alpro.pipeline.tracking.registry import registered_fingerprints

    return registered_fingerprints(f"sqlite:///{database}")


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
            record.run.get("arguments", {})
            .get("config", "alpro")
            .rpartition("/")[2]
            .removesuffix(".toml")
        )

        tracker = Tracker.open(tracking_uri, workspace.resolve(), experiment)
        run = tracker.log_artifact(folder.resolve(), record)
        # A tracker only warns, so that a run goes on without MLflow.
        if not run or tracker.warned:
            raise InputError(f"MLflow store {tracker.uri}: {record.name} is not logged")
        print(f"{record.name} {record.fingerprint[:16]}: run {run} in the experiment {experiment}")


@group.command(name="compare")
def compare_artifacts(
    *artifacts: Artifact, out: File | None = None, workspace: Workspace = WORKSPACE
) -> None:
    """Compare evaluations score by score; by default the last two.

    Prints what differs in configuration, data, code and versions, and for each score that they have
    over the same queries the values, the difference of each to the first, its 95 % paired bootstrap
    interval, and the p value of a paired permutation test, by test video. Writes the same as a
    page.

    Args:
        out: The page; by default WORKSPACE/reports/compare-RUN-RUN.html.
    """
    from alpro.pipeline.reports.page import compared_runs, comparison_page
    from alpro.pipeline.reports.terminal import print_table

    if len(artifacts) == 1:
        raise InputError(f"{artifacts[0]}: name two or more, or none for the last two evaluations")
    found = [find_artifact(name, workspace) for name in artifacts] or last_two(workspace)

    fingerprints = [record.fingerprint for _, record in found]
    for (_, record), count in zip(found, map(fingerprints.count, fingerprints), strict=True):
        if count > 1:
            raise InputError(
                f"{record.name} {record.fingerprint[:8]}: the same artifact twice; name two "
                f"different ones, or "
                "none for the last two evaluations"
            )

    compared = compared_runs(store_of(workspace), found)
    for table in compared.tables:
        print_table(table)
    for sentence in compared.verdicts:
        print(sentence)

    names = [folder.name[:8] for folder, _ in found]
    page = out or workspace / "reports" / f"compare-{'-'.join(names)}.html"
    print(f"page: {comparison_page(page, compared)}", file=sys.stderr)


def last_two(workspace: Path) -> list[tuple[Path, Record]]:
    """The last two evaluations of the same stage, the older first. Raises InputError if there are
    not two."""
    found = [
        (folder, record)
        for folder, record in store_of(workspace).all()
        if record.stage in EVALUATIONS
    ]

    # The stage that was evaluated last comes first.
    for stage in dict.fromkeys(record.stage for _, record in reversed(found)):
        same = [(folder, record) for folder, record in found if record.stage == stage]
        if len(same) > 1:
            return same[-2:]
    raise InputError(f"{workspace / 'artifacts'}: no two evaluations of one stage to compare")


def print_artifacts(found: Sequence[tuple[Path, Record]]) -> None:
    """Prints a line for each artifact, with its inputs; at the end the number and the size of
    all."""
    from alpro.pipeline.reports.terminal import print_rows
    from alpro.pipeline.store.checksums import size_of

    sizes = [size_of(folder) for folder, _ in found]
    lines = []
    for (_, record), size in zip(found, sizes, strict=True):
        inputs = (f"{name} {source.fingerprint[:8]}" for name, source in record.inputs.items())
        lines.append(
            {
                "fingerprint": record.fingerprint[:16],
                "name": record.name,
                "built": record.run["at"][:16].replace("T", " "),
                "seconds": round(record.run["seconds"]),
                "MB": f"{size / 1e6:,.1f}",
                "score": score_of(record),
                "changes": changes_of(record),
                "inputs": ", ".join(inputs),
            }
        )

    print_rows(lines)
    print(f"{len(found)} artifact{'s' * (len(found) != 1)}, {sum(sizes) / 1e6:,.1f} MB")


def changes_of(record: Record) -> str:
    """The configuration of the run that built an artifact, with what was changed."""
    arguments = record.run.get("arguments") or {}
    changes = arguments.get("changes", ())
    return " ".join([config_name(arguments.get("config", "")), *changes]).strip()


def score_of(record: Record) -> str:
    """The score of an artifact that a person looks at first: of an evaluation on its split, of a
    training on the validation split; empty without one."""
    from alpro.stages.evaluation.score_names import HEADLINES, VALIDATION_SCORES

    metrics = record.metrics
    # The names of an evaluation's metrics start with its split.
    evaluated = (
        {name.partition("/")[2]: value for name, value in metrics.items()}
        if record.stage in EVALUATIONS
        else {}
    )

    shown = [
        f"{short.replace('_', ' ')} {evaluated[name]:.1f}"
        for short, name in HEADLINES.items()
        if name in evaluated
    ]

    validated = [
        f"{short} {metrics[name]:.1f}"
        for name, short in VALIDATION_SCORES.items()
        if name in metrics and record.stage not in EVALUATIONS
    ]
    return ", ".join(shown[:2] or validated[:1])
