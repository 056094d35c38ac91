"""Writes samples to WebDataset shards, reproducible byte for byte, and indexes shards."""

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tarfile import RECORDSIZE
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from alpro.errors import InputError
from alpro.files import publish, temporary_name
from alpro.shards.clip import Clip, DecodeError
from alpro.shards.schema import INDEX, MAX_JSON_BYTES, VIDEO_EXTENSIONS, Row, SampleMetadata
from alpro.shards.tar import BLOCK, DamagedTar, TarMember, tar_members

MEMBER = re.compile(r"(?:\./)*(?P<key>[^./]+)\.(json|(?P<frame>[0-9]{1,6})\.jpg)")


class ShardWriter:
    """Writes one shard to a temporary file, which `close` renames.

    A sample is `<key>.json` and its frames as `<key>.<nn>.jpg`. The context manager closes the
    shard, and deletes it if it has no samples or after an exception, which frees space on a full
    disk.
    """

    def __init__(self, path: Path, quality: int = 90):
        # Imported here: reading and indexing shards need no webdataset.
        from webdataset.writer import TarWriter

        self.path = path
        self.quality = quality
        self.temporary = temporary_name(path)
        self.file = open(self.temporary, "wb")
        # Owner and time are constant, so that the same samples give the same bytes.
        self.tar = TarWriter(self.file, user="alpro", group="alpro", mtime=0)
        self.count = 0

    def write(self, row: Row, clip: Clip) -> None:
        """Appends a sample. Raises DecodeError if its texts and metadata are longer than a reader
        takes."""
        metadata = SampleMetadata(
            id=row.id,
            kind=row.kind,
            split=row.split or "train",
            group=row.group,
            captions=list(row.captions),
            questions=list(row.questions),
            duration=round(clip.duration, 3),
            width=clip.width,
            height=clip.height,
            source=row.file_name,
            frames=len(clip.frames),
            meta=row.meta,
        )
        content = metadata.model_dump_json().encode()
        if len(content) > MAX_JSON_BYTES:
            detail = (
                f"its texts and columns have {len(content)} bytes, the limit is {MAX_JSON_BYTES}"
            )
            raise DecodeError("bad row", detail)

        members: dict[str, Any] = {"__key__": sample_key(row.id), "json": content}
        for frame_index, frame in enumerate(clip.frames):
            members[f"{frame_index:02d}.jpg"] = encode_jpeg(frame, self.quality)

        self.tar.write(members)
        self.count += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            with suppress(OSError):
                self.file.close()
            self.temporary.unlink(missing_ok=True)

    def close(self) -> None:
        end = self.tar.tarstream.offset + 2 * BLOCK
        self.tar.close()
        # Without padding to a whole record, which would hide samples lost at the end.
        if end % RECORDSIZE == 0:
            end += BLOCK
        self.file.truncate(end)
        self.file.close()

        # A unit whose items are all rejected has no shard.
        if self.count:
            publish(self.temporary, self.path)


def sample_key(name: str) -> str:
    """The key of a sample: the first 128 bits of the SHA-256 of its id.

    Readers of several shards distinguish samples by their keys, which are unique in a corpus like
    the ids. A key does not depend on the shard's name, because another corpus may reuse the shard
    under another name.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encodes a frame (H, W, 3) uint8 as JPEG, without chroma subsampling, which blurs the colors
    of small frames."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def index_shard(shard: Path) -> pa.Table:
    """The index rows of a shard of this format, with the CRC-32 of each member.

    Only regular files named `<key>.json` and `<key>.<nn>.jpg` are accepted. Raises InputError for
    anything else, such as a pickle, for a damaged tar and for duplicate members. The column `shard`
    has the name of the file.
    """
    samples: dict[str, _Members] = {}
    try:
        with open(shard, "rb") as file:
            for member in tar_members(file):
                if not (member.is_folder and member.name == "."):  # as written by `tar -c .`
                    _add_member(samples, member, file, shard)
    except (DamagedTar, OSError) as error:
        raise InputError(f"{shard}: not a readable shard: {error}") from error

    if not samples:
        raise InputError(f"{shard}: it has no samples")

    rows = []
    for key, sample in samples.items():
        rows.append(_index_row(shard, key, sample) | {"shard": shard.name})
    return pa.Table.from_pylist(rows, schema=INDEX)


@dataclass
class _Members:
    """The members of one sample: its JSON, and the offset, size and CRC-32 of each member."""

    metadata: bytes = b""
    json: tuple[int, int, int] = (0, 0, 0)
    frames: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def _add_member(
    samples: dict[str, _Members],
    member: TarMember,
    file: BinaryIO,
    shard: Path,
) -> None:
    match = MEMBER.fullmatch(member.name)
    if not match or not member.is_file:
        hint = _hint(member)
        raise InputError(
            f"{shard}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg{hint}"
        )

    sample = samples.setdefault(match["key"], _Members())
    frame_index = int(match["frame"]) if match["frame"] else None  # None: the JSON
    is_duplicate = bool(sample.metadata) if frame_index is None else frame_index in sample.frames
    # Which of the two is right cannot be known.
    if is_duplicate:
        raise InputError(f"{shard}: duplicate member {member.name!r}; keys must be unique")

    if frame_index is None and member.size > MAX_JSON_BYTES:
        raise InputError(
            f"{shard}: member {member.name!r} has {member.size} bytes, the limit is "
            f"{MAX_JSON_BYTES}"
        )

    span = (member.offset, member.size, member.crc32(file))
    if frame_index is None:
        sample.metadata = member.read(file)
        sample.json = span
    else:
        sample.frames[frame_index] = span


def _hint(member: TarMember) -> str:
    """What to do about a member that is not of a decoded sample."""
    if not member.is_file:
        return "; it is not a regular file"
    if re.search(r"\.(json|[0-9]{1,6}\.jpg)$", member.name):
        return "; a key has no folder and no dot: rename the members"
    if PurePosixPath(member.name).suffix.lower() in {*VIDEO_EXTENSIONS, ".jpg", ".txt"}:
        return "; for shards of video2dataset or img2dataset, set `data` instead of `shards`"
    return ""


def _index_row(path: Path, key: str, sample: _Members) -> dict[str, Any]:
    if not sample.metadata or not sample.frames:
        raise InputError(f"{path}: sample {key} has no json or no frames")

    try:
        metadata = SampleMetadata.model_validate_json(sample.metadata)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: sample {key}: {where}: {first['msg']}") from error

    # Zeros at the end of a tar look like its end.
    count = len(sample.frames)
    if metadata.frames and metadata.frames != count:
        raise InputError(f"{path}: sample {key} has {count} of {metadata.frames} frames: it is cut")

    row = metadata.model_dump(exclude={"version", "frames", "meta"})
    row["key"] = key

    # By their numbers, whatever their order in the tar.
    frames = [sample.frames[i] for i in sorted(sample.frames)]
    for position, name in enumerate(("offset", "size", "crc32")):
        row[f"json_{name}"] = sample.json[position]
        row[f"frame_{name}s"] = [span[position] for span in frames]
    return row
