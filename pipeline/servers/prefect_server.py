"""Prefect's server on this machine, until its standard input ends.

python -m alpro.pipeline.servers.prefect_server PORT [SOCKET]

The server of `alpro up`, and the temporary one of a command without PREFECT_API_URL. SOCKET: the number of an inherited
socket that listens on the port already.
"""

import socket
import sys

from prefect.server.api.server import create_app
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from alpro.pipeline.execution.lifecycle import end_after, input_ended
from alpro.pipeline.servers.origin import is_own

EXIT_SECONDS = 60.0  # time to finish a migration of the database and shut down once the command has ended


class LocalApp:
    """Prefect's server for clients and browsers of this machine. Whoever may deploy may run commands, so pages of other
    sites are refused."""

    def __init__(self) -> None:
        self.app = create_app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):  # and not of the server's own start and end
            headers = Headers(scope=scope)
            if not is_own(headers.get("host"), headers.get("origin")):
                await PlainTextResponse("a page of another site", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


if __name__ == "__main__":
    import uvicorn

    end_after(input_ended, EXIT_SECONDS)
    config = uvicorn.Config(
        "alpro.pipeline.servers.prefect_server:LocalApp",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="on",
        log_level="error",
    )
    uvicorn.Server(config).run([socket.socket(fileno=int(number)) for number in sys.argv[2:]] or None)
