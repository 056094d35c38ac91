"""Who may ask the server, and until when it runs."""

import base64
from contextlib import suppress
from secrets import compare_digest
from socket import socket

import uvicorn
from fastapi.responses import PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ["127.0.0.1", "localhost"]
MAX_CONNECTIONS = 256  # browsers keep several open
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
CHALLENGE = {
    "WWW-Authenticate": 'Basic realm="ALPRO: any name, the token as password", charset="UTF-8"'
}


class Guard:
    """Refuse requests without the token, if there is one, and requests from pages of other sites.

    Other pages are known by Sec-Fetch-Site and Origin.
    """

    def __init__(self, app: ASGIApp, token: str):
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (self.refusal(scope) or self.app)(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """Return the answer to a request that is refused."""
        # "lifespan", the server's own start and end; `ws="none"` leaves nothing else.
        if scope["type"] != "http":
            return None

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        # The origin is the Host that the browser has asked, of a proxy with https. A program sends
        # none.
        own_origins = (None, b"http://" + host, b"https://" + host)
        # Browsers send "none" for an address that was typed, programs send no such header. Another
        # site may link to the page; its scripts do not reach the API.
        site = headers.get(b"sec-fetch-site", b"none")
        is_foreign = scope["path"].startswith("/api") and site not in (
            b"none",
            b"same-origin",
        )
        if is_foreign or headers.get(b"origin") not in own_origins:
            return PlainTextResponse(
                "a page of another site; if it is your proxy, let it pass on the header Host",
                403,
            )

        sent = parse_token(headers.get(b"authorization", b""))
        if self.token and not compare_digest(sent, self.token):
            return PlainTextResponse("the token is missing or wrong", 401, CHALLENGE)
        return None


def parse_token(authorization: bytes) -> bytes:
    """Return the token of a bearer, or the password that a browser asks for."""
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()

    try:
        return base64.b64decode(value).partition(b":")[2]
    except ValueError:
        return b""


def guarded(app: ASGIApp, token: str = "") -> ASGIApp:
    """Put an application behind the checks.

    Args:
        token: The token that each request needs; empty: none.
    """
    # Without a token, a page whose name is made to resolve to this machine could ask.
    names = ["*"] if token else LOCAL
    return TrustedHostMiddleware(Guard(app, token), names, www_redirect=False)


def serve(app: ASGIApp, listening: socket) -> None:
    """Serve until Ctrl-C or SIGTERM, and then until open requests are answered."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=10,
        ws="none",
    )
    host, port, *_ = listening.getsockname()
    shown = f"[{host}]" if ":" in host else host
    print(f"the page is at http://{shown}:{port} (Ctrl-C stops it)", flush=True)
    # Uvicorn raises the signal again when it has stopped.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listening])
