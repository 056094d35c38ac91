"""Decodes any number of videos for a model, a few ahead of it: memory does not grow with their number."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from alpro.errors import InputError
from alpro.models.timesformer import VideoConfig
from alpro.shards.decoding import DecodeError, decode_image, decode_video
from alpro.shards.reader import Sample, Unreadable
from alpro.shards.schema import IMAGE_EXTENSIONS, Row
from alpro.shards.storage import DISK_FULL, Location, TooLarge, absolute, local_copy, located, suffix
from alpro.stages.encoding.encode import sample_frames
from alpro.stages.execution.interface import cores

Source = Location | Row | Sample  # a file; a file or a part of it, as in a manifest; a sample of a decoded corpus
S = TypeVar("S", bound=Source)

MAX_THREADS = 16  # of a machine with many cores; a file is decoded by one
MAX_FETCHED_BYTES = 4 * 2**30  # of a file at a URL
FETCH_SECONDS = 1800.0


def file_name(source: Source) -> str:
    """The file of a source, or the shard and the id of a sample, for messages."""
    if isinstance(source, Sample):
        return f"{source.shard}: {source.about['id']}"
    return str(source.path if isinstance(source, Row) else source)


def is_image(source: Source) -> bool:
    if isinstance(source, Sample):
        return source.about["kind"] == "image"
    return source.kind == "image" if isinstance(source, Row) else suffix(located(source)) in IMAGE_EXTENSIONS


def load_frames(source: Source, video: VideoConfig) -> np.ndarray:
    """The frames of a video, or those of an image repeated: (T, 3, H, W) uint8, sampled as in evaluation.

    Frames of a file have the encoder's size, those of a decoded video their stored size. Raises DecodeError, whatever
    the reason, so that one file does not end a stream; and InputError if no decoder is installed.
    """
    try:
        if isinstance(source, Sample):
            return sample_frames(source, video)
        row = source if isinstance(source, Row) else None
        location = absolute(row.path if row else source)  # type: ignore[arg-type]
        with local_copy(location, MAX_FETCHED_BYTES, seconds=FETCH_SECONDS) as path:
            frames = _decode(path, source, row, video)
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
    return frames.transpose(0, 3, 1, 2)


def _decode(path: Path, source: Source, row: Row | None, video: VideoConfig) -> np.ndarray:
    if is_image(source):
        return np.repeat(decode_image(path, video.image_size).frames, video.frames, axis=0)
    start, end = (row.start, row.end) if row else (None, None)
    return decode_video(path, video.frames, video.image_size, start, end).frames


def decode_ahead(
    sources: Iterable[S], video: VideoConfig, threads: int = 0
) -> Iterator[tuple[S, np.ndarray | DecodeError]]:
    """The frames of each source in order, or why it cannot be decoded. At most two clips a thread are ahead.

    `sources` may be a generator without an end; it is read no further than it is decoded. threads: 0 for one a core.
    """
    count = threads or min(MAX_THREADS, cores())
    pending: deque[tuple[S, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(count)
    try:
        for source in sources:
            pending.append((source, pool.submit(load_frames, source, video)))
            if len(pending) >= 2 * count:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(source: S, future: Future[np.ndarray]) -> tuple[S, np.ndarray | DecodeError]:
    try:
        return source, future.result()
    except DecodeError as error:
        return source, error
