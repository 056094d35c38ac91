"""Samples to WebDataset shards, byte for byte the same whoever writes them, and the index of what lies where."""

import hashlib
import io
import os
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from alpro.errors import InputError
from alpro.files import temporary_name
from alpro.shards.decode import Clip
from alpro.shards.schema import INDEX, MAX_JSON_BYTES, About, Row
from alpro.shards.storage import Location, open_binary

MEMBER = re.compile(r"(?:\./)*(?P<key>[^./]+)\.(json|(?P<frame>[0-9]{1,6})\.jpg)")
BLOCK = 1 << 20  # bytes of one request for a part of a shard


class ShardWriter:
    """Writes one shard under a temporary name; `close` renames it. A shard without samples is not kept.

    A sample is `<key>.json` and its frames as `<key>.<nn>.jpg`. As a context it closes, or leaves nothing after an
    exception: on a full disk what was written makes room.
    """

    def __init__(self, path: Path, quality: int):
        import webdataset

        self.path, self.quality = path, quality
        self.temporary = temporary_name(path)
        self.file = open(self.temporary, "wb")
        # Owner and time are constants: the same samples are the same bytes.
        self.tar = webdataset.TarWriter(self.file, user="alpro", group="alpro", mtime=0.0)
        self.count = 0

    def write(self, row: Row, clip: Clip) -> None:
        """Appends a sample."""
        about = About(
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
            "__key__": key_of(row.id),
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
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink()


def key_of(name: str) -> str:
    """The key of the sample with this id: the first 128 bits of its SHA-256.

    Readers of several shards distinguish samples by their keys. Ids are unique in a corpus, and so are the keys. A key
    does not depend on the shard, which may be reused in another corpus under another name.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A frame (H, W, 3) uint8 as JPEG, without chroma subsampling: small frames keep their colours."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def index_shard(shard: Location) -> pa.Table:
    """The index rows of a shard, this project's or one of the same form, by path or URL.

    Only regular files named `<key>.json` and `<key>.<nn>.jpg` are taken: anything else, such as a pickle, is refused
    with InputError, since nothing of it may ever be decoded; and so are a tar without its end and a member that is
    there twice. Of a shard at a URL blocks of 1 MiB are fetched one after the other, and larger members passed over.
    Its rows name it by its URL, those of a file by its name.
    """
    samples: dict[str, _Members] = {}
    try:
        with open_binary(shard, block_size=BLOCK, cache_type="readahead") as file:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not (member.isdir() and member.name == "."):  # as `tar -c .` writes it
                        _take(samples, member, tar, shard)
            file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read(2 * tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.TarError("it has no end")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: not a readable shard: {error}") from error
    name = shard.name if isinstance(shard, Path) else shard
    rows = [_index_row(shard, key, sample) | {"shard": name} for key, sample in samples.items()]
    return pa.Table.from_pylist(rows, schema=INDEX)


@dataclass
class _Members:
    """What a shard holds of one sample: its JSON, and where each member lies (offset and size in bytes)."""

    about: bytes = b""
    json: tuple[int, int] = (0, 0)
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)


def _take(samples: dict[str, _Members], member: tarfile.TarInfo, tar: tarfile.TarFile, shard: Location) -> None:
    match = MEMBER.fullmatch(member.name)
    if not match or not member.isreg() or member.issparse():
        raise InputError(f"{shard}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg; it is refused")
    sample = samples.setdefault(match["key"], _Members())
    place = member.offset_data, member.size
    number = int(match["frame"]) if match["frame"] else None
    if sample.about if number is None else number in sample.frames:
        raise InputError(f"{shard}: member {member.name!r} is there twice; every sample needs a key of its own")
    if number is not None:
        sample.frames[number] = place
        return
    if member.size > MAX_JSON_BYTES:
        raise InputError(f"{shard}: member {member.name!r} has {member.size} bytes; {MAX_JSON_BYTES} are the most")
    file = tar.extractfile(member)
    assert file is not None
    sample.about, sample.json = file.read(), place


def _index_row(path: Location, key: str, sample: _Members) -> dict[str, Any]:
    if not sample.about or not sample.frames:
        raise InputError(f"{path}: sample {key} lacks its json or its frames")
    try:
        about = About.model_validate_json(sample.about)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: sample {key}: {where}: {first['msg']}") from error
    frames = [sample.frames[number] for number in sorted(sample.frames)]
    places = {"key": key, "json_offset": sample.json[0], "json_size": sample.json[1]}
    offsets = {"frame_offsets": [o for o, _ in frames], "frame_sizes": [s for _, s in frames]}
    return about.model_dump(exclude={"version", "meta"}) | places | offsets
