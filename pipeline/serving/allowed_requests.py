"""Which requests are answered: the API, the media of the index, and the few addresses of Gradio that the page uses.

Gradio also serves files by path, fetches URLs, and describes and calls functions by name. None of that is needed here,
so it does not exist: what is not listed is not found. Pages of other sites are refused, and requests without the token
if there is one.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import compare_digest
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpro.files import file_state
from alpro.pipeline.servers.origin import LOCAL, is_own
from alpro.pipeline.serving.media import MAX_UPLOADS, Media, Unknown
from alpro.pipeline.serving.turns import MAX_BODY
from alpro.shards.decoding import DecodeError

MAX_FUNCTIONS = 1000  # that a page may have
GRADIO = "/gradio_api"
GET = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static)(/[\w.-]+)+"
    rf"|{GRADIO}/(startup-events|queue/data|upload_progress|heartbeat/\w+)"
)
POST = re.compile(rf"{GRADIO}/(queue/join|upload|cancel|reset)/?")
# The page loads nothing from elsewhere, whatever Gradio may try.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
)
CHALLENGE = {"WWW-Authenticate": 'Basic realm="ALPRO: any name, the token as password", charset="UTF-8"'}
MEDIA_TYPES = {".webm": "video/webm", ".webp": "image/webp", ".jpg": "image/jpeg"}


def media_app(media: Media) -> Starlette:
    """Serves /media/KIND/NAME (the file, if browsers may play it), .../preview and .../frame."""

    def route(end: str, find: Callable[[str], Any]) -> Route:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(respond, "{kind}/{name}".format(**request.path_params), find)

        return Route(f"/media/{{kind}}/{{name}}{end}", answer)

    return Starlette(routes=[route("", media.original), route("/preview", media.preview), route("/frame", media.frame)])


def respond(key: str, find: Callable[[str], Any]) -> Response:
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
    """The application of the page and the API. host: the address that it listens on; uploads: the folder of Gradio's
    uploads; token: empty if none is required."""

    def __init__(self, page: ASGIApp, api: ASGIApp, media: Media, host: str, uploads: Path, token: str = ""):
        self.page, self.api, self.media, self.token = page, api, media_app(media), token.encode()
        self.hosts = LOCAL if host in LOCAL else ()
        self.folder, self.uploads = uploads, uploads.resolve()  # Gradio may name either

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
        if not is_own(headers.get("host"), headers.get("origin"), self.hosts):
            return PlainTextResponse("a page of another site", status_code=403), receive
        if self.token and not compare_digest(password(headers.get("authorization", "")), self.token):
            return PlainTextResponse("the token is missing or wrong", status_code=401, headers=CHALLENGE), receive
        path, method = scope["path"], scope["method"]
        if path.startswith("/api/"):  # a link or a picture on a page of another site has no Origin
            other = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            return (PlainTextResponse("a page of another site", status_code=403) if other else self.api), receive
        if path.startswith("/media/") and method in ("GET", "HEAD"):
            return self.media, receive
        if method in ("GET", "HEAD") and GET.fullmatch(path) and ".." not in path:
            return self.page, receive
        if method != "POST" or not POST.fullmatch(path):
            return PlainTextResponse("not found", status_code=404), receive
        if path.startswith(f"{GRADIO}/upload"):  # Gradio limits its size
            return self.upload, receive
        body = await read(receive)
        checked = None if body is None else self.checked(body)
        if checked is None:
            return PlainTextResponse("refused", status_code=413 if body is None else 400), receive
        return self.page, replay(checked)

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stores an upload. The reply has its path within the folder of uploads; what nobody used is deleted."""
        start: Message = {}
        body = b""

        async def without_folder(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            for folder in {self.folder, self.uploads}:
                body = body.replace(json.dumps(f"{folder}/")[1:-1].encode(), b"")
            headers = [header for header in start["headers"] if header[0].lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})

        await self.page(scope, receive, without_folder)
        await run_in_threadpool(delete_oldest, self.uploads, MAX_UPLOADS)

    def checked(self, body: bytes) -> bytes | None:
        """A body for Gradio, with the whole paths of uploads; None if it is not JSON, if a file in it is no upload of
        this page (Gradio would fetch a URL), or if the number of its function is none that a page has."""
        try:
            value = json.loads(body or b"null")
            number = value.get("fn_index") if isinstance(value, dict) else None
            if number is not None and not (type(number) is int and 0 <= number < MAX_FUNCTIONS):
                return None
            for file in files(value):
                path = file.get("path")
                if not isinstance(path, str) or "://" in path:
                    return None
                place = (self.uploads / path).resolve()
                if not place.is_relative_to(self.uploads):
                    return None
                file["path"] = str(place)
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            return None


def password(authorization: str) -> bytes:
    """The token of a bearer, or the password of a browser's login."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    try:
        return base64.b64decode(value).partition(b":")[2] if scheme.lower() == "basic" else b""
    except binascii.Error:
        return b""


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


def delete_oldest(folder: Path, kept: int) -> None:
    """Deletes all files in and below a folder but the newest."""
    found = [(state[1], file) for file in folder.rglob("*") if (state := file_state(file))]
    for _, file in sorted(found)[:-kept]:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # another file is in it
            file.parent.rmdir()


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
