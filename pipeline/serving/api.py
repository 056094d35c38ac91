"""The JSON API under /api: what the page does, for programs. FastAPI checks the requests and describes them."""

import shutil
from collections.abc import Callable
from html import escape
from importlib.metadata import version
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Form, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from alpro.inference.search import Found, described
from alpro.pipeline.serving.answers import MAX_TEXT, Answers, Clip, Ranked
from alpro.pipeline.serving.mistakes import Missing, Mistake, refusal
from alpro.pipeline.serving.turns import Queued
from alpro.shards.schema import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

MAX_RESULTS = 100  # of one answer
MAX_RANK = 10_000  # to which results can be paged through
OPENAPI, DOCS, HEALTH = "/api/openapi.json", "/api/docs", "/api/health"
MULTIPART = Form(media_type="multipart/form-data")
T = TypeVar("T")


class Limited(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, ge=1, le=MAX_RESULTS, description="number of results")


class Page(Limited):
    offset: int = Field(0, ge=0, le=MAX_RANK, description="results to skip: those of earlier pages")
    filter: list[str] = Field([], max_length=20, description="conditions, such as kind=video or date>=2024-01-01")


class Search(Page):
    text: str = Field(max_length=MAX_TEXT, description="what the videos should show")
    rerank: int | None = Field(None, ge=0, le=MAX_RESULTS, description="clips ranked by matching (default: --rerank)")


class OfClip(BaseModel):
    clip: int | None = Field(None, ge=0, description="number of a clip of the index")
    id: str = Field("", description="its id, instead")


class OfUpload(BaseModel):
    file: UploadFile = Field(description="a video or an image")


class Question(Limited):
    question: str = Field(max_length=MAX_TEXT)


class Region(Limited):
    box: str = Field("", max_length=100, description="left,top,width,height as fractions of the frame")
    text: str = Field("", max_length=MAX_TEXT, description="caption, which a model of pretrain reads")


class SimilarToClip(Page, OfClip):
    pass


class SimilarToUpload(Page, OfUpload):
    pass


class AskClip(Question, OfClip):
    pass


class AskUpload(Question, OfUpload):
    pass


class EntitiesOfClip(Region, OfClip):
    pass


class EntitiesOfUpload(Region, OfUpload):
    pass


class HitAnswer(BaseModel):
    clip: int = Field(description="its number; /media/clips/NUMBER plays it")
    id: str
    path: str
    kind: str
    start: float | None
    end: float | None
    columns: dict[str, str] = Field(description="kept by `alpro index add --columns`")
    similarity: float
    match: float | None = Field(description="probability that text and clip match, if it was ranked by matching")
    note: str = Field(description="whether the file is missing, changed or unreadable")
    span: tuple[float, float] | None = Field(description="seconds that the clip and windows beside it cover")


class Results(BaseModel):
    hits: list[HitAnswer]
    clips: int = Field(description="clips that fit the filters; all were compared")
    nothing_fits: bool | None = Field(description="whether no similarity reaches --nothing-below; null without it")
    note: str = Field(description="whether the model knows no word of the text")


class Word(BaseModel):
    text: str
    probability: float


class Answered(BaseModel):
    answers: list[Word]


class Named(BaseModel):
    entities: list[Word] | None = Field(None, description="by the prompter")
    model_entities: list[Word] | None = Field(None, description="by the pre-trained model")


class Health(BaseModel):
    status: str
    version: str
    clips: int
    models: dict[str, str] = Field(description="SHA-256 of each model")


def build(answers: Answers, max_upload: int) -> FastAPI:
    """The API, with what its models can do. max_upload: bytes of a request with a file."""
    app = FastAPI(title="ALPRO", version=version("alpro-pipeline"), openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    app.add_middleware(Queued, turns=answers.turns, free=frozenset({OPENAPI, DOCS, HEALTH}), max_upload=max_upload)

    @app.exception_handler(Mistake)
    async def refuse(request: Request, mistake: Mistake) -> Response:
        return refusal(mistake)

    @app.get(HEALTH)
    async def health(response: Response) -> Health:
        """503 while the server is stopping."""
        response.status_code = 503 if answers.turns.stopping else 200
        status = "stopping" if answers.turns.stopping else "ok"
        return Health(status=status, version=app.version, clips=answers.clips, models=answers.models.digests)

    @app.get(DOCS, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(document(app.openapi()))

    models = answers.models
    for paths, model, add, option in (
        (("/api/search", "/api/similar"), models.search, add_search, "INDEX"),
        (("/api/ask",), models.ask, add_ask, "--ask MODEL"),
        (("/api/entities",), models.naming, add_entities, "--entities MODEL"),
    ):
        if model:
            add(app, answers)
            continue
        for path in paths:
            app.add_api_route(path, missing(option), methods=["GET", "POST"], include_in_schema=False)
    return app


def missing(option: str) -> Callable[[], None]:
    def answer() -> None:
        raise Missing(f"This server has no model for it: it was started without {option}.")

    return answer


def add_search(app: FastAPI, answers: Answers) -> None:
    async def searched(wanted: Search) -> Results:
        page = wanted.k, wanted.offset, wanted.filter
        return results(await answers.turns.run(lambda: answers.search(wanted.text, *page, wanted.rerank)))

    @app.get("/api/search")
    async def search(wanted: Annotated[Search, Query()]) -> Results:
        """The clips that fit a text best."""
        return await searched(wanted)

    @app.post("/api/search")
    async def search_json(wanted: Search) -> Results:
        """The same, as JSON."""
        return await searched(wanted)

    async def similar(wanted: SimilarToClip | SimilarToUpload) -> Results:
        def find(clip: Clip) -> Found:
            return answers.similar(clip, wanted.k, wanted.offset, wanted.filter)

        return results(await answers.turns.run(lambda: with_clip(answers, wanted, find)))

    @app.get("/api/similar")
    async def similar_to_clip(wanted: Annotated[SimilarToClip, Query()]) -> Results:
        """The clips whose embeddings are most similar to that of a clip."""
        return await similar(wanted)

    @app.post("/api/similar")
    async def similar_to_upload(wanted: Annotated[SimilarToUpload, MULTIPART]) -> Results:
        """The clips whose embeddings are most similar to that of an uploaded video or image."""
        return await similar(wanted)


def add_ask(app: FastAPI, answers: Answers) -> None:
    async def asked(wanted: AskClip | AskUpload) -> Answered:
        def ask(clip: Clip) -> Ranked:
            return answers.ask(clip, wanted.question, wanted.k)

        return Answered(answers=words(await answers.turns.run(lambda: with_clip(answers, wanted, ask))))

    @app.get("/api/ask")
    async def ask_clip(wanted: Annotated[AskClip, Query()]) -> Answered:
        """Answers to a question about a clip."""
        return await asked(wanted)

    @app.post("/api/ask")
    async def ask_upload(wanted: Annotated[AskUpload, MULTIPART]) -> Answered:
        """Answers to a question about an uploaded video or image."""
        return await asked(wanted)


def add_entities(app: FastAPI, answers: Answers) -> None:
    async def named(wanted: EntitiesOfClip | EntitiesOfUpload) -> Named:
        def name(clip: Clip) -> list[Ranked]:
            return answers.entities(clip, wanted.box, wanted.text, wanted.k)

        found = await answers.turns.run(lambda: with_clip(answers, wanted, name))
        keys = ["entities"] * bool(answers.models.entities) + ["model_entities"] * bool(answers.models.pretrained)
        return Named(**dict(zip(keys, map(words, found), strict=True)))

    @app.get("/api/entities")
    async def entities_of_clip(wanted: Annotated[EntitiesOfClip, Query()]) -> Named:
        """Entities in a region of a clip."""
        return await named(wanted)

    @app.post("/api/entities")
    async def entities_of_upload(wanted: Annotated[EntitiesOfUpload, MULTIPART]) -> Named:
        """Entities in a region of an uploaded video or image."""
        return await named(wanted)


def with_clip(answers: Answers, wanted: OfClip | OfUpload, use: Callable[[Clip], T]) -> T:
    """Calls a function with the clip of a request. An uploaded file exists until it returns. Raises Mistake."""
    if isinstance(wanted, OfClip):
        return use(answers.find(wanted.clip, wanted.id))
    suffix = PurePath(wanted.file.filename or "").suffix.lower()
    if suffix not in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
        raise Mistake("The name of the file has no extension of a video or an image.")
    with TemporaryDirectory(dir=answers.media.folder) as folder:
        path = Path(folder, f"upload{suffix}")
        with path.open("wb") as out:
            shutil.copyfileobj(wanted.file.file, out)
        return use(path)


def results(found: Found) -> Results:
    hits = [
        HitAnswer(
            clip=hit.number,
            **described(hit.item),
            similarity=hit.similarity,
            match=hit.match,
            note=hit.note,
            span=hit.span,
        )
        for hit in found.hits
    ]
    return Results(hits=hits, clips=found.clips, nothing_fits=found.nothing_fits, note=found.note)


def words(ranked: Ranked) -> list[Word]:
    return [Word(text=text, probability=probability) for text, probability in ranked.items()]


def document(api: dict[str, Any]) -> str:
    """A description of the API as a page that loads nothing."""
    schemas, parts = api["components"]["schemas"], []

    def rows(fields: list[tuple[str, dict[str, Any], bool]]) -> str:
        cells = (
            f"<tr><td><code>{escape(name)}</code>{'' if required else ' (optional)'}"
            f"<td>{escape(schema.get('description', ''))}"
            for name, schema, required in fields
        )
        return f"<table>{''.join(cells)}</table>"

    def properties(content: dict[str, Any]) -> str:
        schema = schemas[next(iter(content.values()))["schema"]["$ref"].rpartition("/")[2]]
        return rows([(name, one, name in schema.get("required", ())) for name, one in schema["properties"].items()])

    for path, methods in api["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(about.get('description', ''))}</p>")
            if "requestBody" in about:
                kind = next(iter(about["requestBody"]["content"]))
                parts.append(f"<h3>{kind}</h3>{properties(about['requestBody']['content'])}")
            elif about.get("parameters"):
                given = [
                    (one["name"], one["schema"] | {"description": one.get("description", "")}, one["required"])
                    for one in about["parameters"]
                ]
                parts.append(f"<h3>query</h3>{rows(given)}")
            parts.append(f"<h3>answer</h3>{properties(about['responses']['200']['content'])}")
    return f'{HEAD}<p><a href="{OPENAPI}">{OPENAPI}</a></p>{"".join(parts)}'


HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>ALPRO: API</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em}h3{margin-bottom:0}
td{padding:0 1em 0 0;vertical-align:top}h2{border-top:1px solid #bbb;padding-top:1em}</style><h1>ALPRO: API</h1>"""
