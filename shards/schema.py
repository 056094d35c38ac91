"""What a row of a manifest, a sample in a shard and a row of the index are; and the one kind of people's mistakes."""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

SAMPLE_VERSION: Literal[1] = 1
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


class InputError(Exception):
    """A mistake that a person can mend: one line that says what, where and what to do. Shown without a traceback."""


class Question(BaseModel):
    """A question about a sample; `type` is its first word unless the manifest says otherwise."""

    model_config = ConfigDict(frozen=True)

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    type: str = ""


class Row(BaseModel):
    """One item of a manifest: a video (or `start`..`end` seconds of it) or an image, and what people said of it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    path: Path
    kind: Kind
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    start: float | None = Field(None, ge=0)
    end: float | None = Field(None, gt=0)
    split: Literal["", "train", "validation", "test"] = ""
    group: str = ""  # items of one source, which stay in one split
    meta: dict[str, Any] = Field(default_factory=dict)  # every other column


class About(BaseModel):
    """What a shard says of a sample, in its <key>.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: Literal[1] = SAMPLE_VERSION
    id: str = Field(min_length=1)
    kind: Kind
    split: Literal["train", "validation", "test"]
    group: str
    captions: list[str]
    questions: list[Question]
    duration: float
    width: int
    height: int
    source: str
    meta: dict[str, Any] = Field(default_factory=dict)


class Reject(BaseModel):
    """An item that did not become a sample, and why."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    reason: str


REJECTS = pa.schema([("id", pa.string()), ("path", pa.string()), ("reason", pa.string())])

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
