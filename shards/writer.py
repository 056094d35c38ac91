"""Writes samples to WebDataset shards, reproducible byte for byte, and indexes shards."""

import hashlib
import io
import re
import zlib
from pathlib import Path
from tarfile import RECORDSIZE
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from alpro.errors import InputError, first_fault
from alpro.shards.clip import Clip, DecodeError
from alpro.shards.schema import INDEX, MAX_JSON_BYTES, Row, SampleMetadata
from alpro.shards.tar import BLOCK, DamagedTar, TarMember, samples_in

FRAME = re.compile(r"([0-9]{1,6})\.jpg")  # the extension of a frame


class ShardWriter:
    """Writes one shard, into a folder that another program does not see yet.

    A sample is `<key>.json` and its frames as `<key>.<nn>.jpg`. The context manager closes the
    shard, and deletes it if it has no samples or after an exception.
    """

    def __init__(self, path: Path, quality: int = 90):
        # Imported here: reading and indexing shards need no webdataset.
        from webdataset.writer import TarWriter

        self.path = path
        self.quality = quality
        self.file = open(path, "wb")
        # Owner and time are constant, so that the same samples give the same bytes.
        self.tar = TarWriter(self.file, user="alpro", group="alpro", mtime=0)
        self.count = 0

    def write(self, row: Row, clip: Clip) -> None:
        """Append a sample. Raises DecodeError if its texts and metadata are longer than a reader
        accepts."""
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
            detail = f"its texts and columns have {len(content)} bytes, the limit is {MAX_JSON_BYTES}"
            raise DecodeError("bad row", detail)

        members: dict[str, Any] = {"__key__": sample_key(row.id), "json": content}
        for frame_index, frame in enumerate(clip.frames):
            members[f"{frame_index:02d}.jpg"] = encode_jpeg(frame, self.quality)

        self.tar.write(members)
        self.count += 1

    def append(self, shard: Path) -> None:
        """Append the samples of another shard as they are."""
        with open(shard, "rb") as file:
            samples, damage = samples_in(file)
            if damage:
                raise damage
            for key, sample in samples.items():
                members: dict[str, Any] = {"__key__": key}
                for extension, (member,) in sample.items():
                    members[extension] = member.read(file)
                self.tar.write(members)
                self.count += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            with self.file:
                end = self.tar.tarstream.offset + 2 * BLOCK
                self.tar.close()
                # Padding to a whole record would hide samples lost at the end.
                if end % RECORDSIZE == 0:
                    end += BLOCK
                self.file.truncate(end)
        finally:
            if kind or not self.count:
                self.path.unlink()


def sample_key(name: str) -> str:
    """Return the key of a sample: the first 128 bits of the SHA-256 of its id.

    Readers of several shards distinguish samples by their keys, which are unique in a corpus like
    the ids. A key does not depend on the shard's name, because another corpus may reuse the shard
    under another name.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode a frame (H, W, 3) uint8 as JPEG, without chroma subsampling, which blurs the colors of
    small frames."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def index_shard(path: Path, shard: str = "") -> pa.Table:
    """Return the index rows of a shard of this format, with the CRC-32 of each member.

    Only regular files named `<key>.json` and `<key>.<nn>.jpg` are accepted.

    Args:
        path: The shard, or a copy of it.
        shard: What the column `shard` and errors call it; empty: the name of the file, and its path.

    Raises:
        InputError: For a damaged tar, for duplicate members, and for any other member, such as a
            pickle.
    """
    name = shard or str(path)
    rows = []
    try:
        with open(path, "rb") as file:
            samples, damage = samples_in(file)
            if damage:
                raise damage
            for key, sample in samples.items():
                row = _index_row(name, key, sample, file)
                rows.append(row | {"shard": shard or path.name})
    except (DamagedTar, OSError) as error:
        raise InputError(f"{name}: not a readable shard: {error}") from error

    if not rows:
        raise InputError(f"{name}: it has no samples")
    return pa.Table.from_pylist(rows, schema=INDEX)


def _index_row(
    shard: str, key: str, sample: dict[str, list[TarMember]], file: BinaryIO
) -> dict[str, Any]:
    frames: dict[int, TarMember] = {}
    for extension, (member, *duplicates) in sample.items():
        frame = FRAME.fullmatch(extension)
        is_known = member.is_file and (frame or extension == "json")
        if not is_known or not key or "/" in key:
            raise InputError(
                f"{shard}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg, with a "
                "key without a dot; for downloaded videos, set `data` instead of `shards`"
            )
        # Either of the two may be right.
        if duplicates or (frame and int(frame[1]) in frames):
            raise InputError(
                f"{shard}: duplicate member {member.name!r}; keys must be unique"
            )
        if frame:
            frames[int(frame[1])] = member

    if "json" not in sample or not frames:
        raise InputError(f"{shard}: sample {key} has no json or no frames")
    (metadata_member,) = sample["json"]
    metadata = _read_metadata(shard, key, metadata_member, file)

    # Zeros at the end of a tar look like its end.
    count = len(frames)
    if metadata.frames and metadata.frames != count:
        raise InputError(
            f"{shard}: sample {key} has {count} of {metadata.frames} frames: it is truncated"
        )

    # Sorted by their numbers, whatever their order in the tar.
    frame_members = [frames[number] for number in sorted(frames)]
    return metadata.model_dump(exclude={"version", "frames", "meta"}) | {
        "key": key,
        "json_offset": metadata_member.offset,
        "json_size": metadata_member.size,
        "json_crc32": zlib.crc32(metadata_member.read(file)),
        "frame_offsets": [member.offset for member in frame_members],
        "frame_sizes": [member.size for member in frame_members],
        "frame_crc32s": [zlib.crc32(member.read(file)) for member in frame_members],
    }


def _read_metadata(
    shard: str, key: str, member: TarMember, file: BinaryIO
) -> SampleMetadata:
    if member.size > MAX_JSON_BYTES:
        raise InputError(
            f"{shard}: member {member.name!r} has {member.size} bytes, the limit is "
            f"{MAX_JSON_BYTES}"
        )
    try:
        return SampleMetadata.model_validate_json(member.read(file))
    except ValidationError as error:
        raise InputError(f"{shard}: sample {key}: {first_fault(error)}") from error
