"""Which requests reach the page: the media of the index, and the few addresses of Gradio that the page uses.

Gradio also serves files by path, fetches URLs, and describes and calls functions by name. None of that is needed here,
so it does not exist: what is not listed is not found. Pages of other sites are refused as in `server.py`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpro.pipeline.demo.media import Media, Unknown
from alpro.shards.decode import DecodeError

LOCAL = ("127.0.0.1", "localhost")
MAX_BODY = 64 << 10  # bytes of a request other than an upload
API = "/gradio_api"
GET = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static)(/[\w.-]+)+"
    rf"|{API}/(startup-events|queue/data|upload_progress|heartbeat/\w+)"
)
POST = re.compile(rf"{API}/(queue/join|upload|cancel|reset)/?")
# The page loads nothing from elsewhere, whatever Gradio may try.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
)
MEDIA_TYPES = {".webm": "video/webm", ".webp": "image/webp", ".jpg": "image/jpeg"}


def media_app(media: Media) -> Starlette:
    """Serves /media/KIND/NAME (the file, if browsers may play it), .../preview and .../frame."""

    async def original(request: Request) -> Response:
        return await run_in_threadpool(respond, key(request), media.original)

    async def preview(request: Request) -> Response:
        return await run_in_threadpool(respond, key(request), media.preview)

    async def frame(request: Request) -> Response:
        return await run_in_threadpool(respond, key(request), media.frame)

    def key(request: Request) -> str:
        return f"{request.path_params['kind']}/{request.path_params['name']}"

    address = "/media/{kind}/{name}"
    return Starlette(
        routes=[Route(address, original), Route(f"{address}/preview", preview), Route(f"{address}/frame", frame)]
    )


def respond(key: str, find: Any) -> Response:
    """A file, in ranges if the browser wants them."""
    try:
        found = find(key)
    except (Unknown, DecodeError):
        found = None
    if found is None:
        return PlainTextResponse("not found", status_code=404)
    path, kind = found if isinstance(found, tuple) else (found, MEDIA_TYPES[found.suffix])
    return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


class Requests:
    """The application of the page. host: the address that it listens on; uploads: the folder of Gradio's uploads."""

    def __init__(self, page: ASGIApp, media: Media, host: str, uploads: Path):
        self.page, self.media = page, media_app(media)
        self.hosts = LOCAL if host in LOCAL else None
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.page(scope, receive, send)
            return
        if scope["type"] != "http":  # Gradio has no other
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
                added |= {"referrer-policy": "no-referrer"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        app, receive = await self.choose(scope, receive)
        await app(scope, receive, with_headers)

    async def choose(self, scope: Scope, receive: Receive) -> tuple[ASGIApp, Receive]:
        """What answers a request, and its body."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.is_own(headers):
            return PlainTextResponse("a page of another site", status_code=403), receive
        path, method = scope["path"], scope["method"]
        if path.startswith("/media/") and method in ("GET", "HEAD"):
            return self.media, receive
        if method in ("GET", "HEAD") and GET.fullmatch(path) and ".." not in path:
            return self.page, receive
        if method != "POST" or not POST.fullmatch(path):
            return PlainTextResponse("not found", status_code=404), receive
        if path.startswith(f"{API}/upload"):  # Gradio limits its size
            return self.page, receive
        body = await read(receive)
        if body is None or not self.is_harmless(body):
            return PlainTextResponse("refused", status_code=413 if body is None else 400), receive
        return self.page, replay(body)

    def is_own(self, headers: dict[str, str]) -> bool:
        """Whether a request is sent to this machine's name, and by this page if by a page."""
        server = urlsplit(f"//{headers.get('host', '')}")
        if self.hosts and server.hostname not in self.hosts:
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc == headers.get("host", "")

    def is_harmless(self, body: bytes) -> bool:
        """Whether a body is JSON in which all files are uploads of this page. Gradio would fetch a URL."""
        try:
            return all(self.is_upload(file) for file in files(json.loads(body or b"null")))
        except (ValueError, RecursionError):
            return False

    def is_upload(self, file: dict[str, Any]) -> bool:
        path = file.get("path")
        return isinstance(path, str) and "://" not in path and Path(path).resolve().is_relative_to(self.uploads)


def files(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in JSON that Gradio may take for a file."""
    if isinstance(value, dict):
        if "path" in value or "url" in value:
            yield value
        for inner in value.values():
            yield from files(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from files(inner)


async def read(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    body = b""
    while len(body) <= MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body if len(body) <= MAX_BODY else None
    return None


def replay(body: bytes) -> Receive:
    """A body that was read already. What follows is the end of the connection."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
