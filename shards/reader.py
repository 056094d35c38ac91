"""Random access to the samples of shards: each sample is read from its offset in its tar.

Shards may be local or at a URL. A sample at a URL takes one request for all of its members:
training reads most of a clip, and the request dominates the cost. Readers can be forked or pickled:
the only open files are local and are read with os.pread, which has no shared position.
"""

import io
import json
import os
import zlib
from array import array
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from alpro.errors import InputError, one_line
from alpro.shards.schema import INDEX
from alpro.shards.storage import Location, join, local_copy, read_range

JSON_SPAN_COLUMNS = ("json_offset", "json_size", "json_crc32")
FRAME_SPAN_COLUMNS = ("frame_offsets", "frame_sizes", "frame_crc32s")
KEPT_COLUMNS = [
    "id",
    "split",
    "kind",
    "group",
    "shard",
]  # columns of the index that a reader keeps in memory
ROWS_PER_BATCH = 8192  # rows of an index that are read at a time
MAX_GAP_BYTES = 65536  # beyond twice a sample's size, that one request may fetch: headers, members of other samples
MAX_KEPT_SAMPLES = 2**13  # of a corpus on a disk that a reader keeps, if it has no more
MAX_KEPT_BYTES = 2**28  # of their decoded frames, if all frames of the corpus take no more


class Unreadable(InputError):
    """A sample that is missing from its shard or corrupt. The message names the shard, the sample
    and the reason."""


Span = tuple[
    int, int, int | None
]  # the offset, size (bytes) and CRC-32 of a member; None: not known
Fetched = tuple[int, bytes]  # bytes of a shard at an offset


@dataclass(frozen=True)
class Sample:
    """A sample of a shard: its metadata and the positions of its frames. Its length is the number
    of frames."""

    about: dict[str, Any]
    shard: Location
    places: list[Span]  # of each frame's JPEG
    fetched: Fetched | None = None  # the bytes of all frames, if fetched in one request
    kept: dict[int, np.ndarray] = field(default_factory=dict, compare=False)  # decoded frames
    max_kept_bytes: int = 0  # of a decoded frame; a larger one is decoded again each time

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, chosen: list[int] | None = None) -> np.ndarray:
        """The chosen frames (all of them by default), read and decoded: (T, H, W, 3) uint8. Raises
        Unreadable."""
        chosen = list(range(len(self))) if chosen is None else chosen
        decoded = {i: self._frame(i) for i in set(chosen)}
        if len(sizes := {f"{frame.shape[1]} x {frame.shape[0]}" for frame in decoded.values()}) > 1:
            raise Unreadable(
                f"{self.shard}: {self.about['id']}: its frames have different sizes: {' and '.join(sorted(sizes))}"
            )
        return np.stack([decoded[i] for i in chosen])

    def _frame(self, number: int) -> np.ndarray:
        if (frame := self.kept.get(number)) is not None:
            return frame
        try:
            frame = decode_jpeg(_read(self.shard, *self.places[number], self.fetched))
        except Exception as error:  # Pillow raises many types for corrupt JPEGs
            raise Unreadable(
                f"{self.shard}: {self.about['id']}, frame {number}: {_reason(error)}"
            ) from error
        if frame.nbytes <= self.max_kept_bytes:
            self.kept[number] = frame
        return frame


def decode_jpeg(data: bytes) -> np.ndarray:
    """A frame (H, W, 3) uint8. simplejpeg gives the pixels of Pillow in 0.3 to 0.6 of the time,
    except for CMYK, and refuses a few files that Pillow reads. Raises many types for a corrupt
    file."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
            return simplejpeg.decode_jpeg(data)
    except ValueError:
        pass
    return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB"))


class ShardReader:
    """The samples of a decoded corpus (a folder with index.parquet and shards), filtered, by number
    0..N-1.

    The folder, and the shards in the index, may be paths or URLs. Memory holds only the position of
    each sample: some tens of bytes, and 24 per frame. Texts and frames stay in the shards.
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
        values = {
            name: value for name, value in (("split", split), ("kind", kind)) if value is not None
        }
        tables = [pa.schema([*map(INDEX.field, KEPT_COLUMNS), ("row", pa.int64())]).empty_table()]
        places, frames, lengths = array("q"), array("q"), array("q", [0])
        for table in _selected(folder, values, exclude):
            places.frombytes(_stacked([table[name].combine_chunks() for name in JSON_SPAN_COLUMNS]))
            columns = [table[name].combine_chunks() for name in FRAME_SPAN_COLUMNS]
            frames.frombytes(_stacked([column.flatten() for column in columns]))
            lengths.frombytes(columns[0].value_lengths().cast("int64").to_numpy().tobytes())
            tables.append(table.drop_columns([*JSON_SPAN_COLUMNS, *FRAME_SPAN_COLUMNS]))
        self.table = pa.concat_tables(tables).combine_chunks()
        self._ids = self.column("id")
        shards = self.column("shard").dictionary_encode()
        self._shards = [join(folder, name) for name in shards.dictionary.to_pylist()]
        self._shard = shards.indices.to_numpy(zero_copy_only=False)
        self._json, self._frames = (
            np.frombuffer(rows, np.int64).reshape(-1, 3) for rows in (places, frames)
        )
        self._first = np.cumsum(np.frombuffer(lengths, np.int64))
        self._kept = dict[int, Sample]()
        self.table = self.table.drop_columns(["shard"])  # tables above

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.Array:
        """A column of the index, such as id, split, kind, group, captions or questions. Texts are
        read again."""
        if name in self.table.column_names:
            column = self.table[name].combine_chunks()
        else:
            column = read_index(self.folder, [name])[name].take(self.table["row"]).combine_chunks()
        return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)

    def frame_count(self, number: int) -> int:
        """The number of frames of sample 0..N-1, without reading it."""
        return int(self._first[number + 1] - self._first[number])

    def __getitem__(self, number: int) -> Sample:
        """Sample number 0..N-1. Raises Unreadable if its shard is missing, truncated, corrupt or
        replaced."""
        if (kept := self._kept.get(number)) is not None:
            return kept
        shard, name = self._shards[self._shard[number]], self._ids[number].as_py()
        place: Span = tuple(self._json[number].tolist())
        first = int(self._first[number])
        frames = self._frames[first : self._first[number + 1]].tolist()
        try:
            fetched = None if isinstance(shard, Path) else _fetch(shard, [place, *frames])
            about = json.loads(_read(shard, *place, fetched))
            if about["id"] != name:
                raise ValueError(
                    f"the shard has {about['id']} in its place: the index belongs to another shard"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{shard}: {name}: {_reason(error)}") from error
        sample = Sample(
            about,
            shard,
            frames,
            fetched,
            max_kept_bytes=MAX_KEPT_BYTES // max(1, len(self._frames)),
        )
        if not fetched and len(self) <= MAX_KEPT_SAMPLES:
            self._kept[number] = sample
        return sample


def _selected(
    folder: Location, values: dict[str, str], exclude: Collection[str]
) -> Iterator[pa.Table]:
    """The index in batches, with row numbers: the rows that have these values and no excluded id."""
    columns = [*KEPT_COLUMNS, *JSON_SPAN_COLUMNS, *FRAME_SPAN_COLUMNS]
    first, excluded = 0, pa.array(sorted(exclude), pa.string())
    for batch in index_batches(folder, columns):
        # Other tools write the same values with other types.
        table = (
            pa.Table.from_batches([batch])
            .select(columns)
            .cast(pa.schema([INDEX.field(name) for name in columns]))
        )
        table = table.append_column("row", pa.array(np.arange(first, first + table.num_rows)))
        first += table.num_rows
        for column, value in values.items():
            table = table.filter(pc.equal(table[column], value))
        if exclude:
            table = table.filter(pc.invert(pc.is_in(table["id"], excluded)))
        yield table


def _stacked(columns: list[pa.Array]) -> bytes:
    return np.stack([column.to_numpy() for column in columns], axis=1).tobytes()


def sample_from_row(row: dict[str, Any], shard: Location) -> Sample:
    """The sample of an index row, with the row as its metadata."""
    sums = row.get("frame_crc32s") or [None] * len(
        row["frame_sizes"]
    )  # an index for search has none
    return Sample(
        row, shard, list(zip(row["frame_offsets"], row["frame_sizes"], sums, strict=True))
    )


def read_index(folder: Location, columns: list[str] | None = None) -> pa.Table:
    """The index of a decoded corpus, one row per sample. Raises InputError if it is missing or
    cannot be read."""
    with _index_file(folder) as file:
        return pq.read_table(file, columns=columns)


def index_batches(folder: Location, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The index of a decoded corpus, in batches of some thousand rows. Raises InputError as
    `read_index`."""
    with _index_file(folder) as file:
        yield from pq.ParquetFile(file).iter_batches(ROWS_PER_BATCH, columns=columns)


@contextmanager
def _index_file(folder: Location) -> Iterator[Path]:
    try:
        with local_copy(join(folder, "index.parquet")) as path:
            yield path
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no index.parquet; this is not a decoded corpus") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder}: index.parquet cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _read(
    shard: Location, offset: int, size: int, crc32: int | None, fetched: Fetched | None = None
) -> bytes:
    """The bytes of a member. Raises OSError if they are not those that were indexed."""
    if fetched:
        data = fetched[1][offset - fetched[0] :][:size]
    elif isinstance(shard, Path):
        file = _opened(
            str(shard), os.stat(shard).st_mtime_ns
        )  # open if another thread evicts it from the cache, too
        data = os.pread(file.fileno(), size, offset)
    else:
        data = read_range(shard, offset, size)
    if len(data) != size:
        raise OSError(
            f"the shard is truncated: it ends at byte {offset + len(data)}, {offset + size} expected"
        )
    if crc32 is not None and zlib.crc32(data) != crc32:
        raise OSError(
            f"damaged: {size} bytes at byte {offset} of the shard have changed since it was indexed"
        )
    return data


def _fetch(shard: str, places: list[Span]) -> Fetched | None:
    """All members of a sample in one request; None if they lie too far apart, as in shards of other
    tools."""
    start, end = min(o for o, _, _ in places), max(o + size for o, size, _ in places)
    if end - start > 2 * sum(size for _, size, _ in places) + MAX_GAP_BYTES:
        return None
    return start, read_range(shard, start, end - start)


@lru_cache(maxsize=64)
def _opened(path: str, modified: int) -> io.FileIO:
    return open(path, "rb", buffering=0)
