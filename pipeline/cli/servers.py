"""`alpro up` and `alpro ui`: servers of this machine."""

import os

from alpro.errors import InputError
from alpro.pipeline.cli.options import WORKSPACE, Port, Workspace
from alpro.pipeline.servers.checks import check_port


def up(*, prefect_port: Port = 4200, mlflow_port: Port = 5000, workspace: Workspace = WORKSPACE) -> None:
    """Start Prefect, MLflow and workers here.

    Starts a Prefect server, an MLflow server and a worker for each work pool on 127.0.0.1, registers the deployments,
    and prints the addresses. Ctrl-C stops all of it.
    """
    if prefect_port == mlflow_port:
        raise InputError("--prefect-port and --mlflow-port are the same port; choose another for one of them")
    check_port("--prefect-port", prefect_port)
    check_port("--mlflow-port", mlflow_port)
    from alpro.pipeline.cli.run import create_workspace
    from alpro.pipeline.servers import up as servers

    create_workspace(workspace.resolve(), True)
    servers.up(workspace.resolve(), prefect_port, mlflow_port)


def ui(*, port: Port = 5000, workspace: Workspace = WORKSPACE) -> None:
    """Serve the MLflow pages on this machine, and print their address."""
    from alpro.pipeline.servers import up as servers
    from alpro.pipeline.servers.temporary import answers
    from alpro.pipeline.tracking.tracker import start_page

    database = workspace.resolve() / "mlflow.db"
    if not database.is_file():
        raise InputError(f"{database}: no MLflow store; `alpro run` creates it")
    check_port("--port", port)
    address, store = f"http://127.0.0.1:{port}", f"sqlite:///{database}"
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    options = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    page, logs = start_page(store), workspace.resolve() / "logs"
    logs.mkdir(exist_ok=True)
    with servers.programs(logs) as start:
        start("mlflow", ["mlflow", "server", *options], environment)
        start.until(lambda: answers(f"{address}/health"))
        print(f"MLflow at {address}{page} (Ctrl-C stops it)", flush=True)
        start.until(lambda: False, seconds=float("inf"))
