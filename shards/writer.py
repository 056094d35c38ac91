"""Samples to WebDataset shards, byte for byte the same whoever writes them, and the index of what lies where."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from shards.decode import Clip
from shards.schema import INDEX, SAMPLE_VERSION, InputError, Row


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
        about = {
            "version": SAMPLE_VERSION,
            "id": row.id,
            "kind": row.kind,
            "split": row.split,
            "group": row.group,
            "captions": row.captions,
            "questions": [q.model_dump() for q in row.questions],
            "duration": round(clip.duration, 3),
            "width": clip.width,
            "height": clip.height,
            "source": row.path.name,
            "meta": row.meta,
        }
        members: dict[str, Any] = {
            "__key__": f"{self.count:06d}",
            "json": json.dumps(about, ensure_ascii=False).encode(),
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
    with InputError, since nothing of it may ever be decoded.
    """
    rows: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                number = extension.removesuffix(".jpg")
                if (
                    not member.isreg()
                    or "/" in member.name
                    or not (extension == "json" or (number.isdigit() and number != extension))
                ):
                    raise InputError(
                        f"{path}: member {member.name!r} is neither <key>.json nor <key>.<nn>.jpg; it is refused"
                    )
                row = rows.setdefault(key, {"shard": path.name, "key": key, "frames": {}})
                if extension == "json":
                    file = tar.extractfile(member)
                    assert file is not None
                    row["about"] = json.loads(file.read())
                    row["json_offset"], row["json_size"] = member.offset_data, member.size
                else:
                    row["frames"][int(number)] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable shard: {error}") from error
    return pa.Table.from_pylist([_index_row(path, row) for row in rows.values()], schema=INDEX)


def _index_row(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    about = row.get("about")
    if not isinstance(about, dict) or not row["frames"] or "id" not in about:
        raise InputError(f"{path}: sample {row['key']} lacks its json, its id or its frames")
    if about.get("version") != SAMPLE_VERSION:
        raise InputError(f"{path}: sample {row['key']} has version {about.get('version')}, this reads {SAMPLE_VERSION}")
    frames = [row["frames"][number] for number in sorted(row["frames"])]
    named = {name: about[name] for name in ("id", "split", "kind", "group", "captions", "questions")}
    seen = {name: about[name] for name in ("duration", "width", "height", "source")}
    places = {name: row[name] for name in ("shard", "key", "json_offset", "json_size")}
    return named | seen | places | {"frame_offsets": [o for o, _ in frames], "frame_sizes": [s for _, s in frames]}
