"""How requests take turns: uploads are received and decoded side by side, and the models compute
one at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

MAX_WAITING = 32  # requests, beside the one that is computed
MAX_UPLOADS = 8  # bodies that are received or decoded at a time
MAX_UPLOAD = 200 << 20  # bytes
UPLOAD_SECONDS = 120.0  # for a whole body
GRACE_SECONDS = 10.0  # after which a body must arrive at MIN_RATE
MIN_RATE = 16 << 10  # bytes a second, of all seconds; a slower body gives up its place to another
SLOW_AFTER = 1.0  # seconds in which any body may be slow
DECODERS = max(2, (os.cpu_count() or 2) // 2)
T = TypeVar("T")


@dataclass(eq=False)
class Upload:
    """A body that is being received."""

    limit: asyncio.Timeout
    started: float
    received: int = 0
    evicted: bool = False

    def is_slow(self, now: float) -> bool:
        seconds = now - self.started
        return seconds > SLOW_AFTER and self.received < MIN_RATE * seconds


class RequestQueue:
    """Runs functions of the models one at a time, in order, in one thread: torch keeps workers for
    each thread. Files are decoded in others before, so a slow one stops no search."""

    def __init__(self) -> None:
        self.free_places = MAX_WAITING + 1
        self.free_uploads = MAX_UPLOADS
        self.receiving: list[Upload] = []
        self.models = ThreadPoolExecutor(1, "models")
        # Apart: uploads that take long do not hold back clips of the index.
        self.upload_decoders = ThreadPoolExecutor(DECODERS, "uploads")
        self.clip_decoders = ThreadPoolExecutor(DECODERS, "clips")

    async def run(
        self,
        request: Request,
        compute: Callable[[Path | None, Any], T],
        decode: Callable[[Path | None], Any] | None = None,
    ) -> T:
        """compute(file, decode(file)), where `file` is the body of a POST; None if it is empty.

        Raises 429 if too many requests wait, and 408, 413 and 429 for uploads. A client that goes
        away gives up its turn.
        """
        async with self._received(request) as file:
            # At once: a longer queue would answer everybody late.
            if not self.free_places:
                raise HTTPException(429, "too many requests are waiting", {"Retry-After": "1"})

            self.free_places -= 1
            try:
                decoded = None
                if decode:
                    pool = self.upload_decoders if file else self.clip_decoders
                    decoded = await self._finish(request, pool, decode, file)
                return await self._finish(request, self.models, compute, file, decoded)
            finally:
                self.free_places += 1

    async def _finish(
        self, request: Request, pool: ThreadPoolExecutor, function: Callable[..., T], *values: Any
    ) -> T:
        """The result of a function in a pool. Raises 499 if the client goes away."""
        work = asyncio.wrap_future(pool.submit(function, *values))
        try:
            while True:
                # Each second: does anybody still wait?
                done, _ = await asyncio.wait([work], timeout=1)
                if done:
                    return work.result()
                if await request.is_disconnected():
                    raise HTTPException(499)
        finally:
            # Drops what has not begun; a function that runs goes on.
            work.cancel()

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[Path | None]:
        """The body of a POST as a file, which is deleted. It needs a place among the uploads."""
        if request.method != "POST":
            yield None
            return

        if not self.free_uploads:
            self._evict_slow_upload()
        # Below zero until the evicted one has left.
        self.free_uploads -= 1

        try:
            with NamedTemporaryFile(prefix="alpro-upload-") as file:
                await self._receive(request, file)
                yield Path(file.name) if file.tell() else None
        finally:
            self.free_uploads += 1

    async def _receive(self, request: Request, file: IO[bytes]) -> None:
        """Writes the body of a request to a file. Raises 408 and 413."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(GRACE_SECONDS, UPLOAD_SECONDS)) as limit:
                upload = Upload(limit, now)
                self.receiving.append(upload)
                try:
                    await self._copy(request, file, upload)
                finally:
                    self.receiving.remove(upload)
        except (TimeoutError, ClientDisconnect):
            # Too slow, evicted by another, or gone.
            raise HTTPException(408, "the upload takes too long", {"Connection": "close"}) from None

        # Decoders open the file by its name.
        file.flush()

    async def _copy(self, request: Request, file: IO[bytes], upload: Upload) -> None:
        async for part in request.stream():
            file.write(part)
            upload.received += len(part)
            if upload.received > MAX_UPLOAD:
                raise HTTPException(
                    413, f"more than {MAX_UPLOAD >> 20} MiB", {"Connection": "close"}
                )

            # Its limit is now: another one would let it go on.
            if upload.evicted:
                continue

            allowed = min(UPLOAD_SECONDS, GRACE_SECONDS + upload.received / MIN_RATE)
            upload.limit.reschedule(upload.started + allowed)

    def _evict_slow_upload(self) -> None:
        """Ends the slowest body that arrives too slowly. Raises 429 if there is none."""
        # One that has just started is not slow, so each gets a chance.
        now = asyncio.get_running_loop().time()
        slow = [one for one in self.receiving if one.is_slow(now) and not one.evicted]
        if not slow:
            raise HTTPException(
                429, "too many uploads", {"Retry-After": "1", "Connection": "close"}
            )

        slowest = min(slow, key=lambda upload: upload.received)
        slowest.evicted = True
        slowest.limit.reschedule(now)
