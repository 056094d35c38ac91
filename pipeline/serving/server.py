"""The server of `alpro serve`: Gradio without requests to other machines, within limits, until Ctrl-C."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from alpro.errors import InputError
from alpro.pipeline.serving.allowed_requests import Requests
from alpro.pipeline.serving.answers import Answers
from alpro.pipeline.serving.turns import Turns

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


def prepare_gradio(uploads: Path) -> None:
    """Sets Gradio's environment and imports it. Raises InputError if it is not installed."""
    os.environ |= {**NO_REQUESTS, "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(f"no Gradio ({error}): pip install 'alpro-pipeline[serve]'") from error


def application(answers: Answers, host: str, uploads: Path, max_upload: int, token: str = "") -> Requests:
    """The page and the API within limits, after `prepare_gradio`. max_upload: MiB of a file; token: see `Requests`."""
    import gradio as gr

    from alpro.pipeline.serving import api
    from alpro.pipeline.serving.page import STYLE, THEME, build

    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        outer,
        build(answers),
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
    return Requests(outer, api.build(answers, max_upload << 20), answers.media, host, uploads, token)


def run(app: Requests, turns: Turns, host: str, port: int) -> None:
    """Serves until Ctrl-C or SIGTERM, and then until those who wait in the queue have their answers."""
    options = uvicorn.Config(
        app,
        host,
        port,
        log_level="warning",
        timeout_graceful_shutdown=2,
        limit_concurrency=MAX_CONNECTIONS,
        ws="none",
    )
    Server(options, turns).run()


class Server(uvicorn.Server):
    """Prints the address when it answers. Ends with Ctrl-C or SIGTERM after its open requests (a second one: at once),
    and does not raise the signal again: that is how the server is stopped, and temporary files are deleted."""

    def __init__(self, config: uvicorn.Config, turns: Turns):
        super().__init__(config)
        self.turns = turns
        self.idle: dict[Any, int] = {}  # ticks by connection

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            address = f"http://{host}:{self.config.port}"
            print(f"the page is at {address}, the API at {address}/api/docs (Ctrl-C stops them)", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Closes connections that have sent no request: uvicorn would keep them."""
        waiting = {one for one in self.server_state.connections if getattr(one, "cycle", None) is None}
        self.idle = {one: self.idle.get(one, 0) + 1 for one in waiting}
        for connection in [one for one, ticks in self.idle.items() if ticks > IDLE_TICKS]:
            connection.transport.close()
        self.should_exit |= self.turns.stopping and not self.turns.taken
        return await super().on_tick(counter)

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        if self.turns.stopping:
            super().handle_exit(number, frame)
        self.turns.stopping = True

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
