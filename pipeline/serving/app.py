"""The API of `alpro serve` and its page. Parameters are in the query of an address; the body of a
POST is a file."""

import asyncio
import errno
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from alpro.errors import InputError
from alpro.inference.clips import load_clip
from alpro.inference.filters import SECONDS_COLUMNS, TEXT_COLUMNS
from alpro.inference.index import clip_key, source_of
from alpro.inference.search import list_clips, search, similar
from alpro.inputs import WHOLE, parse_box
from alpro.log import log
from alpro.pipeline.serving.models import ServedModels, model_name
from alpro.pipeline.serving.requests import RequestQueue
from alpro.shards.clip import DecodeError
from alpro.shards.storage import located, suffix

HERE = Path(__file__).parent
PAGE_FILES = ("page.css", "page.js", "clip.js", "parts.js")
MAX_TEXT = 500  # characters
MAX_RESULTS = 100  # of one answer
MAX_RANK = 10_000  # to which results can be paged through
PREVIEW_PIXELS = 320
PREVIEW_FRAMES = 8
PREVIEW_MILLISECONDS = 300  # of a frame that moves
CACHED_PREVIEWS = 1000
MAX_EXAMPLE = 80  # characters of a query to try
PRIVATE = {"Cache-Control": "private, max-age=3600"}
# Of files that browsers may play as they are; whether they do depends on the codec.
PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
# Python reads no number of more than 4,300 digits.
BYTE_RANGE = re.compile(rb"[0-9]{1,99}-[0-9]{0,99}|-[0-9]{1,99}")
Key = Annotated[str, Query(max_length=40, description="of a hit: refuses another clip's number")]


class ClipQuery(BaseModel):
    """A clip of the index, by its number; none: the body of the request."""

    model_config = ConfigDict(extra="forbid")

    clip: int | None = Field(default=None, ge=0, description="number of a clip of the index")
    key: str = Field(
        default="", max_length=40, description="of a hit: refuses another clip's number"
    )
    k: int = Field(default=10, ge=1, le=MAX_RESULTS, description="number of results")


class SearchQuery(ClipQuery):
    text: str = Field(default="", max_length=MAX_TEXT, description="what the videos should show")
    offset: int = Field(
        default=0, ge=0, le=MAX_RANK, description="results to skip: those of earlier pages"
    )
    filter: list[Annotated[str, Field(max_length=MAX_TEXT)]] = Field(
        default=[],
        max_length=20,
        description="conditions, such as kind=video duration<10, or words",
    )
    rerank: int | None = Field(
        default=None,
        ge=0,
        le=MAX_RESULTS,
        description="of the best clips, those to rank by matching",
    )


class Question(ClipQuery):
    question: str = Field(max_length=MAX_TEXT)


class Region(ClipQuery):
    box: str = Field(
        default="", max_length=100, description="left,top,width,height as fractions of the frame"
    )
    text: str = Field(
        default="", max_length=MAX_TEXT, description="caption, which a model of pretrain reads"
    )


def application(
    models: ServedModels, rerank: int | None = None, nothing_below: float | None = None
) -> FastAPI:
    """The API and the page, without the checks of `guard.py`.

    rerank: clips that a search matches, unless the request says how many. nothing_below: see
    `search`.
    """
    app = FastAPI(
        title="ALPRO",
        version=version("alpro-pipeline"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,  # its page loads scripts of other hosts
    )
    app.router.redirect_slashes = False

    queue = RequestQueue()
    app.state.queue = queue

    _add_errors(app)
    _add_searches(app, models, queue, rerank, nothing_below)
    _add_answers(app, models, queue)
    _add_clips(app, models)
    _add_health(app, models)
    _add_page(app)
    _add_heads(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    @app.exception_handler(DecodeError)
    @app.exception_handler(ValueError)
    async def mistake(request: Request, error: Exception) -> Response:
        text = str(error)
        if isinstance(error, DecodeError):
            # Without its detail, which may name the server's own files.
            text = f"this file cannot be decoded: {error.reason}"

        return JSONResponse({"detail": text}, 400)

    @app.exception_handler(OSError)
    async def disk(request: Request, error: OSError) -> Response:
        """A full or missing disk of the server: without the name of the file."""
        # Of uploads, for which there is no space: a smaller one may fit.
        no_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        log.warning(f"a request was not answered: {error}")
        reason = error.strerror or "a file cannot be read"
        return JSONResponse({"detail": f"on the server: {reason}"}, 413 if no_space else 503)


def _add_searches(
    app: FastAPI,
    models: ServedModels,
    queue: RequestQueue,
    rerank: int | None,
    nothing_below: float | None,
) -> None:
    @app.get("/api/search")
    @app.post("/api/search", operation_id="search_upload")
    async def search_clips(
        request: Request, query: Annotated[SearchQuery, Query()]
    ) -> dict[str, Any]:
        """The clips that fit a text, or that are similar to a clip or to the body; all clips if
        there is neither."""
        model = models.require("search", "INDEX")

        def decode(file: Path | None) -> Any:
            if file is None:  # an empty body
                return None
            if query.text or query.clip is not None:
                raise HTTPException(400, "search for a text, a clip or a file, not for two of them")
            return models.frames(model, None, "", file)

        def compute(file: Path | None, frames: Any) -> dict[str, Any]:
            if query.text and query.clip is not None:
                raise HTTPException(400, "search for a text or for a clip, not both")

            # Here, in the models' thread: opening a changed index would hold up the event loop.
            models.refresh()
            index = models.require("index", "INDEX")
            page: dict[str, Any] = {"k": query.k, "offset": query.offset, "filters": query.filter}

            if query.text:
                matched = rerank if query.rerank is None else query.rerank
                return search(
                    index,
                    model,
                    query.text,
                    **page,
                    rerank=matched,
                    nothing_below=nothing_below,
                ).json()

            if query.clip is not None:
                # Refuses a number that stands for another clip since the index has changed.
                models.item(query.clip, query.key)
                embedding = index.embeddings[query.clip]
                return similar(index, embedding, **page, without=query.clip).json()

            if frames is None:
                return list_clips(index, **page).json()
            return similar(index, model.embed_frames(frames)[0], **page).json()

        # A search by text must not wait for a thread that decodes.
        return await queue.run(request, compute, decode if request.method == "POST" else None)


def _add_answers(app: FastAPI, models: ServedModels, queue: RequestQueue) -> None:
    @app.get("/api/ask")
    @app.post("/api/ask", operation_id="ask_upload")
    async def ask(request: Request, query: Annotated[Question, Query()]) -> dict[str, Any]:
        """Answers to a question about a clip or the body, best first."""
        model = models.require("ask", "--ask MODEL")

        def compute(file: Path | None, frames: Any) -> list[tuple[str, float]]:
            source = models.source(query.clip, file)
            return model.ask(source, query.question, query.k, frames=frames)

        answers = await queue.run(
            request, compute, lambda file: models.frames(model, query.clip, query.key, file)
        )

        return {"answers": ranked_words(answers), "note": model.note(query.question)}

    @app.get("/api/entities")
    @app.post("/api/entities", operation_id="entities_upload")
    async def entities(request: Request, query: Annotated[Region, Query()]) -> dict[str, Any]:
        """Entities in a region of a clip or the body, best first."""
        model = models.require("entities", "--entities MODEL")
        # Before the queue: a wrong box is refused at once.
        box = parse_box(query.box) if query.box.strip() else WHOLE

        def compute(file: Path | None, frames: Any) -> list[tuple[str, float]]:
            source = models.source(query.clip, file)
            return model.entities(source, box, query.k, text=query.text.strip(), frames=frames)

        named = await queue.run(
            request, compute, lambda file: models.frames(model, query.clip, query.key, file)
        )

        return {"entities": ranked_words(named), "note": model.entities_note}


def _add_clips(app: FastAPI, models: ServedModels) -> None:
    threads = ThreadPoolExecutor(os.cpu_count(), "previews")

    @lru_cache(maxsize=CACHED_PREVIEWS)
    def preview(clip: int, key: str, identity: str, frames: int) -> bytes:
        """The middle frame of a clip, or some frames that move, as WebP in their original shape."""
        # `identity` is only part of the cache's key: a changed file has a new preview.
        item = models.current_item(clip, key)

        moves = frames > 1
        # A still is the first frame of the middle third.
        decoded = load_clip(source_of(item), frames if moves else 3, PREVIEW_PIXELS)
        # Decoded frames are squares; width and height are those of the file.
        ratio = decoded.width / decoded.height if decoded.width and decoded.height else 1.0
        size = (PREVIEW_PIXELS, max(1, round(PREVIEW_PIXELS / ratio)))

        chosen = decoded.frames if moves else decoded.frames[1:2]
        first, *others = (Image.fromarray(frame).resize(size) for frame in chosen)

        out = io.BytesIO()
        first.save(
            out,
            "WEBP",
            save_all=True,
            append_images=others,
            duration=PREVIEW_MILLISECONDS,
            loop=0,
            quality=80,
        )
        return out.getvalue()

    @app.get("/api/clip/{clip}")
    async def clip_file(
        clip: Annotated[int, InPath(ge=0)],
        view: Literal["file", "still", "moving"] = "file",
        key: Key = "",
    ) -> Response:
        """The file of a clip, in ranges, if browsers may play it; or its middle frame, or eight
        frames that move."""
        loop = asyncio.get_running_loop()
        # Threads wait for the disk, which may be a network's; the event loop does not.
        item = await loop.run_in_executor(threads, models.current_item, clip, key)

        if view != "file":
            frames = PREVIEW_FRAMES if view == "moving" else 1
            picture = await loop.run_in_executor(
                threads, preview, clip, clip_key(item), item["identity"], frames
            )
            return Response(picture, media_type="image/webp", headers=PRIVATE)

        path = located(item["path"])
        # The path of a sample is that of its shard, a tar.
        is_sample = item["frame_offsets"] is not None
        if is_sample or not isinstance(path, Path) or suffix(path) not in PLAYABLE:
            raise HTTPException(
                404, "browsers cannot play this file; view=moving shows some frames"
            )
        if not os.access(path, os.R_OK):  # the answer would break off after its headers
            raise HTTPException(404, "this file cannot be read")
        return File(path, media_type=PLAYABLE[suffix(path)], headers=PRIVATE)


def _add_health(app: FastAPI, models: ServedModels) -> None:
    example_texts = examples(models)

    @app.get("/api/health")
    def health() -> dict[str, Any]:
        """What this server does; it waits for no model."""
        models.refresh()
        # Such a model also reads a caption of the clip.
        reads_text = models.entities and models.entities.folder.task == "pretrain"
        offers: dict[str, Any] = {
            "search": models.search,
            "ask": models.ask,
            "entities": models.entities,
            "text": reads_text,
        }

        # Read once: another request may replace it by a newer one.
        index = models.index
        return {
            "status": "ok",
            "version": app.version,
            "clips": len(index) if index else 0,
            "index": index.folder.resolve().name if index else "",
            "model": model_name(index.about.model) if index else "",
            "columns": [*TEXT_COLUMNS, *SECONDS_COLUMNS, *index.about.columns] if index else [],
            "entities": models.entities.entities_note if models.entities else "",
            "offers": [name for name, model in offers.items() if model],
            "examples": example_texts,
        }


def _add_page(app: FastAPI) -> None:
    # A function for each file: a lambda in a loop would serve the last name.
    def add(address: str, name: str) -> None:
        app.get(address, include_in_schema=False)(lambda: File(HERE / name))

    add("/", "page.html")
    for name in PAGE_FILES:
        add(f"/{name}", name)


def _add_heads(app: FastAPI) -> None:
    """HEAD for each address that has GET (RFC 9110, 9.1), which FastAPI does not add."""
    for route in [*app.routes]:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


class File(FileResponse):
    """A file, in ranges. A Range header of another unit or grammar is ignored (RFC 9110, 14.2);
    Starlette would refuse the one, and read `+1-2` in the other."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"range" or are_byte_ranges(value)
        ]
        await super().__call__({**scope, "headers": headers}, receive, send)


def are_byte_ranges(value: bytes) -> bool:
    """Whether the value of a Range header has the grammar of byte ranges.

    >>> [are_byte_ranges(value) for value in (b"bytes=0-9, -5", b"bytes=a-9", b"items=0-9")]
    [True, False, False]
    """
    unit, _, ranges = value.partition(b"=")
    parts = [part.strip(b" \t") for part in ranges.split(b",")]
    named = [part for part in parts if part]
    return unit.lower() == b"bytes" and bool(named) and all(map(BYTE_RANGE.fullmatch, named))


def ranked_words(ranked: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"text": text, "probability": probability} for text, probability in ranked]


def examples(models: ServedModels) -> list[str]:
    """Three texts to try: captions of the index, or else entities."""
    if not models.index:
        return []

    captions = pc.unique(models.index.items["caption"]).to_pylist()
    texts = [text for text in captions if text and len(text) <= MAX_EXAMPLE]
    if not texts and models.entities:
        texts = models.entities.folder.entities

    # Evenly spread: neighbours in an index are often alike.
    return texts[:: max(1, len(texts) // 3)][:3]
