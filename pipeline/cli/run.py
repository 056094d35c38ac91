"""The commands of `alpro`: run a pipeline, a study or one stage, open MLflow; and the table of all commands."""

import argparse
import atexit
import gc
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from types import FrameType
from typing import TYPE_CHECKING

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.log import log, set_level
from alpro.pipeline.cli.artifacts import ARTIFACT_COMMANDS, print_json
from alpro.pipeline.cli.model import MODEL_COMMANDS
from alpro.pipeline.servers.checks import check_port, check_tracking_uri, problems
from alpro.pipeline.servers.temporary import prefect_home, start_temporary_server
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import DISK_FULL
from alpro.stages.execution.interface import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, Interrupted, StageFailed, Stopped

EXIT_BROKEN_PIPE = 141  # as a shell has it for a program that SIGPIPE ends

if TYPE_CHECKING:
    from alpro.pipeline.plan.dag import Planned


def execute(arguments: argparse.Namespace) -> int:
    """Runs a command; returns its exit status. Errors that are not bugs are one line on standard error."""
    if level := getattr(arguments, "log_level", ""):
        set_level(level)
    try:
        status = COMMANDS.get(arguments.command, run_pipeline)(arguments) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"{error}; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush the rest at exit, and fail
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        file = f"{error.filename}: " if error.filename else ""
        print(f"error: {file}{error.strerror}; free some disk space and run again to resume", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except Exception as error:  # of Prefect's server or a database, which do not say that the disk is full
        if (full := full_disk(getattr(arguments, "workspace", None))) is None:
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: the disk of {full} is full ({line}); free some space and run again to resume", file=sys.stderr)
        return EXIT_INPUT_ERROR


def full_disk(workspace: Path | None) -> Path | None:
    """The folder whose disk has less than a MiB left: the workspace, Prefect's folder, or that of temporary files."""
    for folder in (workspace, prefect_home(), Path(gettempdir())):
        if folder is not None and folder.is_dir() and shutil.disk_usage(folder).free < 2**20:
            return folder
    return None


def stdout_is_closed() -> bool:
    """Whether what reads the output has ended, such as `head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def run_pipeline(arguments: argparse.Namespace) -> None:
    """`alpro run` and `alpro STAGE`."""
    if not arguments.config:
        arguments.config = "own_videos" if arguments.data else "sample"
        if arguments.data:
            log.info("configuration: own_videos, the default with --data; --config chooses a different one")
    workspace = prepare_run(arguments)
    from alpro.pipeline.cli.data import check_test_items
    from alpro.pipeline.config.pipeline_config import skips_questions
    from alpro.pipeline.plan import dag as planning
    from alpro.pipeline.plan.steps import check_files
    from alpro.pipeline.reports.summary import finished_steps, report_file
    from alpro.pipeline.reports.terminal import print_results

    stage, config, data, changes = arguments.stage, arguments.config, arguments.data, arguments.changes
    plan = planning.planned(stage, config, data, changes, workspace)  # reports errors before anything starts
    _, steps, store = plan
    if data and not stage and skips_questions(config, changes, plan[0]):
        log.warning(f"no questions in {data}: question answering is skipped")
    if arguments.dry_run:
        show_plan(steps, store, arguments.json)
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
    from alpro.pipeline.flows.session import Request, open_tracker

    root, uri = arguments.workspace.resolve(), arguments.tracking_uri
    if server:
        # The database of a new MLflow store is created while the server creates its own.
        open_tracker(uri, root, plan[0].name)
        server.wait()
    return flow.start(Request(arguments.stage, arguments.config, arguments.data, arguments.changes, root, uri), plan)


def prepare_run(arguments: argparse.Namespace) -> Path:
    """Creates the workspace and sets Prefect's environment. Call before Prefect is imported."""
    check_tracking_uri(arguments.tracking_uri)
    workspace = arguments.workspace.resolve()
    if arguments.profile:
        arguments.changes.append("resources.profile=true")
    create_workspace(workspace, check_writable=not arguments.dry_run)
    prepare_prefect(workspace / "prefect")
    tracking_uri = without_credentials(arguments.tracking_uri) or workspace / "mlflow.db"
    log.debug(f"workspace {workspace}, MLflow {tracking_uri}")
    # Python would look for cycles among half a million objects before it exits: 3.0 s instead of 0.3 s.
    atexit.register(gc.freeze)
    return workspace


def run_study(arguments: argparse.Namespace) -> None:
    """`alpro study`."""
    workspace = prepare_run(arguments)
    server = None if arguments.dry_run else start_temporary_server()
    from alpro.pipeline.studies import study
    from alpro.pipeline.studies.study_config import load_study

    loaded = load_study(arguments.file)
    config = arguments.config or loaded.config
    source = study.Source(loaded, config, arguments.data, arguments.changes, workspace, arguments.tracking_uri)
    members = study.members_of(source)
    if arguments.dry_run:
        study.print_study_plan(members, arguments.json)
        return
    if server:
        server.wait()
    with handling_sigterm(stop_study):  # between two flows, and after Prefect has ended one
        study.run_study(source, members, arguments.json)


def stop_study(number: int, frame: FrameType | None) -> None:
    raise Stopped("the study was stopped")


@contextmanager
def handling_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `handler` if this process receives SIGTERM while the body runs."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_rows(steps: list[Step], store: Store) -> list[dict[str, str]]:
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
        elif store.is_shared(step):
            state = "to fetch"
        elif step in wanted:
            state, why = "to run", reason(step, store)
        else:
            state = "not needed"
        fingerprint = "" if step.blocked else step.fingerprint  # unknown without the files
        rows.append({"state": state, "name": step.name, "fingerprint": fingerprint, "reason": why})
    return rows


def show_plan(steps: list[Step], store: Store, as_json: bool) -> None:
    """Prints what a run would do."""
    rows = plan_rows(steps, store)
    if as_json:
        print_json(rows)
        return
    print_plan(rows)


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


def run_data_command(arguments: argparse.Namespace) -> int | None:
    """`alpro data ...`."""
    from alpro.pipeline.cli import data as data_commands

    name = arguments.command.removeprefix("data ")
    return {"check": data_commands.check, "inspect": data_commands.inspect_corpora}[name](arguments)


def run_config_command(arguments: argparse.Namespace) -> None:
    """`alpro config ...`."""
    from alpro.pipeline.cli import config as config_commands

    name = arguments.command.removeprefix("config ")
    {
        "list": config_commands.list_configs,
        "show": config_commands.show_config,
        "init": config_commands.init_config,
    }[name](arguments)


def run_up(arguments: argparse.Namespace) -> int:
    """`alpro up`."""
    workspace = arguments.workspace.resolve()
    ports = {"--prefect-port": arguments.prefect_port, "--mlflow-port": arguments.mlflow_port}
    if wrong := list(problems(workspace, ports)):
        print(*(f"error: {problem}" for problem in wrong), sep="\n", file=sys.stderr)
        return 1
    if arguments.check:
        print("ok: ports, databases, and no other alpro up")
        return 0
    from alpro.pipeline.servers.up import up

    create_workspace(workspace, True)
    return up(workspace, *ports.values())


def serve_mlflow(arguments: argparse.Namespace) -> None:
    """`alpro ui`: MLflow's server, reachable from this machine only, until Ctrl-C."""
    from alpro.pipeline.tracking.queries import start_page

    database = arguments.workspace.resolve() / "mlflow.db"
    if not database.is_file():
        raise InputError(f"{database}: no MLflow store; `alpro run` creates it")
    check_port("--port", arguments.port)
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    page = start_page(f"sqlite:///{database}")
    print(f"MLflow at http://127.0.0.1:{arguments.port}{page} (Ctrl-C stops it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port), "--workers", "1"]
    os.execve(sys.executable, command, environment)


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {  # all others are stages
    "run": run_pipeline,
    "study": run_study,
    **ARTIFACT_COMMANDS,
    **MODEL_COMMANDS,
    "data check": run_data_command,
    "data inspect": run_data_command,
    "config list": run_config_command,
    "config show": run_config_command,
    "config init": run_config_command,
    "ui": serve_mlflow,
    "up": run_up,
}
