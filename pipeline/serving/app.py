"""The API of `alpro serve` and its page. Parameters are in the query of an address; the body of a POST is a file."""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal, TypeVar

import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from alpro.errors import InputError
from alpro.inference.clips import Source, load_clip
from alpro.inference.index import Index, source_of
from alpro.inference.model import Model
from alpro.inference.search import listed, search, similar
from alpro.inputs import WHOLE, parse_box
from alpro.shards.clip import DecodeError
from alpro.shards.schema import Row
from alpro.shards.storage import located, suffix

HERE = Path(__file__).parent
MAX_TEXT = 500  # characters
MAX_RESULTS = 100  # of one answer
MAX_RANK = 10_000  # to which results can be paged through
MAX_WAITING = 32  # requests, beside the one that is computed
MAX_UPLOADS = 8  # bodies that are received at a time
MAX_UPLOAD = 200 << 20  # bytes
UPLOAD_SECONDS = 120.0  # for a whole body
PREVIEW_PIXELS, PREVIEW_FRAMES = 320, 8
PRIVATE = {"Cache-Control": "private, max-age=3600"}
# Of files that browsers may play as they are; whether they do depends on the codec.
PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
T = TypeVar("T")


@dataclass
class Models:
    """The models; None where the server cannot search, answer or name entities."""

    index: Index | None = None
    search: Model | None = None
    ask: Model | None = None
    entities: Model | None = None

    def require(self, what: str, option: str) -> Any:
        """Raises 404 if the server does not do it."""
        if not (model := getattr(self, what)):
            raise HTTPException(404, f"this server was started without {option}")
        return model

    def item(self, clip: int) -> Any:
        """A clip of the index. Raises 404."""
        if not self.index or clip >= len(self.index):
            raise HTTPException(404, "there is no such clip")
        return self.index.item(clip)

    def source(self, clip: int | None, file: Path | None) -> Source:
        """What decodes the clip that a request names, or its body. Raises 400."""
        if (clip is None) == (file is None):
            raise HTTPException(400, "name a clip by its number, or send a file")
        if not file:
            assert clip is not None
            return source_of(self.item(clip))
        with file.open("rb") as opened:
            start = opened.read(12)
        image = start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM")) or start[8:12] == b"WEBP"
        return Row(id="upload", path=file, kind="image" if image else "video")


class Of(BaseModel):
    """A clip of the index, by its number; none: the body of the request."""

    model_config = ConfigDict(extra="forbid")

    clip: int | None = Field(default=None, ge=0, description="number of a clip of the index")
    k: int = Field(default=10, ge=1, le=MAX_RESULTS, description="number of results")


class Search(Of):
    text: str = Field(default="", max_length=MAX_TEXT, description="what the videos should show")
    offset: int = Field(
        default=0, ge=0, le=MAX_RANK, description="results to skip: those of earlier pages"
    )
    filter: list[str] = Field(
        default=[], max_length=20, description="conditions, such as kind=video or date>=2024-01-01"
    )
    rerank: int | None = Field(
        default=None,
        ge=0,
        le=MAX_RESULTS,
        description="of the best clips, those to rank by matching",
    )


class Question(Of):
    question: str = Field(max_length=MAX_TEXT)


class Region(Of):
    box: str = Field(
        default="", max_length=100, description="left,top,width,height as fractions of the frame"
    )
    text: str = Field(
        default="", max_length=MAX_TEXT, description="caption, which a model of pretrain reads"
    )


class Queue:
    """Runs functions of the models one at a time, in order, in one thread: torch keeps workers for each thread."""

    def __init__(self) -> None:
        self.places, self.uploads = MAX_WAITING + 1, MAX_UPLOADS
        self.thread = ThreadPoolExecutor(1, "models")

    async def run(self, request: Request, function: Callable[[Path | None], T]) -> T:
        """The result of a function of the uploaded file, if there is one. Raises 429 if too many requests wait, and
        408, 413 and 429 for uploads. A client that goes away gives up its turn."""
        async with self._received(request) as file:
            if not self.places:
                raise HTTPException(429, "too many requests are waiting", {"Retry-After": "1"})
            self.places -= 1
            work = asyncio.wrap_future(self.thread.submit(function, file))
            try:
                while not (await asyncio.wait([work], timeout=1))[0]:
                    if await request.is_disconnected():
                        raise HTTPException(499)
                return work.result()
            finally:
                work.cancel()
                self.places += 1

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[Path | None]:
        """The body of a POST as a file, which is deleted. It needs a place of its own, so slow ones block no others."""
        if request.method != "POST":
            yield None
            return
        if not self.uploads:
            raise HTTPException(
                429, "too many uploads", {"Retry-After": "1", "Connection": "close"}
            )
        self.uploads -= 1
        try:
            with NamedTemporaryFile(prefix="alpro-upload-") as file:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    async for part in request.stream():
                        file.write(part)
                        if file.tell() > MAX_UPLOAD:
                            raise HTTPException(
                                413, f"more than {MAX_UPLOAD >> 20} MiB", {"Connection": "close"}
                            )
                file.flush()
                yield Path(file.name) if file.tell() else None
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(408, "the upload takes too long", {"Connection": "close"}) from None
        finally:
            self.uploads += 1


def application(
    models: Models, rerank: int | None = None, nothing_below: float | None = None
) -> FastAPI:
    """The API and the page, without the checks of `guard.py`. rerank: clips that a search matches, unless the
    request says how many; see `search`."""
    app = FastAPI(
        title="ALPRO",
        version=version("alpro-pipeline"),
        openapi_url="/api/openapi.json",
        docs_url=None,
    )
    app.router.redirect_slashes = False
    queue, previews = Queue(), ThreadPoolExecutor(os.cpu_count(), "previews")
    app.state.queue = queue
    example_texts = examples(models)

    @app.exception_handler(InputError)
    @app.exception_handler(DecodeError)
    @app.exception_handler(ValueError)
    async def mistake(request: Request, error: Exception) -> Response:
        text = (
            f"this file cannot be decoded: {error.reason}"
            if isinstance(error, DecodeError)
            else str(error)
        )
        return JSONResponse({"detail": text}, 400)

    @app.get("/api/search")
    @app.post("/api/search", operation_id="search_upload")
    async def search_clips(request: Request, wanted: Annotated[Search, Query()]) -> dict[str, Any]:
        """The clips that fit a text, or that are similar to a clip or to the body; all clips if there is neither."""
        index, model = models.require("index", "INDEX"), models.require("search", "INDEX")
        page = wanted.k, wanted.offset, wanted.filter

        def run(file: Path | None) -> dict[str, Any]:
            if wanted.text and (wanted.clip is not None or file):
                raise HTTPException(400, "search for a text or for a clip, not both")
            if wanted.text:
                matched = rerank if wanted.rerank is None else wanted.rerank
                return search(index, model, wanted.text, *page, matched, nothing_below).json()
            if wanted.clip is not None:
                models.item(wanted.clip)
                return similar(
                    index, index.embeddings[wanted.clip], *page, without=wanted.clip
                ).json()
            if not file:
                return listed(index, *page).json()
            (embedded,) = model.stream([models.source(None, file)])
            if embedded.error:
                raise embedded.error
            return similar(index, embedded.embedding.cpu().numpy(), *page).json()

        return await queue.run(request, run)

    @app.get("/api/ask")
    @app.post("/api/ask", operation_id="ask_upload")
    async def ask(request: Request, wanted: Annotated[Question, Query()]) -> dict[str, Any]:
        """Answers to a question about a clip or the body, best first."""
        model, asked = models.require("ask", "--ask MODEL"), wanted.question
        answers = await queue.run(
            request, lambda file: model.ask(models.source(wanted.clip, file), asked, wanted.k)
        )
        return {"answers": words(answers), "note": model.note(asked)}

    @app.get("/api/entities")
    @app.post("/api/entities", operation_id="entities_upload")
    async def entities(request: Request, wanted: Annotated[Region, Query()]) -> dict[str, Any]:
        """Entities in a region of a clip or the body, best first."""
        model = models.require("entities", "--entities MODEL")

        def run(file: Path | None) -> list[tuple[str, float]]:
            box = parse_box(wanted.box) if wanted.box.strip() else WHOLE
            return model.entities(
                models.source(wanted.clip, file), box, wanted.k, wanted.text.strip()
            )

        return {"entities": words(await queue.run(request, run))}

    @lru_cache(maxsize=1000)
    def preview(clip: int, frames: int) -> bytes:
        """The middle frame of a clip, or some frames that move, as WebP in their original shape."""
        decoded = load_clip(
            source_of(models.item(clip)), frames if frames > 1 else 3, PREVIEW_PIXELS
        )
        ratio = decoded.width / decoded.height if decoded.width and decoded.height else 1.0
        size = (PREVIEW_PIXELS, max(1, round(PREVIEW_PIXELS / ratio)))
        chosen = decoded.frames if frames > 1 else decoded.frames[1:2]
        first, *others = (Image.fromarray(frame).resize(size) for frame in chosen)
        first.save(
            out := io.BytesIO(),
            "WEBP",
            save_all=True,
            append_images=others,
            duration=300,
            loop=0,
            quality=80,
        )
        return out.getvalue()

    @app.get("/api/clip/{clip}")
    async def clip(
        clip: Annotated[int, InPath(ge=0)], view: Literal["file", "still", "moving"] = "file"
    ) -> Response:
        """The file of a clip, in ranges, if browsers may play it; or its middle frame, or eight frames that move."""
        item = models.item(clip)
        if view != "file":
            frames = PREVIEW_FRAMES if view == "moving" else 1
            picture = await asyncio.get_running_loop().run_in_executor(
                previews, preview, clip, frames
            )
            return Response(picture, media_type="image/webp", headers=PRIVATE)
        path = located(item["path"])
        if (
            item["frame_offsets"] is not None
            or not isinstance(path, Path)
            or suffix(path) not in PLAYABLE
        ):
            raise HTTPException(
                404, "browsers cannot play this file; view=moving shows some frames"
            )
        if not path.is_file():
            raise HTTPException(404, "this file is missing")
        return FileResponse(path, media_type=PLAYABLE[suffix(path)], headers=PRIVATE)

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        """What this server does; it waits for no model."""
        offers: dict[str, Any] = {
            "search": models.search,
            "ask": models.ask,
            "entities": models.entities,
            "text": models.entities and models.entities.folder.task == "pretrain",
        }
        return {
            "status": "ok",
            "version": app.version,
            "clips": len(models.index) if models.index else 0,
            "offers": [name for name, model in offers.items() if model],
            "examples": example_texts,
        }

    for address, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js")):
        app.get(address, include_in_schema=False)(lambda name=name: FileResponse(HERE / name))
    return app


def words(ranked: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"text": text, "probability": probability} for text, probability in ranked]


def examples(models: Models) -> list[str]:
    """Three texts to try: captions of the index, or else entities."""
    if not models.index:
        return []
    texts = [
        text
        for text in pc.unique(models.index.items["caption"]).to_pylist()
        if text and len(text) <= 80
    ]
    texts = texts or (models.entities.folder.entities if models.entities else [])
    return texts[:: max(1, len(texts) // 3)][:3]
