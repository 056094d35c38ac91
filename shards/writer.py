"""Samples to WebDataset shards, byte for byte the same whoever writes them, and the index of what lies where."""

import io
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from shards.decode import Clip
from shards.schema import INDEX, About, InputError, Row

MEMBER = re.compile(r"(?P<key>[^./]+)\.(json|(?P<frame>[0-9]{1,6})\.jpg)")


class ShardWriter:
    """Writes one shard under a temporary name; `close` renames it. A shard without samples is not kept.

    A sample is `<key>.json` and its frames as `<key>.<nn>.jpg`.
    """

    def __init__(self, path: Path, quality: int):
        import webdataset

        self.path, self.quality = path, quality
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file = open(self.temporary, "wb")
        # Owner and time are constants: the same samples are the same bytes.
        self.tar = webdataset.TarWriter(self.file, user="alpro", group="alpro", mtime=0.0)
        self.count = 0

    def write(self, row: Row, clip: Clip) -> None:
        """Appends a sample; its key is its number in the shard."""
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
            source=row.path.name,
            meta=row.meta,
        )
        members: dict[str, Any] = {
            "__key__": f"{self.count:06d}",
            "json": about.model_dump_json().encode(),
        }
        for number, frame in enumerate(clip.frames):
            members[f"{number:02d}.jpg"] = encode_jpeg(frame, self.quality)
        self.tar.write(members)
        self.count += 1

    def close(self) -> None:
        self.tar.close()
        self.file.close()
        if self.count:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink()


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A frame (H, W, 3) uint8 as JPEG, without chroma subsampling: small frames keep their colours."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def index_shard(path: Path) -> pa.Table:
    """The index rows of a shard, this project's or one of the same form.

    Only regular files named `<key>.json` and `<key>.<nn>.jpg` are taken: anything else, such as a pickle, is refused
    with InputError, since nothing of it may ever be decoded; and so is a tar without its end.
    """
    samples: dict[str, _Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _take(samples, member, tar, path)
        with open(path, "rb") as file:
            file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise tarfile.TarError("it has no end")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable shard: {error}") from error
    return pa.Table.from_pylist([_index_row(path, key, sample) for key, sample in samples.items()], schema=INDEX)


@dataclass
class _Members:
    """What a shard holds of one sample: its JSON, and where each member lies (offset and size in bytes)."""

    about: bytes = b""
    json: tuple[int, int] = (0, 0)
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)


def _take(samples: dict[str, _Members], member: tarfile.TarInfo, tar: tarfile.TarFile, path: Path) -> None:
    match = MEMBER.fullmatch(member.name)
    if not match or not member.isreg():
        raise InputError(f"{path}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg; it is refused")
    sample = samples.setdefault(match["key"], _Members())
    place = member.offset_data, member.size
    if match["frame"]:
        sample.frames[int(match["frame"])] = place
    else:
        file = tar.extractfile(member)
        assert file is not None
        sample.about, sample.json = file.read(), place


def _index_row(path: Path, key: str, sample: _Members) -> dict[str, Any]:
    if not sample.about or not sample.frames:
        raise InputError(f"{path}: sample {key} lacks its json or its frames")
    try:
        about = About.model_validate_json(sample.about)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: sample {key}: {where}: {first['msg']}") from error
    frames = [sample.frames[number] for number in sorted(sample.frames)]
    places = {"shard": path.name, "key": key, "json_offset": sample.json[0], "json_size": sample.json[1]}
    offsets = {"frame_offsets": [o for o, _ in frames], "frame_sizes": [s for _, s in frames]}
    return about.model_dump(exclude={"version", "meta"}) | places | offsets
