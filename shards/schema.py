"""Data types: manifest rows, samples in shards, rejects and index rows."""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import unquote

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alpro.shards.clip import MAX_SECONDS, Reason
from alpro.shards.file_type import Kind

MAX_JSON_BYTES = 1 << 24  # bytes of a sample's metadata
MAX_SIDE = 1_000_000  # pixels, before resizing
# In these URLs, `#` and `?` have a meaning.
HTTP = re.compile(r"(\w+::)?https?://", re.IGNORECASE)
SPLITS = ("train", "validation", "test")
SplitCounts = dict[str, dict[str, int]]  # what is counted of each split
KINDS: tuple[Kind, ...] = ("video", "image")


def without_query(path: str) -> str:
    """Return a path, or the address of a file without the query of a URL."""
    return unquote(re.split("[?#]", path)[0]) if HTTP.match(path) else path


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Question(BaseModel):
    """A question about a sample; `type` defaults to its first word."""

    model_config = ConfigDict(frozen=True)

    question: Text
    answer: Text
    type: str = ""


class Member(BaseModel):
    """A file inside an uncompressed tar: its name, and the position of its bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    offset: int
    size: int


class Row(BaseModel):
    """An item of a manifest: a video (or `start`..`end` seconds of it) or an image, with its
    texts."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    # A str is a URL; both are strings in JSON.
    path: Annotated[str, Field(pattern="://")] | Path = Field(
        union_mode="left_to_right"
    )
    kind: Kind
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    start: float | None = Field(default=None, ge=0, le=MAX_SECONDS)
    end: float | None = Field(default=None, gt=0, le=MAX_SECONDS)
    split: Literal["", "train", "validation", "test"] = ""
    group: str = ""  # items of the same source, which stay in one split
    # Path of the file in the data. Without a group, a row's group is the name, or what a pattern finds in it.
    name: str = ""
    member: Member | None = None  # place in the tar `path`
    meta: dict[str, Any] = Field(default_factory=dict)  # all other columns

    @property
    def file_name(self) -> str:
        """File name without its folder; for a URL, without the query string."""
        path = self.member.name if self.member else str(self.path)
        return PurePosixPath(without_query(path)).name

    @property
    def metadata(self) -> dict[str, Any]:
        """What the manifest says of the item, as a sample has it."""
        return self.model_dump()


class SampleMetadata(BaseModel):
    """The metadata of a sample in a shard, <key>.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: Literal[1] = 1
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
    frames: int = Field(default=0, ge=0)  # number of frames written; 0 if unknown
    meta: dict[str, Any] = Field(default_factory=dict)


# Reasons that may not recur if the file is decoded again.
TRANSIENT_REASONS: set[Reason] = {
    "too slow",
    "too much memory",
    "crashed",
    "unexpected error",
    "not fetched",
}


class Reject(BaseModel):
    """A rejected item: the reason, and the message of the decoder or the store."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    reason: Reason
    detail: str = ""


class MissingItem(Reject):
    """A rejected item whose file is missing, with the fields that determine its split and the number
    of its texts, so that a score counts every expected item."""

    reason: Reason = "missing"
    kind: Kind = "video"
    split: Literal["", "train", "validation", "test"] = ""
    group: str = ""
    captions: int = 0
    questions: int = 0


ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    Path: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    Literal: pa.string(),
    dict: pa.string(),
}


def arrow_schema(
    model: type[BaseModel], exclude: Collection[str] = (), **more: pa.DataType
) -> pa.Schema:
    """Return the Arrow schema of a model's fields and further columns. JSON fields are strings."""
    types = {}
    for name, field in model.model_fields.items():
        if name not in exclude:
            types[name] = arrow_type(field.annotation)
    return pa.schema(types | more)


def arrow_type(annotation: Any) -> pa.DataType:
    """Return the Arrow type of the values of an annotation.

    >>> arrow_type(list[float] | None)
    ListType(list<item: double>)
    """
    origin = get_origin(annotation) or annotation
    if origin in ARROW_TYPES:
        return ARROW_TYPES[origin]
    if isinstance(origin, type) and issubclass(origin, BaseModel):
        return pa.struct(list(arrow_schema(origin)))
    # Otherwise a list, or a value that is optional or annotated.
    first, *_ = get_args(annotation)
    value = arrow_type(first)
    return pa.list_(value) if origin in (list, tuple) else value


REJECTS = arrow_schema(Reject)
# One row per item of a source that is rejected when it is imported.
IMPORT_REJECTS = arrow_schema(MissingItem)
# One row per item of a source, as it is imported. `cut` is a hash of the id, which decides where
# shards are cut.
MANIFEST = arrow_schema(Row, cut=pa.uint32())
# One row per sample: its metadata, its shard, and the offsets, sizes (bytes) and CRC-32 of its
# members.
INDEX = arrow_schema(
    SampleMetadata,
    exclude=("version", "frames", "meta"),
    shard=pa.string(),
    key=pa.string(),
    json_offset=pa.int64(),
    json_size=pa.int64(),
    json_crc32=pa.int64(),
    frame_offsets=pa.list_(pa.int64()),
    frame_sizes=pa.list_(pa.int64()),
    frame_crc32s=pa.list_(pa.int64()),
)
