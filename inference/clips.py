"""Loads clips for a model: of a file, a URL, a part of one, or a sample of a decoded corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alpro.errors import InputError, one_line
from alpro.models.timesformer import VideoConfig
from alpro.shards.clip import Clip, DecodeError, Limits, Reason
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.file_type import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, is_animated_file
from alpro.shards.reader import Sample, Unreadable
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import Row
from alpro.shards.storage import (
    DISK_FULL,
    Location,
    TooLarge,
    absolute,
    is_url,
    local_copy,
    suffix,
)
from alpro.shards.transforms import squash
from alpro.threads import map_ahead

Source = Location | Row | Sample  # a file; a part of one; a sample of a corpus
S = TypeVar("S", bound=Source)

MAX_FETCHED_BYTES = 4 * 2**30  # maximum size of a file at a URL
DEFAULT_LIMITS = Limits()


def file_name(source: Source) -> str:
    """Return the file of a source, or the shard and the id of a sample, for messages."""
    if isinstance(source, Sample):
        return f"{source.shard}: {source.metadata['id']}"
    if isinstance(source, Row):
        return str(source.path)
    return str(source)


def is_file(text: Any) -> bool:
    """Whether what a person writes is a file and not a text.

    A `Path` and a URL always are; a string is one if it is the path of a file, or if it ends like a
    video or an image, so that a mistyped name is an error and no text.
    """
    if not isinstance(text, str) or is_url(text):
        return True

    path = Path(text)
    if suffix(path) in MEDIA_EXTENSIONS:
        return True

    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # longer than a name may be; ~unknown; a NUL
        return False


def check_file(source: Source) -> None:
    """Raise InputError if a source is the path of a file that does not exist."""
    location = None if isinstance(source, Row | Sample) else absolute(source)
    if isinstance(location, Path) and not location.exists():
        raise InputError(f"{source}: no such file")


def is_image(source: Source) -> bool:
    if isinstance(source, Sample):
        return source.metadata["kind"] == "image"
    if isinstance(source, Row):
        return source.kind == "image"
    location = absolute(source)
    has_image_name = suffix(location) in IMAGE_EXTENSIONS
    return has_image_name and not (isinstance(location, Path) and is_animated_file(location))


def load_clip(source: Source, count: int, size: int, limits: Limits = DEFAULT_LIMITS) -> Clip:
    """`count` frames of a video, each the first of one of as many segments, or those of an image
    repeated: (count, size, size, 3) uint8. The frames of a sample have their stored size.

    Raises DecodeError, whatever the reason, so that one file does not end a stream; and InputError
    if no decoder is installed.
    """
    try:
        if isinstance(source, Sample):
            return _load_sample(source, count, size)

        if isinstance(source, Row):
            location = source.path
            start = source.start
            end = source.end
        else:
            location = source
            start = None
            end = None

        member = source.member if isinstance(source, Row) else None
        with local_copy(absolute(location), MAX_FETCHED_BYTES, member=member) as path:
            if is_image(source):
                image = decode_image(path, size, limits)
                frames = np.repeat(image.frames, count, axis=0)
                return replace(image, frames=frames)
            return decode_video(path, count, size, start=start, end=end, limits=limits)
    except Unreadable as error:
        raise DecodeError("unreadable", str(error)) from error
    except (DecodeError, InputError):
        raise
    except FileNotFoundError as error:
        raise DecodeError("missing") from error
    except TooLarge as error:
        raise DecodeError("too large", str(error)) from error
    except Exception as error:
        # A full disk is no fault of this file: it would reject all that follow, too.
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        # What a store raises has no number; of the local disk, it is a fault that nobody expects.
        fetching = isinstance(error, OSError) and error.errno is None
        reason: Reason = "not fetched" if fetching else "unexpected error"
        raise DecodeError(reason, f"{type(error).__name__}: {one_line(error)}") from error


def _load_sample(sample: Sample, count: int, size: int) -> Clip:

    metadata = sample.metadata
    frames = sample.frames(segment_starts(len(sample), count))
    # decode_videos stores images with their aspect ratio.
    if is_image(sample):
        frames = squash(frames, size)

    return Clip(
        frames,
        duration=metadata.get("duration") or 0.0,
        # A sample from an index for search has neither.
        width=metadata.get("width", size),
        height=metadata.get("height", size),
    )


def load_for_model(source: Source, video: VideoConfig, limits: Limits = DEFAULT_LIMITS) -> Clip:
    """As many frames of a source as a model takes, in its size. Raises as `load_clip`."""
    return load_clip(source, video.frames, video.image_size, limits)


def load_frames(source: Source, video: VideoConfig, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Load the frames of a source as a model takes them: (T, 3, H, W) uint8. Raises as
    `load_clip`."""
    clip = load_for_model(source, video, limits)
    return clip.frames.transpose(0, 3, 1, 2)


def decode_ahead(
    sources: Iterable[S], video: VideoConfig
) -> Iterator[tuple[S, Clip | DecodeError]]:
    """Yield the clip of each source in order, or why it cannot be decoded, as `map_ahead`."""
    return map_ahead(lambda source: (source, _clip_or_error(source, video)), sources)


def _clip_or_error(source: Source, video: VideoConfig) -> Clip | DecodeError:
    try:
        return load_for_model(source, video)
    except DecodeError as error:
        return error
