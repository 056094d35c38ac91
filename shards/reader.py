"""Samples out of shards by number: each is read from its place in its tar, so order and position are the caller's.

Shards may lie on this machine or at a URL. A sample at a URL takes one request, for all of it: what training draws of a
clip spans most of it, and a request costs more than the rest. Nothing that is open is handed from process to process
but files of this machine, read without a position, so that readers may be copied by a fork or pickled.
"""

import io
import json
import os
from array import array
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from alpro.errors import InputError
from alpro.shards.schema import INDEX
from alpro.shards.storage import Location, join, open_binary, read_range

PLACES = ("json_offset", "json_size", "frame_offsets", "frame_sizes")
KEPT = ["id", "split", "kind", "group", "shard"]  # columns of an index that a reader holds
ROWS = 8192  # of an index, held at a time
SLACK = 65536  # bytes beside twice its own that one request may fetch for a sample: headers, and others' members


class Unreadable(InputError):
    """A sample that a shard should hold and does not, or holds damaged: the shard, the sample and the reason."""


@dataclass(frozen=True)
class Block:
    """A part of a shard that has been fetched."""

    offset: int
    data: bytes

    def cut(self, offset: int, size: int) -> bytes:
        start = offset - self.offset
        return self.data[start : start + size]


@dataclass(frozen=True)
class Sample:
    """A sample of a shard: what is known of it, and where its frames lie. Its length is the number of frames."""

    about: dict[str, Any]
    shard: Location
    places: list[tuple[int, int]]  # offset and size of each frame's JPEG
    fetched: Block | None = None  # the bytes of all frames, where they came in one request

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, chosen: list[int] | None = None) -> np.ndarray:
        """The chosen frames (all of them by default), read and decoded: (T, H, W, 3) uint8. Raises Unreadable."""
        chosen = list(range(len(self))) if chosen is None else chosen
        decoded = {i: self._frame(i) for i in set(chosen)}
        if len(sizes := {f"{frame.shape[1]} x {frame.shape[0]}" for frame in decoded.values()}) > 1:
            raise Unreadable(f"{self.shard}: {self.about['id']}: its frames are {' and '.join(sorted(sizes))} large")
        return np.stack([decoded[i] for i in chosen])

    def _frame(self, number: int) -> np.ndarray:
        try:
            jpeg = _read(self.shard, *self.places[number], self.fetched)
            return np.asarray(Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB"))
        except Exception as error:  # whatever a damaged JPEG brings up in Pillow
            raise Unreadable(f"{self.shard}: {self.about['id']}, frame {number}: {_reason(error)}") from error


class ShardReader:
    """The samples of a decoded corpus (a folder with index.parquet and shards), filtered, by number 0..N-1.

    The folder, and a shard that the index names, may be a path or a URL. What is held in memory for a sample is where
    it lies, some tens of bytes and 16 a frame; texts and frames stay in the shards.
    """

    def __init__(
        self,
        folder: Location,
        split: str | None = None,
        kind: str | None = None,
        exclude: Collection[str] = (),
    ):
        """`exclude`: ids of samples to leave out."""
        self.folder = folder
        wanted = {name: value for name, value in (("split", split), ("kind", kind)) if value is not None}
        kept = [pa.schema([*map(INDEX.field, KEPT), ("row", pa.int64())]).empty_table()]
        places, frames, lengths = array("q"), array("q"), array("q", [0])
        for table in _selected(folder, wanted, exclude):
            places.frombytes(_pairs(table["json_offset"], table["json_size"]))
            offsets, sizes = (table[name].combine_chunks() for name in ("frame_offsets", "frame_sizes"))
            frames.frombytes(_pairs(offsets.flatten(), sizes.flatten()))
            lengths.frombytes(offsets.value_lengths().cast("int64").to_numpy().tobytes())
            kept.append(table.drop_columns(list(PLACES)))
        self.table = pa.concat_tables(kept).combine_chunks()
        self._ids = self.column("id")
        shards = self.column("shard").dictionary_encode()
        self._shards = [join(folder, name) for name in shards.dictionary.to_pylist()]
        self._shard = shards.indices.to_numpy(zero_copy_only=False)
        self._json, self._frames = (np.frombuffer(found, np.int64).reshape(-1, 2) for found in (places, frames))
        self._first = np.cumsum(np.frombuffer(lengths, np.int64))
        self.table = self.table.drop_columns(["shard"])  # not twice

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
        shard, name = self._shards[self._shard[number]], self._ids[number].as_py()
        offset, size = self._json[number].tolist()
        frames = self._frames[self._first[number] : self._first[number + 1]].tolist()
        try:
            fetched = None if isinstance(shard, Path) else _fetch(shard, [(offset, size), *frames])
            about = json.loads(_read(shard, offset, size, fetched))
            if about["id"] != name:
                raise ValueError(f"{about['id']} lies in its place: the index is of another shard")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{shard}: {name}: {_reason(error)}") from error
        return Sample(about, shard, frames, fetched)


def _selected(folder: Location, wanted: dict[str, str], exclude: Collection[str]) -> Iterator[pa.Table]:
    """The index part by part, with the number of each row: the rows that have the wanted values and no excluded id."""
    first, columns, excluded = 0, [*KEPT, *PLACES], pa.array(sorted(exclude), pa.string())
    for batch in index_batches(folder, columns):
        # Other tools write the same values in other types.
        table = pa.Table.from_batches([batch]).select(columns).cast(pa.schema([INDEX.field(name) for name in columns]))
        table = table.append_column("row", pa.array(np.arange(first, first + table.num_rows)))
        first += table.num_rows
        for column, value in wanted.items():
            table = table.filter(pc.equal(table[column], value))
        if exclude:
            table = table.filter(pc.invert(pc.is_in(table["id"], excluded)))
        yield table


def _pairs(offsets: pa.Array, sizes: pa.Array) -> bytes:
    return np.stack([offsets.to_numpy(), sizes.to_numpy()], axis=1).tobytes()


def sample_of(row: dict[str, Any], shard: Location) -> Sample:
    """The sample that a row of an index tells of, in its shard; what is known of it is the row itself."""
    return Sample(row, shard, list(zip(row["frame_offsets"], row["frame_sizes"], strict=True)))


def read_index(folder: Location, columns: list[str] | None = None) -> pa.Table:
    """The index of a decoded corpus, one row a sample. Raises InputError where there is none or it cannot be read."""
    with _opened_index(folder) as file:
        return pq.read_table(file, columns=columns)


def index_batches(folder: Location, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The index of a decoded corpus, some thousand rows at a time. Raises InputError as `read_index`."""
    with _opened_index(folder) as file:
        yield from pq.ParquetFile(file).iter_batches(ROWS, columns=columns)


@contextmanager
def _opened_index(folder: Location) -> Iterator[BinaryIO]:
    try:
        with open_binary(join(folder, "index.parquet")) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no index.parquet; this is not a decoded corpus") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder}: index.parquet cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read(shard: Location, offset: int, size: int, fetched: Block | None = None) -> bytes:
    if fetched:
        data = fetched.cut(offset, size)
    elif isinstance(shard, Path):
        file = _open(str(shard))  # held while it is read: another thread may have put its own in the cache
        data = os.pread(file.fileno(), size, offset)
    else:
        data = read_range(shard, offset, size)
    if len(data) != size:
        raise OSError(f"a shard ends at byte {offset + len(data)}, {offset + size} expected: it was cut short")
    return data


def _fetch(shard: str, places: list[tuple[int, int]]) -> Block | None:
    """All members of a sample in one request; None where they lie too far apart, as others may have written them."""
    start, end = min(o for o, _ in places), max(o + size for o, size in places)
    if end - start > 2 * sum(size for _, size in places) + SLACK:
        return None
    return Block(start, read_range(shard, start, end - start))


def _open(path: str) -> io.FileIO:
    return _opened(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=64)
def _opened(path: str, changed: int) -> io.FileIO:
    # Open while cached; os.pread shares no position, so workers forked later may use it too.
    return open(path, "rb", buffering=0)
