"""The commands of `alpro`: run a pipeline or one stage, inspect artifacts, import weights, open MLflow."""

import argparse
import atexit
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.pipeline.artifacts.store import Step, Store
from alpro.pipeline.checks import check_port, check_sqlite, check_tracking_uri
from alpro.pipeline.listings import print_artifact, print_artifacts, print_lineage, print_problems, print_unneeded
from alpro.pipeline.model_commands import MODEL_COMMANDS
from alpro.shards.storage import absolute
from alpro.stages import TRAININGS
from alpro.stages.execution.interface import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, Interrupted, StageFailed, Stopped

if TYPE_CHECKING:
    from alpro.pipeline.config import PipelineConfig


def execute(arguments: argparse.Namespace) -> int:
    """Runs a command; returns its exit status. Errors that are not bugs are one line on standard error."""
    try:
        return COMMANDS.get(arguments.command, run_pipeline)(arguments) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"{error}; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED


def run_pipeline(arguments: argparse.Namespace) -> None:
    """`alpro run` and `alpro STAGE`."""
    workspace = prepare_run(arguments)
    from alpro.pipeline import flow
    from alpro.pipeline.config import skips_questions
    from alpro.pipeline.console import print_results
    from alpro.pipeline.data_commands import check_test_items
    from alpro.pipeline.steps import check_files

    config, data, changes = arguments.config, arguments.data, arguments.changes
    plan = flow.planned(arguments.stage, config, data, changes, workspace)  # reports errors before anything starts
    if data and not arguments.stage and skips_questions(config, plan[0]):
        print(f"no questions in {data}: question answering is skipped", file=sys.stderr)
    if arguments.dry_run:
        print_plan(*plan[1:])
        print_memory_plan(*plan, workspace / "memory.json")
        return
    check_files(*plan[1:])
    check_test_items(*plan)
    if arguments.stage:
        print(f"configuration: {config}{f', with --data {data}' if data else ''}", file=sys.stderr)
    use_temporary_server()
    chosen = getattr(flow, arguments.stage or "alpro")
    token = flow.HANDED.set(plan)
    try:
        folders = chosen(config, data, changes, str(workspace), arguments.tracking_uri)
    finally:
        flow.HANDED.reset(token)
    print_results({name: Path(folder) for name, folder in folders.items()}, workspace)


def prepare_run(arguments: argparse.Namespace) -> Path:
    """Creates the workspace and sets Prefect's environment. Call before Prefect is imported."""
    check_tracking_uri(arguments.tracking_uri)
    workspace = arguments.workspace.resolve()
    if arguments.profile:
        arguments.changes.append("resources.profile=true")
    create_workspace(workspace, check_writable=not arguments.dry_run)
    prepare_prefect(workspace / "prefect")
    # Python would look for cycles among half a million objects before it exits: 3.0 s instead of 0.3 s.
    atexit.register(gc.freeze)
    return workspace


def run_study(arguments: argparse.Namespace) -> None:
    """`alpro study`."""
    workspace = prepare_run(arguments)
    from alpro.pipeline import study
    from alpro.pipeline.study_config import load_study

    loaded = load_study(arguments.file)
    config = arguments.config or loaded.config
    source = study.Source(loaded, config, arguments.data, arguments.changes, workspace, arguments.tracking_uri)
    members = study.members_of(source)
    if arguments.dry_run:
        study.print_study_plan(members)
        return
    use_temporary_server()
    # Between two flows, and after Prefect has ended one.
    before = signal.signal(signal.SIGTERM, stop_study)
    try:
        study.run_study(source, members)
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_study(number: int, frame: FrameType | None) -> None:
    raise Stopped("the study was stopped")


def print_plan(steps: list[Step], store: Store) -> None:
    """Prints for each step whether its artifact exists, and if not, why it has to be built."""
    from alpro.pipeline.steps import reason, required

    wanted = required(steps, store)
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
        fingerprint = "" if step.blocked else step.fingerprint[:16]  # unknown without the files
        print(f"{state:10} {step.name:24} {fingerprint:16}  {why}".rstrip())


def print_memory_plan(settings: "PipelineConfig", steps: list[Step], store: Store, remembered: Path) -> None:
    """Prints the memory of the training stages that have to run. remembered: a file with earlier plans."""
    from alpro.pipeline.steps import required

    trainings = [step for step in required(steps, store) if step.stage in TRAININGS]
    if trainings := [step for step in trainings if not (store.find(step) or store.is_shared(step))]:
        from alpro.pipeline.memory_plan import print_memory

        print_memory(trainings, settings.resources, remembered)


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
    """Sets Prefect's environment for a command. Without PREFECT_API_URL Prefect starts a server for the duration of
    the command, with its files in `home`. Call before Prefect is imported: it reads its environment then."""
    os.environ["ALPRO_COMMAND_LINE"] = "1"
    # `execute` reports errors; Prefect's log would repeat them and every line of progress.
    for name in ("LOGGING_LEVEL", "LOGGING_INTERNAL_LEVEL", "SERVER_LOGGING_LEVEL"):
        os.environ.setdefault(f"PREFECT_{name}", "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(home))


def use_temporary_server() -> None:
    """If Prefect has no server, it uses our temporary one, which Ctrl-C does not end. It starts with the flow."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    if not PREFECT_API_URL.value():
        check_sqlite(PREFECT_HOME.value() / "prefect.db")
        from alpro.pipeline.server import TemporaryServer

        TemporaryServer()


def list_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro artifacts ls`."""
    print_artifacts(Store(arguments.workspace / "artifacts"))


def show_artifact(arguments: argparse.Namespace) -> None:
    """`alpro artifacts show`."""
    store = Store(arguments.workspace / "artifacts")
    print_artifact(store, *find_artifact(store, arguments.fingerprint))


def show_lineage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts lineage`."""
    from alpro.pipeline.artifacts.upkeep import lineage

    store = Store(arguments.workspace / "artifacts")
    print_lineage(lineage(store, find_artifact(store, arguments.fingerprint)[1]))


def verify_artifacts(arguments: argparse.Namespace) -> int:
    """`alpro artifacts verify`. Returns 1 if a file of an artifact is damaged, missing or extra."""
    from alpro.pipeline.artifacts.contents import unreadable_records, verify

    store = Store(arguments.workspace / "artifacts")
    artifacts = [find_artifact(store, prefix) for prefix in arguments.fingerprints] or list(store.all())
    unreadable = [] if arguments.fingerprints else unreadable_records(store.root)
    return 1 if print_problems(artifacts, chain(unreadable, verify(artifacts))) else 0


def collect_garbage(arguments: argparse.Namespace) -> None:
    """`alpro artifacts gc`. Deleting a run in MLflow is how a person says that it is no longer needed."""
    from alpro.pipeline.artifacts.upkeep import remove, unneeded
    from alpro.pipeline.reporting.running import running
    from alpro.pipeline.reporting.stored_runs import logged_fingerprints

    database = arguments.workspace.resolve() / "mlflow.db"
    if not arguments.tracking_uri and not database.is_file():
        raise InputError(f"{database} does not exist; name the MLflow server of the runs with --tracking-uri")
    store = Store(arguments.workspace / "artifacts")
    uri = arguments.tracking_uri or f"sqlite:///{database}"
    kept, known = logged_fingerprints(uri)
    items = unneeded(store, kept, known)
    if arguments.yes and items:
        if active := running(uri):
            raise InputError(
                f"{active[0]} is running, and may need any artifact; run this command when it is done. A run whose "
                "machine is gone can be deleted in MLflow"
            )
        remove(store, items)
    print_unneeded(items, arguments.yes)


def register_model(arguments: argparse.Namespace) -> None:
    """`alpro model register`."""
    from alpro.pipeline.reporting.registry import register

    workspace = arguments.workspace.resolve()
    uri = arguments.tracking_uri or f"sqlite:///{workspace / 'mlflow.db'}"
    artifact = find_artifact(Store(workspace / "artifacts"), arguments.fingerprint)
    version = register(uri, workspace / "mlflow", *artifact, arguments.name, arguments.alias)
    loaded = f"models:/{arguments.name}{'@' + arguments.alias if arguments.alias else '/' + version}"
    print(f"{arguments.name}, version {version}; load it with mlflow.pyfunc.load_model({loaded!r})")


def compare_artifacts(arguments: argparse.Namespace) -> None:
    """`alpro compare`."""
    from alpro.pipeline.console import print_result_table, print_text_table
    from alpro.pipeline.reporting.compared_runs import compared_runs

    if len(arguments.runs) < 2:
        raise InputError("compare needs two evaluations or more")
    store = Store(arguments.workspace / "artifacts")
    # The name of a run ends with the fingerprint of its last artifact.
    artifacts = [find_artifact(store, name.split(" · ")[-1]) for name in arguments.runs]
    compared = compared_runs(store, artifacts)
    if arguments.json:
        print(json.dumps(compared.json(), indent=1, ensure_ascii=False))
    else:
        if (differences := compared.differences_table()).lines:
            print_text_table(differences)
        print_result_table(compared.scores_table(intervals=len(artifacts) > 2))
    page = arguments.out or arguments.workspace / "reports" / f"compare-{'-'.join(compared.names)}.html"
    print(f"page: {compared.write(page)}", file=sys.stderr)


def find_artifact(store: Store, prefix: str) -> tuple[Path, dict[str, Any]]:
    """The one artifact whose fingerprint starts with `prefix`."""
    matches = [(folder, record) for folder, record in store.all() if record["fingerprint"].startswith(prefix)]
    if len(matches) != 1:
        what = "no artifact starts" if not matches else f"{len(matches)} artifacts start"
        raise InputError(f"{prefix}: {what} with this in {store.root}; `alpro artifacts ls` lists them")
    return matches[0]


def run_data_check(arguments: argparse.Namespace) -> int:
    """`alpro data check`."""
    from alpro.pipeline.data_commands import check

    return check(arguments)


def inspect_corpora(arguments: argparse.Namespace) -> None:
    """`alpro data inspect`."""
    from alpro.pipeline.console import print_inspection
    from alpro.shards.inspect_corpus import inspect, save

    store = Store(arguments.workspace / "artifacts")
    folders = [
        place if isinstance(place, str) or place.is_dir() else find_artifact(store, name)[0]
        for name, place in ((name, absolute(name)) for name in arguments.corpora)
    ]
    report = inspect(folders, arguments.max_samples)
    print_inspection(report)
    if arguments.out:
        print(*save(report, folders, arguments.out), sep=", ")


def run_config_command(arguments: argparse.Namespace) -> None:
    """`alpro config ...`."""
    from alpro.pipeline import config_commands

    name = arguments.command.removeprefix("config ")
    {
        "list": config_commands.list_configs,
        "show": config_commands.show_config,
        "init": config_commands.init_config,
    }[name](arguments)


def run_import(arguments: argparse.Namespace) -> None:
    """`alpro import-checkpoint`."""
    from alpro.models.import_checkpoint import import_checkpoint

    imported = import_checkpoint(
        arguments.file,
        arguments.out,
        arguments.task,
        arguments.tokenizer,
        arguments.words,
        max_text_tokens=arguments.max_text_tokens,
    )
    video, text = imported.config.video, imported.config.text
    print(f"{arguments.out}: {imported.read} tensors read")
    print(
        f"  video {video.image_size} x {video.image_size}, patch {video.patch_size}, {video.frames} frames, "
        f"{video.depth} blocks; text {text.fusion_layer} + {text.depth - text.fusion_layer} layers; width {video.width}"
    )
    for what, keys in (("not used by the model", imported.unused), ("unknown", imported.unknown)):
        if keys:
            print(f"  {what}: {len(keys)} tensors")
            print("".join(f"    {key}\n" for key in sorted(keys)), end="")
    for remark in imported.remarks:
        print(f"  {remark}")


def run_up(arguments: argparse.Namespace) -> int:
    """`alpro up`."""
    from alpro.pipeline.up import print_checks, up

    machine = arguments.workspace.resolve(), arguments.prefect_port, arguments.mlflow_port
    return print_checks(*machine) if arguments.check else up(*machine, arguments.data)


def serve_mlflow(arguments: argparse.Namespace) -> None:
    """`alpro ui`: MLflow's server, reachable from this machine only, until Ctrl-C."""
    from alpro.pipeline.reporting.stored_runs import start_page

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
    "artifacts ls": list_artifacts,
    "artifacts show": show_artifact,
    "artifacts lineage": show_lineage,
    "artifacts verify": verify_artifacts,
    "artifacts gc": collect_garbage,
    "model register": register_model,
    **MODEL_COMMANDS,
    "compare": compare_artifacts,
    "data check": run_data_check,
    "config list": run_config_command,
    "config show": run_config_command,
    "config init": run_config_command,
    "data inspect": inspect_corpora,
    "import-checkpoint": run_import,
    "ui": serve_mlflow,
    "up": run_up,
}
