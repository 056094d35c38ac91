"""Samples out of shards by number: each is read from its place in its tar, so order and position are the caller's."""

import io
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from shards.schema import InputError

PLACES = ("json_offset", "json_size", "frame_offsets", "frame_sizes")


class Unreadable(InputError):
    """A sample that a shard should hold and does not, or holds damaged: the shard, the sample and the reason."""


@dataclass(frozen=True)
class Sample:
    """A sample of a shard: what is known of it, and where its frames lie. Its length is the number of frames."""

    about: dict[str, Any]
    shard: Path
    places: list[tuple[int, int]]  # offset and size of each frame's JPEG

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, chosen: list[int] | None = None) -> np.ndarray:
        """The chosen frames (all of them by default), read and decoded: (T, H, W, 3) uint8. Raises Unreadable."""
        chosen = list(range(len(self))) if chosen is None else chosen
        decoded = {i: self._frame(i) for i in set(chosen)}
        return np.stack([decoded[i] for i in chosen])

    def _frame(self, number: int) -> np.ndarray:
        try:
            jpeg = _read(self.shard, *self.places[number])
            return np.asarray(Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB"))
        except Exception as error:  # whatever a damaged JPEG brings up in Pillow
            raise Unreadable(f"{self.shard}: {self.about['id']}, frame {number}: {_reason(error)}") from error


class ShardReader:
    """The samples of a decoded corpus (a folder with index.parquet and shards), filtered, by number 0..N-1.

    What is held in memory for a sample is where it lies, a few tens of bytes; texts and frames stay in the shards.
    """

    def __init__(self, folder: Path, split: str | None = None, kind: str | None = None):
        self.folder = folder
        table = read_index(folder, ["id", "split", "kind", "group", "shard", *PLACES])
        table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
        for column, value in (("split", split), ("kind", kind)):
            if value is not None:
                table = table.filter(pc.equal(table[column], value))
        self.table = table.combine_chunks()
        self._ids = self.column("id")
        shards = self.column("shard").dictionary_encode()
        self._shards = shards.dictionary.to_pylist()
        self._shard = shards.indices.to_numpy(zero_copy_only=False)
        self._json = np.stack([self.column(name).to_numpy() for name in ("json_offset", "json_size")], axis=1)
        frames = self.column("frame_offsets")
        self._first = frames.offsets.to_numpy()
        self._frames = np.stack([frames.values.to_numpy(), self.column("frame_sizes").values.to_numpy()], axis=1)

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.Array:
        """A column of the index, such as id, split, kind, group, captions or questions; the texts are read anew."""
        if name in self.table.column_names:
            column = self.table[name].combine_chunks()
        else:
            column = read_index(self.folder, [name])[name].take(self.table["row"]).combine_chunks()
        return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)

    def __getitem__(self, number: int) -> Sample:
        """Sample number 0..N-1. Raises Unreadable where its shard is gone, cut short, damaged or another one."""
        shard, name = self.folder / self._shards[self._shard[number]], self._ids[number].as_py()
        try:
            about = json.loads(_read(shard, *self._json[number].tolist()))
            if about["id"] != name:
                raise ValueError(f"{about['id']} lies in its place: the index is of another shard")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{shard}: {name}: {_reason(error)}") from error
        return Sample(about, shard, self._frames[self._first[number] : self._first[number + 1]].tolist())


def read_index(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The index of a decoded corpus, one row a sample."""
    path = folder / "index.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no index.parquet; this is not a decoded corpus")
    return pq.read_table(path, columns=columns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read(shard: Path, offset: int, size: int) -> bytes:
    data = os.pread(_open(str(shard)).fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"a shard ends at byte {offset + len(data)}, {offset + size} expected: it was cut short")
    return data


def _open(path: str) -> io.FileIO:
    return _opened(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=64)
def _opened(path: str, changed: int) -> io.FileIO:
    # Open while cached; os.pread shares no position, so workers forked later may use it too.
    return open(path, "rb", buffering=0)
