"""`alpro serve`, `alpro up` and `alpro ui`: servers of this machine, until Ctrl-C."""

import os
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alpro.environment import NEUTRAL_FOLDER
from alpro.errors import InputError
from alpro.files import read_text
from alpro.interpreter import interpreter
from alpro.pipeline.cli.index import IndexPlace
from alpro.pipeline.cli.options import (
    WORKSPACE,
    File,
    ModelOptions,
    Port,
    Workspace,
)

if TYPE_CHECKING:
    from alpro.pipeline.serving.models import ServedModels

MIN_TOKEN = 16  # characters: guesses are not counted


def serve(  # noqa: PLR0913 - options of a command
    index: IndexPlace = "",
    /,
    *,
    model: str = "",
    ask: str = "",
    entities: str = "",
    host: str = "127.0.0.1",
    port: Port = 7860,
    token_file: File | None = None,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Serve a page and an API to search videos, ask questions and name entities.

    What they offer follows from the models. Only this machine reaches them, unless --host says
    otherwise.

    Args:
        model: The model of INDEX, if it has moved.
        ask: A model of finetune_qa, for questions.
        entities: A prompter with prompts.
        host: Address to listen on.
        port: Port to listen on.
        token_file: A token that every request needs; required with another --host; by default
            $ALPRO_TOKEN.
    """
    from alpro.pipeline.serving import guard
    from alpro.pipeline.serving.app import application

    token = read_token(host, token_file)
    # Checked before the models are loaded, which takes longer.
    with open_port("--port", port, host) as listening:
        app = application(load_models(index, model, ask, entities, models))
        guard.serve(guard.guarded(app, token), listening)


def open_port(option: str, port: int, host: str = "127.0.0.1") -> socket.socket:
    """Listen on a port of an address. Raise InputError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"port {port} of {host}: {error.strerror}; choose another with {option}"
        ) from error


def read_token(host: str, file: Path | None) -> str:
    """Return the token that requests need; empty: none.

    Args:
        host: Address that the server listens on.
        file: File whose first line is the token; by default the token is $ALPRO_TOKEN.

    Raises:
        InputError: If the token is too short, or other machines could do without one.
    """
    given = read_text(file) if file else os.environ.get("ALPRO_TOKEN")
    if given is None and host in ("127.0.0.1", "localhost"):
        return ""

    # An empty file or variable must not let everybody in.
    token = (given or "").partition("\n")[0].strip()
    if len(token) < MIN_TOKEN:
        option = f"--host {host}" if given is None else "ALPRO_TOKEN"
        raise InputError(
            f"{file or option}: the token has {len(token)} characters, and needs {MIN_TOKEN}; "
            "write one with `openssl rand -hex 32 > token`, and add --token-file token"
        )
    return token


def load_models(
    index: str, own: str, ask: str, entities: str, models: ModelOptions
) -> "ServedModels":
    """Load the models for INDEX, --ask and --entities.

    Raises:
        InputError: If that is nothing, or a model cannot do what it is named for.
    """
    from alpro.inference.index import Index
    from alpro.inference.search import Searcher
    from alpro.pipeline.serving.models import ServedModels

    if not (index or ask or entities):
        raise InputError(
            "nothing to serve; name an INDEX to search, or models with --ask and --entities"
        )
    load = cache(models.load)  # one model may do several things
    searcher = None
    if index:
        opened = Index.open(index)
        named = models.find(own) if own else None
        searcher = Searcher(opened, load(opened.find_model(named)))

    answering = load(models.find(ask)) if ask else None
    if answering and not answering.folder.answers:
        raise InputError(
            f"{ask}: this {answering.folder.task} model does not answer questions"
        )

    naming = load(models.find(entities)) if entities else None
    if naming and not naming.folder.prompts:
        raise InputError(f"{entities}: no prompter with embedded entities")
    return ServedModels(searcher, answering, naming)


def up(
    *,
    prefect_port: Port = 4200,
    mlflow_port: Port = 5000,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Start Prefect, MLflow and workers here.

    Starts a Prefect server, an MLflow server and a worker for each work pool on 127.0.0.1,
    registers the deployments, and prints the addresses. Ctrl-C stops all of it.
    """
    # Bound only for a moment, both at once: they must differ. The servers bind them again.
    with (
        open_port("--prefect-port", prefect_port),
        open_port("--mlflow-port", mlflow_port),
    ):
        pass

    from alpro.pipeline.cli.run import create_workspace

    create_workspace(workspace.resolve())
    print(
        "starting Prefect and MLflow; the first start creates their databases, about a minute",
        flush=True,
    )
    # Slow to import.
    from alpro.pipeline.flows import servers

    servers.up(workspace.resolve(), prefect_port, mlflow_port)


def ui(*, port: Port = 5000, workspace: Workspace = WORKSPACE) -> None:
    """Serve the MLflow pages on this machine, until Ctrl-C.

    Also works on a read-only workspace.
    """
    open_port("--port", port).close()
    # Slow to import.
    from alpro.pipeline.tracking.store import charts_page, find_store

    store = find_store(workspace.resolve())
    address = f"http://127.0.0.1:{port}{charts_page(store)}"
    print(f"MLflow at {address} (Ctrl-C stops it)", flush=True)
    os.environ |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # uvicorn would import from the current folder.
        "UVICORN_APP_DIR": NEUTRAL_FOLDER,
    }
    command = interpreter("-m", "mlflow", "ui", "--backend-store-uri", store)
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.chdir(NEUTRAL_FOLDER)
    os.execv(command[0], command)
