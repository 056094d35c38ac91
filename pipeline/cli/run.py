"""`alpro run` and `alpro study`."""

import argparse
import atexit
import gc
import os
import signal
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.log import log
from alpro.pipeline.cli.arguments import (
    add_action,
    add_json,
    add_source_options,
    add_tracking_uri,
    add_verbosity,
    add_workspace,
    changes_of,
    nearest,
    print_json,
)
from alpro.pipeline.servers.checks import check_tracking_uri
from alpro.pipeline.servers.temporary import start_temporary_server
from alpro.stages import STAGES

if TYPE_CHECKING:
    from alpro.pipeline.plan.dag import Planned
    from alpro.pipeline.plan.step import Step
    from alpro.pipeline.store.artifacts import Store


def add_stage_commands(commands: Any) -> None:
    """The commands that run stages: all of them or one, and a study."""
    description = "Runs the pipeline: every stage that has no cached result, or one STAGE after its missing inputs."
    run_parser = add_action(commands, "run", run_pipeline, "run the whole pipeline, or one stage", "", description)
    text = f"only this stage (default: all): {', '.join(STAGES)}"
    run_parser.add_argument("stage", nargs="?", default="", metavar="STAGE", help=text)
    add_run_options(run_parser)
    study_parser = add_action(
        commands,
        "study",
        study_command,
        "run variants of a configuration with several seeds",
        description="Runs every variant of a study with every seed, and prints the mean of each score, its interval "
        "over the seeds, and the difference to the first variant. Results of stages are shared and cached.",
    )
    study_parser.add_argument("file", metavar="NAME_OR_FILE", help="a shipped study, or a TOML file")
    add_run_options(study_parser, default="of the study")


def add_run_options(command: argparse.ArgumentParser, default: str = "sample; with --data own_videos") -> None:
    """default: what --config is if it is not given, in words."""
    command.add_argument(
        "--config",
        default="",
        metavar="NAME_OR_FILE",
        help="a shipped configuration, or a TOML file; several joined by +, of which later ones complete and override "
        f"the earlier (default: {default})",
    )
    add_source_options(command)
    command.add_argument(
        "--dry-run", action="store_true", help="only print which stages would run, and which are cached"
    )
    add_json(command)
    add_workspace(command, "folder of artifacts, reports and the MLflow store")
    add_tracking_uri(command)
    add_verbosity(command)


def run_pipeline(arguments: argparse.Namespace) -> None:
    """`alpro run`."""
    if arguments.stage and arguments.stage not in STAGES:
        raise InputError(f"no stage {arguments.stage}{nearest(arguments.stage, STAGES)}")
    if not arguments.config:
        arguments.config = "own_videos" if arguments.data else "sample"
        if arguments.data:
            log.info(
                "configuration: own_videos, small models from random weights for a first look, not for results; "
                "--config from_clip takes a pre-trained CLIP, --config from_weights an ALPRO"
            )
    workspace = prepare_run(arguments)
    from alpro.pipeline.config.pipeline_config import skips_questions
    from alpro.pipeline.plan.dag import planned
    from alpro.pipeline.plan.steps import check_files, check_test_items
    from alpro.pipeline.reports.page import finished_steps, report_file
    from alpro.pipeline.reports.terminal import print_results

    stage, config, data, changes = arguments.stage, arguments.config, arguments.data, arguments.changes
    plan = planned(stage, config, data, changes, workspace)  # reports errors before anything starts
    _, steps, store = plan
    if data and not stage and skips_questions(config, changes, plan[0]):
        log.warning(f"no questions in {data}: question answering is skipped")
    if arguments.dry_run:
        rows = plan_rows(steps, store)
        (print_json if arguments.json else print_plan)(rows)
        check_files(steps, store)  # the exit status is that of the run
        return
    check_files(steps, store)
    check_test_items(*plan)
    if stage:
        log.info(f"configuration: {config}{f', with --data {data}' if data else ''}")
    report = report_file(workspace, plan[0], steps)
    existing = [] if arguments.tracking_uri else finished_steps(plan, report)
    if existing:
        log.info("every artifact exists: no run was started")
        folders = {step.name: str(store.folder(step)) for step in existing}
    else:
        folders = run_flow(arguments, plan)
    print_results({name: Path(folder) for name, folder in folders.items()}, workspace, report, arguments.json)


def run_flow(arguments: argparse.Namespace, plan: "Planned") -> dict[str, str]:
    """Runs a plan as a Prefect flow. Returns the folder of each artifact."""
    server = start_temporary_server()
    from alpro.pipeline.flows import flow  # imports Prefect and MLflow; meanwhile the server starts
    from alpro.pipeline.tracking.tracker import Tracker

    root, uri = arguments.workspace.resolve(), arguments.tracking_uri
    if server:
        # The database of a new MLflow store is created while the server creates its own.
        Tracker.open(uri, root, plan[0].name)
        server.wait()
    parameters = {name: getattr(arguments, name) for name in ("config", "data", "changes", "stage")}
    return flow.start(plan, parameters, root, uri)


def prepare_run(arguments: argparse.Namespace) -> Path:
    """Creates the workspace and sets Prefect's environment. Call before Prefect is imported."""
    check_tracking_uri(arguments.tracking_uri)
    workspace = arguments.workspace.resolve()
    arguments.changes = changes_of(arguments)
    create_workspace(workspace, check_writable=not arguments.dry_run)
    prepare_prefect(workspace / "prefect")
    tracking_uri = arguments.tracking_uri or workspace / "mlflow.db"
    log.debug(f"workspace {workspace}, MLflow {tracking_uri}")
    # Python would look for cycles among half a million objects before it exits: 3.0 s instead of 0.3 s.
    atexit.register(gc.freeze)
    return workspace


def study_command(arguments: argparse.Namespace) -> None:
    """`alpro study`."""
    workspace = prepare_run(arguments)
    server = None if arguments.dry_run else start_temporary_server()
    from alpro.pipeline.studies.study import load_study, members_of, run_study, work_left

    loaded, data = load_study(arguments.file), arguments.data
    config = arguments.config or loaded.config
    members = members_of(loaded, config, data, arguments.changes, workspace)
    if arguments.dry_run:
        work = work_left(members)
        if arguments.json:
            print_json(work)
            return
        for name, counts in work.items():
            print(f"{name:24} {counts['to_run']:4} to run {counts['cached']:4} cached")
        to_run, cached = (sum(counts[key] for counts in work.values()) for key in ("to_run", "cached"))
        print(f"{len(members)} runs: {to_run} stage runs to do, {cached} cached")
        return
    if server:
        server.wait()
    from alpro.pipeline.reports.terminal import print_line, print_table
    from alpro.stages.execution.interface import StageFailed, Stopped

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("the study was stopped")

    before = signal.signal(signal.SIGTERM, stop)  # between two flows, and after Prefect has ended one
    try:
        table, file, failed = run_study(loaded, members, config, data, workspace, arguments.tracking_uri)
    finally:
        signal.signal(signal.SIGTERM, before)
    if arguments.json:
        print(file.read_text("utf-8"))
    elif table:
        print_table(table)
    if not arguments.json:
        print_line(f"all scores: {file}" if table else "no scores: no run evaluated a model")
    if failed:
        raise StageFailed(f"{len(failed)} of {len(members)} runs failed: {', '.join(failed)}")


def plan_rows(steps: "list[Step]", store: "Store") -> list[dict[str, str]]:
    """For each step, whether its artifact exists, and if not, why it has to be built."""
    from alpro.pipeline.plan.steps import reason, required

    wanted = required(steps, store)
    rows = []
    for step in steps:
        why = ""
        if store.find(step):
            state = "cached"
        elif step.blocked:
            state, why = "blocked", step.blocked
        elif step in wanted:
            state, why = "to run", reason(step, store)
        else:
            state = "not needed"
        fingerprint = "" if step.blocked else step.fingerprint  # unknown without the files
        rows.append({"state": state, "name": step.name, "fingerprint": fingerprint, "reason": why})
    return rows


def print_plan(rows: list[dict[str, str]]) -> None:
    for row in rows:
        print(f"{row['state']:10} {row['name']:24} {row['fingerprint'][:16]:16}  {row['reason']}".rstrip())


def create_workspace(folder: Path, check_writable: bool) -> None:
    """Creates the workspace. Raises InputError if that fails, or if a file cannot be created in it."""
    home = folder / "prefect"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for place in (folder, home) if check_writable else ():
            TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError(f"--workspace {folder}: {error.strerror}") from error


def prepare_prefect(home: Path) -> None:
    """Sets Prefect's environment for a command. Without PREFECT_API_URL the command has a temporary server, with its
    files in `home`. Call before Prefect is imported: it reads its environment then."""
    os.environ["ALPRO_COMMAND_LINE"] = "1"
    # `execute` reports errors; Prefect's log would repeat them and every line of progress.
    for name in ("LOGGING_LEVEL", "LOGGING_INTERNAL_LEVEL", "SERVER_LOGGING_LEVEL"):
        os.environ.setdefault(f"PREFECT_{name}", "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(home))
