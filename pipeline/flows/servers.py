"""Prefect's and MLflow's own programs on this machine: a temporary server for a command, and `alpro
up`."""

import atexit
import os
import shlex
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from alpro.environment import NEUTRAL_FOLDER, outside_current_folder
from alpro.errors import InputError
from alpro.files import create_database, make_folder
from alpro.interpreter import interpreter, let_only_interrupt_repeat
from alpro.locks import acquire, file_lock
from alpro.pipeline.execution.processes import Processes
from alpro.stages.execution.devices import VISIBLE_GPUS, find_gpus
from alpro.stages.execution.interface import Resources, StageFailed

SETTINGS = Path(__file__).with_name("servers.toml")
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI")
# Prefixes of variables that may belong to another, permanent server: its password, its database.
SERVER_PREFIXES = ("PREFECT_SERVER_", "PREFECT_API_")
POLL_SECONDS = 0.1
SERVER_SECONDS = 10.0  # for a server to end
WORKER_SECONDS = 70.0  # for a worker, whose runs write checkpoints


def read_settings(*tables: str, **values: object) -> dict[str, str]:
    """Return tables of servers.toml as one, with the values of the names in braces."""
    settings = tomllib.loads(SETTINGS.read_text())
    return {
        name: template.format_map(values)
        for table in tables
        for name, template in settings[table].items()
    }


def answers(port: int) -> bool:
    """Return whether a server of this machine has started: uvicorn opens its port last."""
    with socket.socket() as client:
        client.settimeout(10)
        return client.connect_ex(("127.0.0.1", port)) == 0


def start_temporary_server() -> Callable[[], None]:
    """Start the Prefect server of a command, which ends with it, unless PREFECT_API_URL names one.

    Prefect starts one itself, but only when its first client asks, and where Ctrl-C ends it before
    the flow's state is reported. This one starts while the command imports its modules. Call it
    before Prefect is imported, which reads its environment then.

    Returns:
        A function that waits until the server answers.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None

    # The kernel chooses a free port.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    # Two would create the database at once.
    home = Path(os.environ["PREFECT_HOME"]).absolute()
    starting = file_lock(home / "starting.lock")
    acquire(starting)
    create_database(home / "prefect.db")

    for name in [*os.environ]:
        if name.startswith(SERVER_PREFIXES):
            del os.environ[name]
    settings = read_settings("command", "guard", home=home, prefect_port=port)
    command = (
        "uvicorn --factory prefect.server.api.server:create_app --log-level error "
        f"--port {port}"
    )
    with outside_current_folder():
        server = start_program(
            "server", command, os.environ | settings, SERVER_SECONDS, logs=home
        )
    programs = {"server": server}
    atexit.register(lambda: end(programs))
    # Prefect, which is imported next, and the stages' processes read it.
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"

    def wait() -> None:
        wait_until(lambda: answers(port), programs)
        starting.release()

    return wait


def start_program(
    name: str,
    command: str,
    environment: Mapping[str, str],
    grace: float,
    logs: Path,
) -> Processes:
    """Start the program `python -m COMMAND`, which has a log and `grace` seconds to end."""
    log_file = open(logs / f"{name}.log", "a")
    return Processes(
        interpreter("-m", *shlex.split(command)),
        environment,
        grace,
        on_line=lambda line: print(line, file=log_file, flush=True),
    )


def wait_until(
    condition: Callable[[], bool], programs: Mapping[str, Processes]
) -> None:
    """Wait. Raises StageFailed if one of the programs has ended."""
    while not condition():
        for name, program in programs.items():
            status = program.poll()
            if status is not None:
                raise StageFailed(
                    f"{name} ended with status {status}, see {name}.log in the workspace (a damaged "
                    "prefect/prefect.db may be moved away: it has the history of Prefect's page): "
                    f"{' | '.join(program.last_lines)}"
                )
        time.sleep(POLL_SECONDS)


def end(programs: Mapping[str, Processes]) -> None:
    """End programs, and wait for them."""
    for program in programs.values():
        program.stop()
    for program in programs.values():
        program.wait()


def up(workspace: Path, prefect_port: int, mlflow_port: int) -> None:
    """Run a Prefect server, an MLflow server and the workers until SIGINT or SIGTERM.

    Args:
        workspace: an absolute path, of artifacts, reports, logs, and both databases unless the
            environment names others.

    Raises:
        StageFailed: If one of the programs ended.
    """
    # Slow to import: the server of a command does not wait for it.
    from alpro.pipeline.tracking.store import charts_page, check_store

    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:
        check_store(workspace)

    values = {
        "workspace": workspace,
        "prefect_port": prefect_port,
        "mlflow_port": mlflow_port,
        "artifacts": (workspace / "mlflow").as_uri(),
    }
    settings = read_settings("up", "guard", **values)
    server = read_settings("defaults", **values) | os.environ | settings
    # Only the servers have the databases' addresses, which may contain passwords.
    worker = {name: value for name, value in server.items() if name not in DATABASES}
    logs = workspace / "logs"
    make_folder(logs)
    servers: dict[str, Processes] = {}
    workers: dict[str, Processes] = {}
    create_database(workspace / "prefect/prefect.db")

    def stop(number: int, frame: FrameType | None) -> None:
        let_only_interrupt_repeat()
        # SIGTERM is how systemd and Docker stop a server: not a failure.
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    # A script that starts it in the background has SIGINT ignored, and Ctrl-C would leave it running.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The programs read settings from the current folder, and import from it.
    os.chdir(NEUTRAL_FOLDER)
    try:
        for name, command in read_settings("programs", **values).items():
            servers[name] = start_program(name, command, server, SERVER_SECONDS, logs)
        wait_until(lambda: answers(prefect_port) and answers(mlflow_port), servers)

        for name, gpus in get_workers().items():
            pool = name.partition("-")[0]
            limit = "1" if pool == "gpu" else ""
            command = f"alpro.pipeline.flows.worker {pool} {name} {limit}"
            name = f"worker-{name}"
            workers[name] = start_program(
                name, command, worker | gpus, WORKER_SECONDS, logs
            )
        # It fails until the workers have made their pools.
        wait_until(lambda: deploy(worker, logs), servers | workers)
        page = charts_page(f"http://127.0.0.1:{mlflow_port}")
        print(read_settings("started", **values, page=page)["text"], flush=True)
        wait_until(lambda: False, servers | workers)
    finally:
        end(workers)  # their runs report to the servers
        end(servers)


def deploy(environment: Mapping[str, str], logs: Path) -> bool:
    """Register the deployments. Returns whether that succeeded."""
    # Nobody would see Prefect's questions in the log.
    file = shlex.quote(str(DEPLOYMENTS))
    command = f"prefect --no-prompt deploy --all --prefect-file {file}"
    return (
        start_program("deploy", command, environment, SERVER_SECONDS, logs).wait() == 0
    )


def get_workers() -> dict[str, dict[str, str]]:
    """Return the variables of each worker by its name: of one for data, and of one for each GPU.

    One worker has all GPUs that CUDA_VISIBLE_DEVICES names, for trainings on several.
    """
    gpus = [] if VISIBLE_GPUS in os.environ else find_gpus(Resources())
    if len(gpus) < 2:
        return {"cpu": {}, "gpu": {}}
    return {"cpu": {}} | {f"gpu-{gpu}": {VISIBLE_GPUS: gpu} for gpu in gpus}


def get_worker_workspace() -> Path:
    """Return the workspace of a worker and its runs. Raises InputError if it is not absolute."""
    named = os.environ.get("ALPRO_WORKSPACE", "")
    if not Path(named).is_absolute():
        raise InputError(
            f"ALPRO_WORKSPACE of this worker is not an absolute path but {named!r}"
        )
    return Path(named)
