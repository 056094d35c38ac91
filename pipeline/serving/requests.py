"""How requests take turns: files are received and decoded side by side, and the models compute one
request at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

MAX_WAITING = 32  # requests, including the one that is computed
MAX_UPLOADS = 8  # bodies that are received or decoded at a time
MAX_UPLOAD_BYTES = 200 << 20
UPLOAD_SECONDS = 120.0
DECODERS = max(2, (os.cpu_count() or 2) // 2)
T = TypeVar("T")


class RequestQueue:
    """Run functions of the models one at a time, in order."""

    def __init__(self) -> None:
        self.waiting = 0
        self.uploads = 0
        self.turn = asyncio.Lock()
        self.models = ThreadPoolExecutor(1, "models")  # PyTorch keeps workers for each thread
        # Two pools: uploads that take long do not hold back clips of the index.
        self.upload_decoders = ThreadPoolExecutor(DECODERS, "uploads")
        self.clip_decoders = ThreadPoolExecutor(DECODERS, "clips")

    async def run(
        self,
        request: Request,
        compute: Callable[[Path | None, Any], T],
        decode: Callable[[Path | None], Any] | None = None,
    ) -> T:
        """Return compute(file, decode(file)), where `file` is the body of a POST; None if it is
        empty.

        Raises:
            HTTPException: Too many requests wait, the body is too large or too slow, or the client
                has gone.
        """
        loop = asyncio.get_running_loop()
        async with self._receive(request) as file:
            # A longer queue would answer everybody late.
            if self.waiting >= MAX_WAITING:
                raise HTTPException(429, "too many requests are waiting", {"Retry-After": "1"})

            self.waiting += 1
            try:
                decoded = None
                if decode:
                    pool = self.upload_decoders if file else self.clip_decoders
                    decoded = await loop.run_in_executor(pool, decode, file)
                async with self.turn:
                    if await request.is_disconnected():
                        raise HTTPException(499)
                    return await loop.run_in_executor(self.models, compute, file, decoded)
            finally:
                self.waiting -= 1

    @asynccontextmanager
    async def _receive(self, request: Request) -> AsyncIterator[Path | None]:
        """Receive the body of a POST as a file, which is deleted afterwards."""
        if request.method != "POST":
            yield None
            return
        if self.uploads >= MAX_UPLOADS:
            raise HTTPException(
                429, "too many uploads", {"Retry-After": "1", "Connection": "close"}
            )

        self.uploads += 1
        try:
            with NamedTemporaryFile(prefix="alpro-upload-") as file:
                await save_body(request, file)
                yield Path(file.name) if file.tell() else None
        finally:
            self.uploads -= 1


async def save_body(request: Request, file: IO[bytes]) -> None:
    """Write the body of a request to a file. Raise HTTPException if it is too large or too slow."""
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                file.write(part)
                if file.tell() > MAX_UPLOAD_BYTES:
                    size = f"more than {MAX_UPLOAD_BYTES >> 20} MiB"
                    raise HTTPException(413, size, {"Connection": "close"})
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the upload takes too long", {"Connection": "close"}) from None
    file.flush()  # decoders open the file by its name
