"""Decodes videos and images to frames, within limits of time, memory and pixels.

PyAV decodes in this process: by seeks, or in order where a seek does not lead to a frame. If PyAV
cannot decode a single frame, ffmpeg makes a clean copy in a process of its own. Animated images are
decoded by Pillow.

Frames: the window lies between the frames nearest to `start` and `end`, relative to the video's
first frame. Its frames are divided into segments with equal numbers of frames, as in the paper, and
exactly the first frame of each is decoded. A video without a key frame at its start, such as a cut
from a broadcast, starts at its first key frame.

Colors: as converted by FFmpeg's scaler. The stream's tags (matrix, range) are respected; untagged
streams are BT.601 in the limited range, for any size. High dynamic range is not tone-mapped.
Transparency is dropped in videos, and composited on white in images and animated images.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from alpro.errors import InputError
from alpro.files import DISK_FULL
from alpro.shards.clip import Clip, ClipRequest, DecodeError, Limits, error_text
from alpro.shards.credentials import redact
from alpro.shards.ffmpeg_copy import decode_copy
from alpro.shards.file_type import find_placeholder, is_animated, read_head
from alpro.shards.images import decode_animation, decode_still
from alpro.shards.in_order import NothingDecoded, decode_in_order
from alpro.shards.schema import Member
from alpro.shards.seeking import decode_by_seeks
from alpro.shards.storage import Location, TooLarge, local_copy

# The ways of `decode_video`; "auto" tries one after another.
Decoder = Literal["auto", "seek", "order", "ffmpeg"]


def decode_video(
    path: Path,
    count: int,
    size: int,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    limits: Limits = Limits(),
) -> Clip:
    """Decode `count` frames of a video, each the first of one of `count` equal segments.

    The segments divide the frames between `start` and `end` seconds; with fewer frames than
    segments, frames repeat. Frames are resized to `size` x `size`: the aspect ratio is not kept, as
    in the paper. The time limit applies to all ways together.

    Raises:
        DecodeError: With the reason.
        InputError: If a decoder is not installed.
    """
    path = path.absolute()  # ffmpeg takes a relative name with a colon for a protocol
    head = _read_file_head(path)
    request = ClipRequest(path, count, size, start=start, end=end, limits=limits)
    if is_animated(head):
        return decode_animation(request)
    if decoder == "ffmpeg":
        return decode_copy(request)

    if decoder != "order":
        try:
            return decode_by_seeks(request)
        except DecodeError as error:
            # Other reasons, such as too many pixels, hold for all ways.
            if decoder == "seek" or error.reason != "unreadable":
                raise
    try:
        return decode_in_order(request)
    except NothingDecoded as error:
        _check_placeholder(head, error)
        if decoder == "order":
            raise
    return decode_copy(request)


def decode_image(
    path: Path,
    size: int,
    limits: Limits = Limits(),
    keep_ratio: bool = False,
) -> Clip:
    """Decode a still image, upright, as one frame. Of an animated image, the first is used.

    The decoder cannot be interrupted, so the time limit does not apply.

    Args:
        keep_ratio: Keep the aspect ratio: the shorter side of the frame is `size` pixels, and a
            smaller image keeps its size. Otherwise the frame is (1, size, size, 3).

    Raises:
        DecodeError: With the reason.
    """
    head = _read_file_head(path)
    try:
        return decode_still(path, size, limits, keep_ratio)
    except DecodeError as error:
        _check_placeholder(head, error)
        raise


@contextmanager
def fetch(
    location: Location,
    max_bytes: int,
    folder: Path | None = None,
    member: Member | None = None,
) -> Iterator[Path]:
    """Yield the path of a local file, or of a temporary copy of a URL or a member of a tar, as
    `local_copy` does.

    Raises:
        DecodeError: If the file cannot be fetched.
        OSError: If the local disk fails.
    """
    try:
        with local_copy(location, max_bytes, folder, member) as path:
            yield path
    except FileNotFoundError:
        raise DecodeError("missing") from None
    except TooLarge as error:
        raise DecodeError("too large", str(error)) from None
    except EOFError as error:
        raise DecodeError("unreadable", str(error)) from None
    except OSError as error:
        # The errors of stores have no number.
        if error.errno is not None:
            raise
        # A server may repeat a password or a signature in its reason.
        raise DecodeError("not fetched", redact(str(error))) from None


@contextmanager
def decode_errors(limits: Limits) -> Iterator[None]:
    """Raise any exception of a decoder as a DecodeError: one file does not stop a stage.

    Raises:
        DecodeError: With the reason.
        InputError: If a decoder is missing.
        OSError: If the disk is full, which the file does not cause either.
    """
    try:
        yield
    except (DecodeError, InputError):
        raise
    except MemoryError:
        raise limits.too_much_memory() from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        # `one_line` must not change it: the VERSION of `decode_videos` stands for the bytes of
        # rejects.parquet.
        message = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise DecodeError("unexpected error", message.rstrip(":")) from error


def _read_file_head(path: Path) -> bytes:
    """Return the first bytes of a file. Raises DecodeError unless it is a regular file that is not
    empty."""
    try:
        status = path.stat()
        # A pipe or a device could block forever.
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("missing")
        if not status.st_size:
            raise DecodeError("empty")
        return read_head(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: an invalid file name.
        raise DecodeError("missing") from None
    except OSError as error:
        raise DecodeError("unreadable", error_text(error)) from None


def _check_placeholder(head: bytes, error: DecodeError) -> None:
    """Raise DecodeError with the placeholder's name if a file that cannot be decoded is one."""
    placeholder = find_placeholder(head)
    if placeholder:
        raise DecodeError(error.reason, str(placeholder)) from error
