"""The API of `alpro serve` and its page. Parameters are in the query of an address; the body of a
POST is a file."""

import io
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, Field

from alpro.errors import Failure
from alpro.inference.clips import load_clip
from alpro.inference.index import SHOWN_COLUMNS, get_source
from alpro.inference.model import WHOLE, Model
from alpro.inference.search import Searcher
from alpro.log import log
from alpro.pipeline.serving.models import ServedModels
from alpro.pipeline.serving.requests import RequestQueue
from alpro.shards.clip import DecodeError
from alpro.shards.storage import located, suffix

PAGE = Path(__file__).parent / "page"
MAX_RESULTS = 100  # in one answer
MAX_RANK = 10_000  # to which results can be paged through
PREVIEW_PIXELS = 320
PREVIEW_FRAMES = 8
PREVIEW_MILLISECONDS = 300  # duration of a frame in a moving preview
PRIVATE = {"Cache-Control": "private, max-age=3600"}
# Types that browsers may play without conversion, depending on the codec.
PLAYABLE = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
}


Text = Annotated[str, Field(max_length=500)]


class ClipQuery(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """A clip of the index; without one, the body of the request."""

    clip: Text = ""
    """key of a clip of the index"""
    k: int = Field(default=10, ge=1, le=MAX_RESULTS)
    """number of results"""


class SearchQuery(ClipQuery):
    text: Text = ""
    """what the videos should show"""
    offset: int = Field(default=0, ge=0, le=MAX_RANK)
    """results to skip, which earlier pages showed"""
    where: Text = ""
    """condition in SQL, such as kind = 'video' AND duration < 10"""
    words: Text = ""
    """words that must be in the caption, the file name or the id"""
    rerank: int | None = Field(default=None, ge=0, le=MAX_RESULTS)
    """number of the best clips to rank by matching"""


class Question(ClipQuery):
    question: Text


class Region(ClipQuery):
    box: Text = ""
    """left,top,width,height as fractions of the frame"""


def application(models: ServedModels) -> FastAPI:
    """Create the API and the page, without the checks of `guard.py`."""
    app = FastAPI(
        title="ALPRO",
        version=version("alpro-pipeline"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,  # its page loads scripts of other hosts
    )
    app.router.redirect_slashes = False
    queue = RequestQueue()

    index = models.search.index.place if models.search else ""

    @app.exception_handler(Failure)
    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    async def refuse(request: Request, error: Exception) -> Response:
        """Answer with a line, which has no names of the server's own files."""
        status = 400
        text = str(error).removeprefix(f"{index}: ")
        if isinstance(error, DecodeError):
            text = f"this file cannot be decoded as a video or an image: {error.reason}"
        if isinstance(error, OSError):  # the disk is full or missing
            log.warning(f"a request was not answered: {error}")
            status = 503
            text = f"on the server: {error.strerror or 'no file'}"
        return JSONResponse({"detail": text}, status)

    _add_searches(app, models, queue)
    _add_answers(app, models, queue)
    _add_clips(app, models)
    _add_health(app, models)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_searches(app: FastAPI, models: ServedModels, queue: RequestQueue) -> None:
    @app.get("/api/search")
    @app.post("/api/search", operation_id="search_upload")
    def search_clips(
        query: Annotated[SearchQuery, Query()],
        file: Annotated[Path | None, Depends(queue.receive)],
    ) -> dict[str, Any]:
        """Return the clips that fit a text, or that are similar to a clip or to the body; all clips
        if there is neither."""
        searcher: Searcher = models.require("search", "INDEX")
        if sum(map(bool, (query.text, query.clip, file))) > 1:
            raise HTTPException(
                400, "search for a text, a clip or a file, not for two of them"
            )
        page = query.model_dump(exclude={"text", "clip", "rerank"})

        if query.text:
            return queue.compute(
                searcher.search, query.text, rerank=query.rerank, **page
            ).json()
        if query.clip:
            models.item(query.clip)  # 404 if there is none
            embedding = searcher.index.embedding(query.clip)
        elif file:
            _, frames = models.decode(searcher.model, "", file)
            embedding = queue.compute(searcher.model.embed_frames, frames)
        else:
            return searcher.all(**page).json()
        return searcher.similar(embedding, **page, without=query.clip).json()


def _add_answers(app: FastAPI, models: ServedModels, queue: RequestQueue) -> None:
    @app.get("/api/ask")
    @app.post("/api/ask", operation_id="ask_upload")
    def ask(
        query: Annotated[Question, Query()],
        file: Annotated[Path | None, Depends(queue.receive)],
    ) -> dict[str, Any]:
        """Return answers to a question about a clip or the body, best first."""
        model: Model = models.require("ask", "--ask MODEL")
        source, frames = models.decode(model, query.clip, file)
        answers = queue.compute(
            model.ask, source, query.question, query.k, frames=frames
        )
        return {"answers": ranked_words(answers), "note": model.note(query.question)}

    @app.get("/api/entities")
    @app.post("/api/entities", operation_id="entities_upload")
    def entities(
        query: Annotated[Region, Query()],
        file: Annotated[Path | None, Depends(queue.receive)],
    ) -> dict[str, Any]:
        """Return entities in a region of a clip or the body, best first."""
        model: Model = models.require("entities", "--entities MODEL")
        box = query.box.strip() or WHOLE
        source, frames = models.decode(model, query.clip, file)
        labels = queue.compute(model.entities, source, box, query.k, frames=frames)
        return {"entities": ranked_words(labels), "note": model.entities_note}


def _add_clips(app: FastAPI, models: ServedModels) -> None:
    @app.head("/api/clip/{key}", include_in_schema=False)
    @app.get("/api/clip/{key}")
    def clip_file(
        key: str, view: Literal["file", "still", "moving"] = "file"
    ) -> Response:
        """Return the file of a clip, in ranges, if browsers may play it; or its middle frame, or
        eight frames that move."""
        item = models.current_item(key)
        if view != "file":
            picture = render_preview(item, view == "moving")
            return Response(picture, media_type="image/webp", headers=PRIVATE)

        path = located(item["path"])
        # The path of a member is the path of its tar, whose suffix is no video's.
        if not isinstance(path, Path) or suffix(path) not in PLAYABLE:
            raise HTTPException(
                404, "browsers cannot play this file; view=moving shows some frames"
            )
        return FileResponse(path, media_type=PLAYABLE[suffix(path)], headers=PRIVATE)


def render_preview(item: dict[str, Any], moves: bool) -> bytes:
    """Render the middle frame of a clip, or frames that move, as WebP in their original shape."""
    # A still is the first frame of the middle third.
    count = PREVIEW_FRAMES if moves else 3
    decoded = load_clip(get_source(item), count, PREVIEW_PIXELS)
    frames = decoded.frames if moves else decoded.frames[1:2]
    # Decoded frames are squares; `width` and `height` describe the file.
    ratio = decoded.width / decoded.height if decoded.width and decoded.height else 1.0
    # Narrow clips are drawn wider: WebP has at most 16,383 rows, and memory is finite.
    size = (PREVIEW_PIXELS, max(1, round(PREVIEW_PIXELS / max(ratio, 0.25))))

    first, *others = (Image.fromarray(frame).resize(size) for frame in frames)
    out = io.BytesIO()
    options = {"duration": PREVIEW_MILLISECONDS, "loop": 0}
    first.save(out, "WEBP", save_all=True, append_images=others, **options)
    return out.getvalue()


def _add_health(app: FastAPI, models: ServedModels) -> None:
    @app.head("/api/health", include_in_schema=False)
    @app.get("/api/health")
    def health() -> dict[str, Any]:
        """Return what this server does; it waits for no model."""
        about: dict[str, Any] = {"clips": 0, "index": "", "columns": []}
        if models.search:
            index = models.search.index
            _ = index.settings  # 503 if it is gone, or of another model now
            about |= {
                "clips": len(index),
                "index": Path(index.place).name,
                "columns": [*SHOWN_COLUMNS, *index.columns],
            }
        offers = [name for name, model in vars(models).items() if model]
        return {"status": "ok", "offers": offers, **about}


def ranked_words(ranked: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"text": text, "probability": probability} for text, probability in ranked]
