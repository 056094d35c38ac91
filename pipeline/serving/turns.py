"""The queue in front of the models, which the page and the API share: one request at a time, in order."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TypeVar

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpro.pipeline.serving.mistakes import Busy, Mistake, Stopping, refusal

MAX_WAITING = 32  # requests, beside the one that is computed
MAX_BODY = 64 << 10  # bytes of a request other than an upload
BODY_SECONDS = 30  # in which a part of a body has to arrive
T = TypeVar("T")


class Turns:
    """Runs functions one at a time, in the order of the calls. All run in one thread: torch keeps workers for each
    thread that calls it. A request holds a place from its first byte until it is answered."""

    def __init__(self, waiting: int = MAX_WAITING):
        self.places, self.taken, self.lock = waiting + 1, 0, Lock()
        self.thread = ThreadPoolExecutor(1, "models")
        self.stopping = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Busy if all places are taken, and Stopping before the end of the server."""
        if self.stopping:
            raise Stopping("The server is stopping.")
        with self.lock:
            if self.taken == self.places:
                raise Busy("Too many requests are waiting; try again in a moment.")
            self.taken += 1
        try:
            yield
        finally:
            with self.lock:
                self.taken -= 1

    async def run(self, function: Callable[[], T]) -> T:
        """The result of a function. A caller that is canceled before its turn gives it up."""
        return await asyncio.wrap_future(self.thread.submit(function))

    def call(self, function: Callable[[], T]) -> T:
        """Takes a place and waits for the result: for threads. Raises Busy and Stopping."""
        with self.place():
            return self.thread.submit(function).result()


class Queued:
    """An application whose requests take a place before their bodies are read, and lose it if the client goes away.
    free: addresses that need none. max_upload: bytes."""

    def __init__(self, app: ASGIApp, turns: Turns, free: frozenset[str], max_upload: int):
        self.app, self.turns, self.free, self.max_upload = app, turns, free, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
            return
        try:
            with self.turns.place():
                await self.until_gone(scope, receive, send)
        except Mistake as mistake:
            await refusal(mistake)(scope, receive, send)

    async def until_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and stops waiting for its turn when its connection is closed."""
        kind = dict(scope["headers"]).get(b"content-type", b"")
        left = self.max_upload if kind.startswith(b"multipart/form-data") else MAX_BODY
        complete = asyncio.Event()  # the body
        if scope["method"] in ("GET", "HEAD"):
            complete.set()

        async def limited() -> Message:
            nonlocal left
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, "This request is too large.")
            if not message.get("more_body"):
                complete.set()
            return message

        async def gone() -> None:
            await complete.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        work, end = asyncio.ensure_future(self.app(scope, limited, send)), asyncio.ensure_future(gone())
        await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not work.done():
            work.cancel()
        with suppress(asyncio.CancelledError):
            await work
