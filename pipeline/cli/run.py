"""`alpro run` and `alpro study`."""

import atexit
import gc
import os
import signal
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.log import log, set_level
from alpro.pipeline.cli.options import RunOptions, Source, print_json
from alpro.pipeline.servers.checks import check_tracking_uri
from alpro.pipeline.servers.temporary import start_temporary_server
from alpro.stages import STAGES

if TYPE_CHECKING:
    from alpro.pipeline.plan.dag import Planned
    from alpro.pipeline.plan.steps import Step
    from alpro.pipeline.store.artifacts import Store


def run(stage: str = "", /, *, config: str = "", source: Source = Source(), options: RunOptions = RunOptions()) -> None:
    """Run the whole pipeline, or one stage.

    Runs every stage that has no cached result, or one STAGE after its missing inputs.

    Parameters
    ----------
    stage
        Only this stage; by default all of them.
    config
        A shipped configuration, or a TOML file. By default sample, with --data own_videos.
    """
    if stage and stage not in STAGES:
        close = get_close_matches(stage, STAGES, 1)
        hint = f"did you mean {close[0]}?" if close else f"the stages are {', '.join(STAGES)}"
        raise InputError(f"no stage {stage}; {hint}")
    if not config:
        config = "own_videos" if source.data else "sample"
        if source.data:
            log.info(
                "configuration: own_videos, small models from random weights for a first look, not for results; "
                "--config from_clip takes a pre-trained CLIP, --config from_weights an ALPRO"
            )
    changes, root = source.changes(options.workspace), prepare_run(options)
    from alpro.pipeline.config.pipeline_config import skips_questions
    from alpro.pipeline.plan.dag import planned
    from alpro.pipeline.plan.steps import check_files, check_test_items
    from alpro.pipeline.reports.page import finished_steps, report_file
    from alpro.pipeline.reports.terminal import print_results

    plan = planned(stage, config, source.data, changes, root)  # reports errors before anything starts
    _, steps, store = plan
    if source.data and not stage and skips_questions(config, changes, plan[0]):
        log.warning(f"no questions in {source.data}: question answering is skipped")
    if options.dry_run:
        rows = plan_rows(steps, store)
        (print_json if options.json else print_plan)(rows)
    check_files(steps, store)
    check_test_items(*plan)
    if options.dry_run:  # the exit status is that of the run
        return
    if stage:
        log.info(f"configuration: {config}{f', with --data {source.data}' if source.data else ''}")
    report = report_file(root, plan[0], steps)
    existing = [] if options.tracking_uri else finished_steps(plan, report)
    if existing:
        log.info("every artifact exists: no run was started")
        folders = {step.name: str(store.folder(step)) for step in existing}
    else:
        parameters = {"config": config, "data": source.data, "changes": changes, "stage": stage}
        folders = run_flow(plan, parameters, root, options.tracking_uri)
    print_results({name: Path(folder) for name, folder in folders.items()}, root, report, options.json)
    if stage == "train_prompter" and (clip := plan[0].train_prompter and plan[0].train_prompter.clip):
        log.info(
            f"for its test scores beside the CLIP as it is: alpro eval train_prompter decode_videos --baseline {clip}"
        )


def study(file: str, /, *, config: str = "", source: Source = Source(), options: RunOptions = RunOptions()) -> None:
    """Run variants of a configuration with several seeds.

    Runs every variant of a study with every seed, and prints the mean of each score, its interval over the seeds, and
    the difference to the first variant. Results of stages are shared and cached.

    Parameters
    ----------
    file
        A shipped study, or a TOML file.
    config
        The configuration, as of `alpro run`; by default that of the study.
    """
    changes, root = source.changes(options.workspace), prepare_run(options)
    server = None if options.dry_run else start_temporary_server()
    from alpro.pipeline.studies.study import load_study, members_of, run_study, work_left

    loaded = load_study(file)
    config = config or loaded.config
    members = members_of(loaded, config, source.data, changes, root)
    if options.dry_run:
        work = work_left(members)
        if options.json:
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
        table, scores, failed = run_study(loaded, members, config, source.data, root, options.tracking_uri)
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        print(scores.read_text("utf-8"))
    else:
        if table:
            print_table(table)
        print_line(f"all scores: {scores}" if table else "no scores: no run evaluated a model")
    if failed:
        raise StageFailed(f"{len(failed)} of {len(members)} runs failed: {', '.join(failed)}")


def run_flow(plan: "Planned", parameters: dict[str, Any], root: Path, tracking_uri: str) -> dict[str, str]:
    """Runs a plan as a Prefect flow. Returns the folder of each artifact."""
    server = start_temporary_server()
    from alpro.pipeline.flows import flow  # imports Prefect and MLflow; meanwhile the server starts
    from alpro.pipeline.tracking.tracker import Tracker

    if server:
        # The database of a new MLflow store is created while the server creates its own.
        Tracker.open(tracking_uri, root, plan[0].name)
        server.wait()
    return flow.start(plan, parameters, root, tracking_uri)


def prepare_run(options: RunOptions) -> Path:
    """Creates the workspace and sets Prefect's environment; returns its absolute path. Call before Prefect is
    imported."""
    if options.quiet or options.verbose:
        set_level("WARNING" if options.quiet else "DEBUG")
    check_tracking_uri(options.tracking_uri)
    root = options.workspace.resolve()
    create_workspace(root, check_writable=not options.dry_run)
    prepare_prefect(root / "prefect")
    log.debug(f"workspace {root}, MLflow {options.tracking_uri or root / 'mlflow.db'}")
    # Python would look for cycles among half a million objects before it exits: 3.0 s instead of 0.3 s.
    atexit.register(gc.freeze)
    return root


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
    if "?" in str(folder):  # the address of a database ends there
        raise InputError(f"--workspace {folder}: the path contains a question mark; choose another folder")
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
