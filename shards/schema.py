"""What a row of a manifest, a sample in a shard and a row of the index are; and the one kind of people's mistakes."""

from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

SAMPLE_VERSION: Literal[1] = 1
MOST_JSON = 1 << 24  # bytes of what is known of one sample
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
    path: str | Path = Field(union_mode="left_to_right")  # a text is a URL
    kind: Kind
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    start: float | None = Field(None, ge=0)
    end: float | None = Field(None, gt=0)
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
        link = next(link for link in self.path.split("::") if "://" in link)  # of a chain, the one with the path
        if link.lower().startswith("http"):
            link = unquote(link.partition("?")[0])
        return PurePosixPath(link).name


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


# Why an item did not become a sample: every reason there is.
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
    "no text",
    "bad row",
    "not fetched",
]
REASONS: dict[Reason, str] = {
    "missing": "no such file, or one that may not be read, or no file at all",
    "empty": "a file of no bytes",
    "unreadable": "not a video or image that the decoders know, or damaged where frames were wanted",
    "no video": "sound alone: no video stream",
    "no frames": "no frame between `start` and `end`",
    "too large": "a file of more than `most_bytes`, or pictures of more than `most_pixels`, or 32,768 on a side",
    "too slow": "not decoded after `timeout` seconds",
    "too much memory": "decoding asked for more than `most_memory`",
    "crashed": "the decoder itself crashed",
    "no text": "neither caption nor question",
    "bad row": "the row of the manifest is wrong in itself",
    "not fetched": "a URL that its store does not give",
}


# Reasons that may be gone another time, though the file and the settings are the same.
PASSING: set[Reason] = {"too slow", "too much memory", "crashed", "not fetched"}


class Reject(BaseModel):
    """An item that did not become a sample, and why: one of REASONS, and what was said of it."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    reason: Reason
    detail: str = ""


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
