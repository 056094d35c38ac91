"""Tells what a file is by its name and its first bytes."""

import os
import re
import tomllib
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

Kind = Literal["video", "image"]
TYPES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("file_types.toml").read_text("utf-8")
)
VIDEO_EXTENSIONS = {*TYPES["video"]}
IMAGE_EXTENSIONS = {*TYPES["image"]}
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
HEAD_BYTES = 8192  # first bytes of a file that the functions of this module need


class Placeholder(NamedTuple):
    """What was stored instead of the data, and what a user can do."""

    begins: str  # regular expression of the first bytes
    kind: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.remedy}"


PLACEHOLDERS = [Placeholder(**values) for values in TYPES["placeholder"]]


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file; none of a named pipe, which would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read(HEAD_BYTES) or b""


def find_placeholder(head: bytes) -> Placeholder | None:
    """Return what was stored instead of a video, text, table or archive that begins with `head`.

    >>> find_placeholder(b"<!DOCTYPE html><title>404</title>").kind
    'HTML page'
    >>> find_placeholder(b"A dog runs.") is None
    True
    """
    for placeholder in PLACEHOLDERS:
        if re.match(placeholder.begins.encode(), head.removeprefix(b"\xef\xbb\xbf")):
            return placeholder
    return None


def is_animated(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an animated PNG, WebP or AVIF.

    GIF is not one of them: all of its files are videos.
    """
    if head.startswith(b"\x89PNG"):
        control = head.partition(b"IDAT")[0].partition(b"acTL")[2]
        frame_count = int.from_bytes(control[:4], "big")
        return frame_count > 1
    if head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X":
        flags = int.from_bytes(head[20:21], "big")
        return bool(flags & 2)
    return head[4:12] == b"ftypavis"


def is_animated_file(path: Path) -> bool:
    """Return whether a file is an animated PNG, WebP or AVIF; False if it cannot be read."""
    try:
        return is_animated(read_head(path))
    except OSError:
        return False


def media_kind(name: PurePath, head: bytes) -> Kind:
    """Return whether a media file of this name that begins with `head` is a video or an image."""
    is_image = name.suffix.lower() in IMAGE_EXTENSIONS
    return "image" if is_image and not is_animated(head) else "video"


def content_kind(head: bytes) -> Kind:
    """Return whether a media file without a name that begins with `head` is a video or an image."""
    is_image = head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM"))
    is_image |= head[8:12] == b"WEBP" or head[4:12] == b"ftypavif"
    return "image" if is_image and not is_animated(head) else "video"
