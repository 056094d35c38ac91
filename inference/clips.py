"""Loads clips for a model: of a file, a URL or a part of one, and frames of decoded samples."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from alpro.shards.clip import Clip, Limits
from alpro.shards.decoding import decode_errors, decode_image, decode_video, fetch
from alpro.shards.file_type import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, is_animated_file
from alpro.shards.reader import Sample
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import Row
from alpro.shards.storage import (
    Location,
    absolute,
    is_url,
    suffix,
)
from alpro.shards.transforms import squash

Source = Location | Row  # a file; a part of one

MAX_FETCHED_BYTES = 4 * 2**30  # maximum size of a file at a URL
DEFAULT_LIMITS = Limits()


def file_name(source: Source) -> str:
    """Return the file of a source, for messages."""
    return str(source.path if isinstance(source, Row) else source)


def is_file(value: Any) -> bool:
    """Check whether a value of Python is a file and not a text: a path, a row, a URL, and a name that
    ends like a video or an image, so that a mistyped name is an error and no text."""
    if isinstance(value, str):
        return is_url(value) or suffix(Path(value)) in MEDIA_EXTENSIONS
    return isinstance(value, PathLike | Row)


def get_row(source: Source) -> Row:
    """Return the row of a file, whose name and content tell its kind."""
    if isinstance(source, Row):
        return source
    location = absolute(source)
    is_animated = isinstance(location, Path) and is_animated_file(location)
    is_still = suffix(location) in IMAGE_EXTENSIONS and not is_animated
    return Row(id=str(source), path=location, kind="image" if is_still else "video")


def load_clip(
    source: Source, count: int, size: int, limits: Limits = DEFAULT_LIMITS
) -> Clip:
    """Load `count` frames of a video, each the first of one of as many segments, or an image
    repeated: (count, size, size, 3) uint8.

    Raises:
        DecodeError: If the source cannot be decoded, for whatever reason, so that one file does not
            end a stream.
        InputError: If no decoder is installed.
    """
    with decode_errors(limits):
        row = get_row(source)
        location = absolute(row.path)
        with fetch(location, MAX_FETCHED_BYTES, member=row.member) as path:
            if row.kind == "image":
                image = decode_image(path, size, limits)
                return replace(image, frames=np.repeat(image.frames, count, axis=0))
            return decode_video(
                path, count, size, start=row.start, end=row.end, limits=limits
            )


def read_frames(
    sample: Sample, count: int, size: int, indices: list[int] | None = None
) -> np.ndarray:
    """Read frames (T, H, W, 3) uint8 of a sample.

    Args:
        sample: The sample. Frames of a video are stored at one size, an image with its aspect
            ratio.
        count: Number of frames, each the first of a segment.
        size: Height and width of an image.
        indices: Other frames to read.
    """
    frames = sample.frames(
        segment_starts(len(sample), count) if indices is None else indices
    )
    return squash(frames, size) if sample.metadata["kind"] == "image" else frames
