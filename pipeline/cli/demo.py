"""`alpro model demo`: loads the models, and serves the page until Ctrl-C."""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from alpro.errors import InputError
from alpro.pipeline.cli.model import load, model_path, open_index
from alpro.pipeline.demo.allowed_requests import Requests
from alpro.pipeline.demo.answers import Demo, Models
from alpro.pipeline.demo.media import Media
from alpro.pipeline.servers.checks import check_port
from alpro.pipeline.servers.origin import LOCAL
from alpro.stages.inference.find import find_prompter, model_digest
from alpro.stages.inference.index import Index, check_digest

MAX_CONNECTIONS = 256  # more get a 503
IDLE_TICKS = 300  # of a tenth of a second, in which a connection has to send a request
NO_REQUESTS = {  # of Gradio to other machines; read when it is imported
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}


def serve(arguments: argparse.Namespace) -> None:
    """`alpro model demo`. Raises InputError if the page cannot start."""
    check_port("--port", arguments.port, arguments.host)
    index = open_index(arguments.index) if arguments.index else None
    with tempfile.TemporaryDirectory(prefix="alpro-demo-") as temporary:
        uploads, converted = Path(temporary, "uploads"), Path(temporary, "converted")
        uploads.mkdir()
        converted.mkdir()
        prepare_gradio(uploads)
        models = load_models(arguments, index)
        media = Media(index, converted, models.any().folder.model.config.video)
        app = application(Demo(models, media, rerank=arguments.rerank), arguments.host, uploads, arguments.max_upload)
        if arguments.host not in LOCAL:
            print("warning: everyone who reaches this address can use the page, without a password", file=sys.stderr)
        options = uvicorn.Config(
            app,
            arguments.host,
            arguments.port,
            log_level="warning",
            timeout_graceful_shutdown=2,
            limit_concurrency=MAX_CONNECTIONS,
            ws="none",
        )
        Server(options).run()


def prepare_gradio(uploads: Path) -> None:
    """Sets Gradio's environment and imports it. Raises InputError if it is not installed."""
    os.environ |= {**NO_REQUESTS, "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(f"no Gradio ({error}): pip install 'alpro-pipeline[demo]'") from error


def load_models(arguments: argparse.Namespace, index: Index | None) -> Models:
    """The models for what MODEL, --ask and --entities can do. Raises InputError if that is nothing."""
    folder = model_path(arguments, arguments.model).resolve()
    if index:  # before the model is loaded
        check_digest(index.folder, index.about, folder, model_digest(folder))
    named = model_path(arguments, arguments.entities).resolve() if arguments.entities else folder
    prompter, prompts = find_prompter(named, follow=True)
    has_prompts = bool(prompts) or (prompter / "prompts.safetensors").is_file()
    own = load(arguments, folder, prompts if prompter == folder else "")
    ask = load(arguments, model_path(arguments, arguments.ask)) if arguments.ask else own
    entities = (own if prompter == folder else load(arguments, prompter, prompts)) if has_prompts else None
    if arguments.ask and not ask.folder.answers:
        raise InputError(
            f"{arguments.ask}: this {ask.folder.task} model does not answer questions; --ask takes a model of "
            "finetune_qa"
        )
    if arguments.entities and not entities:
        raise InputError(
            f"{arguments.entities}: no prompter with embedded entities; --entities takes a train_prompter or "
            "cache_prompts artifact"
        )
    models = Models(index, own if index else None, ask if ask.folder.answers else None, entities)
    if not (models.search or models.ask or models.entities):
        raise InputError(
            f"{folder}: this {own.folder.task} model has nothing to show alone; add --index INDEX to search, or --ask "
            "MODEL for questions"
        )
    return models


def application(demo: Demo, host: str, uploads: Path, max_upload: int) -> Requests:
    """The page with its limits, after `prepare_gradio`. max_upload: MiB of a file."""
    import gradio as gr
    from fastapi import FastAPI

    from alpro.pipeline.demo.page import STYLE, THEME, build

    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        outer,
        build(demo),
        path="/",
        theme=THEME,
        css=STYLE,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_upload << 20,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
    )
    return Requests(outer, demo.media, host, uploads)


class Server(uvicorn.Server):
    """Prints the address when it answers. Ends with Ctrl-C or SIGTERM after its open requests, and does not raise the
    signal again: that is how the page is stopped, and temporary files are deleted."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.idle: dict[Any, int] = {}  # ticks by connection

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            print(f"the page is at http://{host}:{self.config.port} (Ctrl-C stops it)", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Closes connections that have sent no request: uvicorn would keep them."""
        waiting = {one for one in self.server_state.connections if getattr(one, "cycle", None) is None}
        self.idle = {one: self.idle.get(one, 0) + 1 for one in waiting}
        for connection in [one for one, ticks in self.idle.items() if ticks > IDLE_TICKS]:
            connection.transport.close()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
