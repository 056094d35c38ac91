"""`alpro run` and `alpro study`."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alpro.environment import outside_current_folder
from alpro.log import FILE, keep, log
from alpro.pipeline.cli.options import RunOptions, Source

if TYPE_CHECKING:
    from alpro.pipeline.plan.plan import Plan


def run(
    stage: str = "",
    /,
    *,
    config: str = "",
    source: Source = Source(),
    options: RunOptions = RunOptions(),
) -> None:
    """Run the whole pipeline, or one stage.

    Runs every stage that has no cached result, or one STAGE after its missing inputs.

    Args:
        stage: Only this stage; by default all of them.
        config: A shipped configuration, or a TOML file. By default sample, with --data own_videos.
    """
    from alpro.pipeline.config.command import find_config

    if not config:
        config = "own_videos" if source.data else "sample"
        if source.data:
            log.info(
                "configuration: own_videos, small models for a first look, not for results; --config "
                "finetune_clip trains a CLIP"
            )
    command = source.command(config, options.workspace, stage)
    find_config(config)  # a mistyped name creates no workspace, and starts no server
    root, wait = prepare_run(options)

    # Slow to import: meanwhile the temporary server starts.
    from alpro.pipeline.plan.checks import check_plan, fetch_models
    from alpro.pipeline.plan.plan import make_plan, write_names

    # Refuse what would fail before anything starts.
    plan = make_plan(command, root)
    check_plan(plan)
    if options.dry_run:
        print_plan(plan)
        return

    from alpro.pipeline.reports.terminal import print_results

    # Another MLflow server gets a run of its own, also if everything exists.
    artifacts = [] if options.tracking_uri else plan.finished
    if artifacts:
        log.info("every artifact exists: no run was started")
        # STAGE stands for what the last command built or found.
        write_names(plan, {step.name: step.fingerprint for step in plan.required})
    else:
        fetch_models(plan)
        with outside_current_folder():
            # Imports Prefect and MLflow: the server starts.
            from alpro.pipeline.flows import flow

        from alpro.pipeline.tracking.tracker import Tracker

        # A new store is created while the server creates its own.
        tracker = Tracker.open(options.tracking_uri, root, plan.settings.name)
        wait()
        artifacts = flow.start(plan, tracker)
    print_results(artifacts, root, plan.report)


def study(
    file: str,
    /,
    *,
    config: str = "",
    source: Source = Source(),
    options: RunOptions = RunOptions(),
) -> None:
    """Run variants of a configuration with several seeds.

    Runs every variant of a study with every seed, and prints the mean of each score, its interval
    over the seeds, and the difference to the first variant. Results of stages are shared and
    cached.

    Args:
        file: A shipped study, or a TOML file.
        config: The configuration, as of `alpro run`; by default the study's.
    """
    from alpro.pipeline.config.command import STUDIES, find_config

    find_config(file, shipped_in=STUDIES)  # as `run`: before anything is created
    root, wait = prepare_run(options)

    from alpro.pipeline.flows.study import NOTE, load_study, plan_members, run_study
    from alpro.pipeline.reports.terminal import print_tables
    from alpro.stages.execution.interface import StageFailed

    loaded = load_study(file)
    command = source.command(config or loaded.config, options.workspace)
    members = plan_members(loaded, command.config, command.changes, root)
    if options.dry_run:
        # Variants share steps: each is printed once.
        steps = {
            step.fingerprint: step for member in members for step in member.plan.steps
        }
        print_plan(replace(members[0].plan, steps=list(steps.values())))
        return

    wait()
    tables, scores, failed = run_study(loaded, members, root, options.tracking_uri)
    sentence = f"{NOTE}\nall scores: {scores}"
    print_tables(tables, sentence if tables else "no run evaluated a model")
    if failed:
        raise StageFailed(
            f"{len(failed)} of {len(members)} runs failed: {', '.join(failed)}"
        )


def prepare_run(options: RunOptions) -> tuple[Path, Callable[[], None]]:
    """Create the workspace, open the log of the command, set Prefect's environment, which Prefect
    reads when it is imported, and start the temporary server that a command without PREFECT_API_URL
    has. Returns the workspace's absolute path, and a function that waits for the server."""
    root = options.workspace.resolve()
    create_workspace(root)
    if not options.dry_run:  # what follows imports for seconds
        # A file for each command: the lines of two do not mix.
        name = time.strftime(f"run-%Y%m%d-%H%M%S-{os.getpid()}.log")
        os.environ[FILE] = str(root / "logs" / name)
        keep(f"{shlex.join(['alpro', *sys.argv[1:]])}, in {Path.cwd()}")
        log.info(f"starting, with the workspace {root}")

    os.environ["ALPRO_COMMAND_LINE"] = "1"
    # `execute` reports errors; Prefect's log would repeat them and every line of progress.
    for name in ("LOGGING_LEVEL", "LOGGING_INTERNAL_LEVEL", "SERVER_LOGGING_LEVEL"):
        os.environ.setdefault(f"PREFECT_{name}", "CRITICAL")
    if not os.environ.get("PREFECT_API_URL"):
        # The database of the command's own server; the person's ~/.prefect stays as it is.
        os.environ.setdefault("PREFECT_HOME", str(root / "prefect"))

    if options.dry_run:
        return root, lambda: None

    from alpro.pipeline.flows.servers import start_temporary_server

    return root, start_temporary_server()


def print_plan(plan: "Plan") -> None:
    """Print for each step whether its artifact exists, and if not, why it has to be built."""
    from alpro.pipeline.config.command import command_of
    from alpro.pipeline.plan.difference import explain
    from alpro.pipeline.reports.columns import print_rows

    # Oldest first: the newest artifact of each step is left.
    earlier = {
        record.name: record
        for _, record in plan.store.artifacts()
        if command_of(record).config_name == plan.command.config_name
    }

    rows = []
    for step in plan.steps:
        state = "not needed"
        reason = ""
        if step.fingerprint in plan.records:
            state = "cached"
        elif step in plan.required:
            state = "to run"
            reason = explain(step.description, earlier.get(step.name))
        rows.append(
            {
                "state": state,
                "name": step.name,
                # As many characters as the name of its folder has.
                "fingerprint": step.fingerprint[:16],
                "reason": reason,
            }
        )
    print_rows(rows)


def create_workspace(folder: Path) -> None:
    """Create the folders of the workspace that programs write to before a stage runs."""
    for name in ("prefect", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
