"""`alpro ui` and `alpro up`: servers of this machine."""

import argparse
import os
import sys
from typing import Any

from alpro.errors import InputError
from alpro.pipeline.cli.arguments import add_action, add_workspace, port
from alpro.pipeline.servers.checks import check_port


def add_ui(commands: Any) -> None:
    parser = add_action(commands, "ui", serve_mlflow, "open the MLflow pages on this machine")
    parser.add_argument("--port", type=port, default=5000, help="port to listen on (default 5000)")
    add_workspace(parser, "folder of the artifacts")


def run_up(arguments: argparse.Namespace) -> None:
    workspace = arguments.workspace.resolve()
    if arguments.prefect_port == arguments.mlflow_port:
        raise InputError("--prefect-port and --mlflow-port are the same port; choose another for one of them")
    check_port("--prefect-port", arguments.prefect_port)
    check_port("--mlflow-port", arguments.mlflow_port)
    from alpro.pipeline.cli.run import create_workspace
    from alpro.pipeline.servers.up import up

    create_workspace(workspace, True)
    up(workspace, arguments.prefect_port, arguments.mlflow_port)


def add_up(commands: Any) -> None:
    parser = add_action(
        commands,
        "up",
        run_up,
        "start Prefect, MLflow and workers here",
        description="Starts a Prefect server, an MLflow server and a worker for each work pool on 127.0.0.1, "
        "registers the deployments, and prints the addresses. Ctrl-C stops all of it.",
    )
    for name, number in (("prefect", 4200), ("mlflow", 5000)):
        parser.add_argument(
            f"--{name}-port", type=port, default=number, metavar="PORT", help=f"port to listen on (default {number})"
        )
    add_workspace(parser, "folder of artifacts, reports, databases and logs")


def serve_mlflow(arguments: argparse.Namespace) -> None:
    """`alpro ui`: MLflow's server, reachable from this machine only, until Ctrl-C."""
    from alpro.pipeline.tracking.tracker import start_page

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
