"""Loads clips for a model: of a file, a URL, a part of one, or a sample of a decoded corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alpro.errors import InputError
from alpro.models.timesformer import VideoConfig
from alpro.shards.clip import Clip, DecodeError
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.reader import Sample, Unreadable
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, Row
from alpro.shards.storage import (
    DISK_FULL,
    Location,
    TooLarge,
    absolute,
    is_url,
    local_copy,
    located,
    suffix,
)
from alpro.shards.transforms import squash
from alpro.threads import map_ahead

Source = Location | Row | Sample  # a file; a part of one; a sample of a corpus
S = TypeVar("S", bound=Source)

MAX_FETCHED_BYTES = 4 * 2**30  # of a file at a URL


def file_name(source: Source) -> str:
    """The file of a source, or the shard and the id of a sample, for messages."""
    if isinstance(source, Sample):
        return f"{source.shard}: {source.about['id']}"
    return str(source.path if isinstance(source, Row) else source)


def is_file(text: Any) -> bool:
    """Whether what a person writes is a file and not a text: a path, a URL, or a name like that of a video or image."""
    return not isinstance(text, str) or is_url(text) or suffix(Path(text)) in MEDIA_EXTENSIONS


def is_image(source: Source) -> bool:
    if isinstance(source, Sample):
        return source.about["kind"] == "image"
    return (
        source.kind == "image"
        if isinstance(source, Row)
        else suffix(located(source)) in IMAGE_EXTENSIONS
    )


def load_clip(source: Source, count: int, size: int) -> Clip:
    """`count` frames of a video, each the first of one of as many segments, or those of an image repeated: (count,
    size, size, 3) uint8. The frames of a sample have their stored size.

    Raises DecodeError, whatever the reason, so that one file does not end a stream; and InputError if no decoder is
    installed.
    """
    try:
        if isinstance(source, Sample):
            frames = source.frames(segment_starts(len(source), count))
            frames = squash(frames, size) if is_image(source) else frames
            return Clip(
                frames, 0.0, source.about.get("width", size), source.about.get("height", size)
            )
        file = absolute(source.path if isinstance(source, Row) else source)
        with local_copy(file, MAX_FETCHED_BYTES) as path:
            if not is_image(source):
                window = (source.start, source.end) if isinstance(source, Row) else ()
                return decode_video(path, count, size, *window)
            image = decode_image(path, size)
            return replace(image, frames=np.repeat(image.frames, count, axis=0))
    except Unreadable as error:
        raise DecodeError("unreadable", str(error)) from error
    except (DecodeError, InputError):
        raise
    except FileNotFoundError as error:
        raise DecodeError("missing") from error
    except TooLarge as error:
        raise DecodeError("too large", str(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        fetching = isinstance(error, OSError) and error.errno is None
        message = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise DecodeError("not fetched" if fetching else "unexpected error", message) from error


def load_frames(source: Source, video: VideoConfig) -> np.ndarray:
    """The frames of a source as a model takes them: (T, 3, H, W) uint8. Raises as `load_clip`."""
    return load_clip(source, video.frames, video.image_size).frames.transpose(0, 3, 1, 2)


def decode_ahead(
    sources: Iterable[S], video: VideoConfig
) -> Iterator[tuple[S, np.ndarray | DecodeError]]:
    """The frames of each source in order, or why it cannot be decoded, as `map_ahead`."""
    return map_ahead(lambda source: (source, _frames_or_error(source, video)), sources)


def _frames_or_error(source: Source, video: VideoConfig) -> np.ndarray | DecodeError:
    try:
        return load_frames(source, video)
    except DecodeError as error:
        return error
