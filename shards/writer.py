"""Writes samples to WebDataset shards, reproducible byte for byte, and indexes shards."""

import hashlib
import io
import os
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from alpro.errors import InputError
from alpro.files import publish, temporary_name
from alpro.shards.decode import Clip
from alpro.shards.schema import INDEX, MAX_JSON_BYTES, VIDEO_EXTENSIONS, Row, SampleMetadata
from alpro.shards.storage import Location, open_binary

MEMBER = re.compile(r"(?:\./)*(?P<key>[^./]+)\.(json|(?P<frame>[0-9]{1,6})\.jpg)")
BLOCK_BYTES = 1 << 20  # bytes of a range request


class ShardWriter:
    """Writes one shard to a temporary file, which `close` renames. A shard without samples is deleted.

    A sample is `<key>.json` and its frames as `<key>.<nn>.jpg`. The context manager closes the shard, or deletes it
    after an exception, which frees space on a full disk.
    """

    def __init__(self, path: Path, quality: int):
        import webdataset

        self.path, self.quality = path, quality
        self.temporary = temporary_name(path)
        self.file = open(self.temporary, "wb")
        # Owner and time are constant, so that the same samples give the same bytes.
        self.tar = webdataset.TarWriter(self.file, user="alpro", group="alpro", mtime=0.0)
        self.count = 0

    def write(self, row: Row, clip: Clip) -> None:
        """Appends a sample."""
        about = SampleMetadata(
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
            meta=row.meta,
        )
        members: dict[str, Any] = {
            "__key__": sample_key(row.id),
            "json": about.model_dump_json().encode(),
        }
        for number, frame in enumerate(clip.frames):
            members[f"{number:02d}.jpg"] = encode_jpeg(frame, self.quality)
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
        self.tar.close()
        self.file.close()
        if self.count:
            publish(self.temporary, self.path)
        else:
            self.temporary.unlink()


def sample_key(name: str) -> str:
    """The key of a sample: the first 128 bits of the SHA-256 of its id.

    Readers of several shards distinguish samples by their keys, which are unique in a corpus like the ids. A key does
    not depend on the shard's name, because another corpus may reuse the shard under another name.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encodes a frame (H, W, 3) uint8 as JPEG, without chroma subsampling, which blurs the colours of small frames."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def index_shard(shard: Location) -> pa.Table:
    """The index rows of a shard of this format, by path or URL.

    Only regular files named `<key>.json` and `<key>.<nn>.jpg` are accepted. Raises InputError for anything else, such
    as a pickle, for a truncated tar and for duplicate members. A shard at a URL is fetched in blocks of 1 MiB, and
    larger members are skipped. The column `shard` has the URL, or the name of a local file.
    """
    samples: dict[str, _Members] = {}
    try:
        with open_binary(shard, block_size=BLOCK_BYTES, cache_type="readahead") as file:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not (member.isdir() and member.name == "."):  # as written by `tar -c .`
                        _add_member(samples, member, tar, shard)
            file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read(2 * tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.TarError("truncated")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: not a readable shard: {error}") from error
    name = shard.name if isinstance(shard, Path) else shard
    rows = [_index_row(shard, key, sample) | {"shard": name} for key, sample in samples.items()]
    return pa.Table.from_pylist(rows, schema=INDEX)


@dataclass
class _Members:
    """The members of one sample: its JSON, and the offset and size of each member in bytes."""

    about: bytes = b""
    json: tuple[int, int] = (0, 0)
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)


def _add_member(samples: dict[str, _Members], member: tarfile.TarInfo, tar: tarfile.TarFile, shard: Location) -> None:
    match = MEMBER.fullmatch(member.name)
    if not match or not member.isreg() or member.issparse():
        raw = PurePosixPath(member.name).suffix.lower() in {*VIDEO_EXTENSIONS, ".jpg", ".txt"}
        hint = "; for shards of video2dataset or img2dataset, set `data` instead of `shards`" if raw else ""
        raise InputError(f"{shard}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg{hint}")
    sample = samples.setdefault(match["key"], _Members())
    place = member.offset_data, member.size
    number = int(match["frame"]) if match["frame"] else None
    if sample.about if number is None else number in sample.frames:
        raise InputError(f"{shard}: duplicate member {member.name!r}; keys must be unique")
    if number is not None:
        sample.frames[number] = place
        return
    if member.size > MAX_JSON_BYTES:
        raise InputError(f"{shard}: member {member.name!r} has {member.size} bytes, the limit is {MAX_JSON_BYTES}")
    file = tar.extractfile(member)
    assert file is not None
    sample.about, sample.json = file.read(), place


def _index_row(path: Location, key: str, sample: _Members) -> dict[str, Any]:
    if not sample.about or not sample.frames:
        raise InputError(f"{path}: sample {key} has no json or no frames")
    try:
        about = SampleMetadata.model_validate_json(sample.about)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: sample {key}: {where}: {first['msg']}") from error
    frames = [sample.frames[number] for number in sorted(sample.frames)]
    places = {"key": key, "json_offset": sample.json[0], "json_size": sample.json[1]}
    offsets = {"frame_offsets": [o for o, _ in frames], "frame_sizes": [s for _, s in frames]}
    return about.model_dump(exclude={"version", "meta"}) | places | offsets
