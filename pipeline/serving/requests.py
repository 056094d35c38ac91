"""Limits of requests: files are received and decoded side by side, and the models compute one
request at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Semaphore
from typing import IO, Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

# Requests that wait or compute. The server has 40 threads, so that some are free for pictures.
MAX_WAITING = 32
MAX_UPLOAD_BYTES = 200 << 20
UPLOAD_SECONDS = 120.0
T = TypeVar("T")


class RequestQueue:
    """Run functions of the models one at a time, in order."""

    def __init__(self) -> None:
        self._places = Semaphore(MAX_WAITING)
        # PyTorch keeps workers for each thread.
        self._thread = ThreadPoolExecutor(1, "models")

    def compute(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return function(*args, **kwargs), when it is its turn."""
        return self._thread.submit(function, *args, **kwargs).result()

    async def receive(self, request: Request) -> AsyncIterator[Path | None]:
        """Take a place until the answer is sent, and receive the body as a file.

        Yields:
            The file, which is deleted afterwards; None for a GET, or if a text or a clip is
            named instead.

        Raises:
            HTTPException: If too many requests wait, or the body is too large or too slow.
        """
        # A longer queue would answer everybody late.
        if not self._places.acquire(blocking=False):
            raise HTTPException(
                429,
                "too many requests are waiting",
                {"Retry-After": "1", "Connection": "close"},
            )
        try:
            if request.method != "POST":  # a search for a text needs no disk
                yield None
                return
            with NamedTemporaryFile(prefix="alpro-upload-") as file:
                await save_body(request, file)
                # An empty body is no file if the request names a text or a clip.
                if file.tell() or {"text", "clip"}.isdisjoint(request.query_params):
                    yield Path(file.name)
                else:
                    yield None
        finally:
            self._places.release()


async def save_body(request: Request, file: IO[bytes]) -> None:
    """Write the body of a request to a file. Raise HTTPException if it is too large or too slow."""
    close = {"Connection": "close"}
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                file.write(part)
                if file.tell() > MAX_UPLOAD_BYTES:
                    raise HTTPException(
                        413, f"more than {MAX_UPLOAD_BYTES >> 20} MiB", close
                    )
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the upload takes too long", close) from None
    file.flush()  # decoders open the file by its name
