"""Prefect's server on this machine, until its standard input ends.

python -m alpro.pipeline.servers.prefect_server PORT [SOCKET]

The server of `alpro up`, and the temporary one of a command without PREFECT_API_URL. SOCKET: the number of an inherited
socket that listens on the port already.
"""

import socket
import sys
from urllib.parse import urlsplit

from prefect.server.api.server import create_app
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from alpro.pipeline.execution.lifecycle import end_after, input_ended

LOCAL = ["127.0.0.1", "localhost"]
EXIT_SECONDS = 60.0  # time to finish a migration of the database and shut down once the command has ended


class LocalApp:
    """Prefect's server for clients and browsers of this machine. Whoever may deploy may run commands, so pages of other
    sites are refused: by the Host header, where the site's name is made to resolve to 127.0.0.1, and by the Origin
    header, since not every request of a page needs CORS."""

    def __init__(self) -> None:
        self.app = TrustedHostMiddleware(create_app(), allowed_hosts=LOCAL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if origin := headers.get(b"origin", b"").decode("latin-1"):
            page, server = urlsplit(origin), urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}")
            if page.hostname not in LOCAL or page.port != server.port:
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
