"""What a row of a manifest, a sample in a shard and a row of the index are."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from alpro.credentials import without_credentials

SAMPLE_VERSION: Literal[1] = 1
MAX_JSON_BYTES = 1 << 24  # bytes of what is known of one sample
MAX_SECONDS = 1_000_000  # of a video, over eleven days; larger numbers are time stamps or in another unit
MAX_SIDE = 1_000_000  # pixels of a picture, before it was resized
SPLITS = ("train", "validation", "test")
Kind = Literal["video", "image"]
VIDEO_EXTENSIONS = {
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".gif",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".wmv",
    ".3gp",
    ".ogv",
}
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Question(BaseModel):
    """A question about a sample; `type` is its first word unless the manifest says otherwise."""

    model_config = ConfigDict(frozen=True)

    question: Text
    answer: Text
    type: str = ""


class Row(BaseModel):
    """One item of a manifest: a video (or `start`..`end` seconds of it) or an image, and what people said of it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    path: str | Path = Field(union_mode="left_to_right")  # a text is a URL
    kind: Kind
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    start: float | None = Field(None, ge=0, le=MAX_SECONDS)
    end: float | None = Field(None, gt=0, le=MAX_SECONDS)
    split: Literal["", "train", "validation", "test"] = ""
    group: str = ""  # items of one source, which stay in one split
    meta: dict[str, Any] = Field(default_factory=dict)  # every other column

    @field_validator("path")
    @classmethod
    def _path_or_url(cls, value: str | Path) -> str | Path:
        return Path(value) if isinstance(value, str) and "://" not in value else value

    @property
    def file_name(self) -> str:
        """The file's name without its folder, the same at a URL; without a query, which may hold a key."""
        if isinstance(self.path, Path):
            return self.path.name
        links = without_credentials(self.path).split("::")
        link = next(link for link in links if "://" in link)  # of a chain, the one with the path
        if link.lower().startswith("http"):
            link = unquote(link)
        return PurePosixPath(link).name


class About(BaseModel):
    """What a shard says of a sample, in its <key>.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: Literal[1] = SAMPLE_VERSION
    id: str = Field(min_length=1)
    kind: Kind
    split: Literal["train", "validation", "test"]
    group: str
    captions: list[Text]
    questions: list[Question]
    duration: float = Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)
    width: int = Field(ge=0, le=MAX_SIDE)
    height: int = Field(ge=0, le=MAX_SIDE)
    source: str
    meta: dict[str, Any] = Field(default_factory=dict)


# Why an item did not become a sample: every reason there is. docs/data.md explains each.
Reason = Literal[
    "missing",
    "empty",
    "unreadable",
    "no video",
    "no frames",
    "too large",
    "too slow",
    "too much memory",
    "crashed",
    "unexpected error",
    "no text",
    "bad row",
    "not fetched",
]

# Reasons that may be gone another time, though the file and the settings are the same.
PASSING: set[Reason] = {"too slow", "too much memory", "crashed", "unexpected error", "not fetched"}


class Reject(BaseModel):
    """An item that did not become a sample: the reason, and details in the words of the decoder or the store."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    reason: Reason
    detail: str = ""

    @field_validator("path", "detail")
    @classmethod
    def _without_credentials(cls, value: str) -> str:
        return without_credentials(value)


REJECTS = pa.schema([(name, pa.string()) for name in ("id", "path", "reason", "detail")])

# One row a sample: what it is, and where its members lie in which shard (offsets and sizes in bytes).
INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("questions", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string()), ("type", pa.string())]))),
        ("duration", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("frame_offsets", pa.list_(pa.int64())),
        ("frame_sizes", pa.list_(pa.int64())),
    ]
)
