"""Random access to the samples of shards: each sample is read from its offset in its tar.

Shards may be local or at a URL. A sample at a URL takes one request for all of its members:
training reads most of a clip, and the request dominates the cost. Readers can be forked or pickled:
the only open files are local and are read with os.pread, which has no shared position.
"""

import io
import json
import os
import zlib
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
# Columns that a reader holds in memory.
MEMORY_COLUMNS = ["id", "split", "kind", "group", "shard"]
ROWS_PER_BATCH = 8192  # rows of an index that are read at a time
# Headers and members of other samples that one request may fetch, beyond twice a sample's size.
MAX_GAP_BYTES = 65536
MAX_KEPT_SAMPLES = 2**13  # a reader caches samples of a local corpus up to this number
MAX_KEPT_BYTES = 2**28  # and their decoded frames up to these bytes


class Unreadable(InputError):
    """Raised for a sample that is missing from its shard or corrupt. The message names the shard,
    the sample and the reason."""


# A member's offset, size (bytes) and CRC-32 (None: unknown).
Span = tuple[int, int, int | None]
Fetched = tuple[int, bytes]  # bytes of a shard at an offset


@dataclass(frozen=True)
class Sample:
    """A sample of a shard: its metadata and where its frames are. Its length is the number of
    frames."""

    metadata: dict[str, Any]
    shard: Location
    spans: list[Span]  # one for the JPEG of each frame
    fetched: Fetched | None = None  # the bytes of all frames, if fetched in one request
    # Decoded frames.
    kept: dict[int, np.ndarray] = field(default_factory=dict, compare=False)
    max_kept_bytes: int = 0  # a larger decoded frame is decoded again each time

    def __len__(self) -> int:
        return len(self.spans)

    def frames(self, chosen: list[int] | None = None) -> np.ndarray:
        """Read and decode the chosen frames (all of them by default): (T, H, W, 3) uint8. Raises
        Unreadable."""
        if chosen is None:
            chosen = list(range(len(self)))
        # A frame that is chosen several times is decoded once.
        decoded = {i: self._frame(i) for i in set(chosen)}
        shapes = {frame.shape for frame in decoded.values()}
        if len(shapes) > 1:
            sizes = sorted(f"{width} x {height}" for height, width, _ in shapes)
            raise Unreadable(
                f"{self.shard}: {self.metadata['id']}: its frames have different sizes: "
                f"{' and '.join(sizes)}"
            )
        return np.stack([decoded[i] for i in chosen])

    def _frame(self, frame_index: int) -> np.ndarray:
        frame = self.kept.get(frame_index)
        if frame is not None:
            return frame

        try:
            data = _read(self.shard, self.spans[frame_index], self.fetched)
            frame = decode_jpeg(data)
        except Exception as error:  # Pillow raises many types for corrupt JPEGs
            raise Unreadable(
                f"{self.shard}: {self.metadata['id']}, frame {frame_index}: {_reason(error)}"
            ) from error

        # Training draws the frames of a small corpus again and again.
        if frame.nbytes <= self.max_kept_bytes:
            self.kept[frame_index] = frame
        return frame


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a frame (H, W, 3) uint8. Raises many types for a corrupt file.

    simplejpeg gives the pixels of Pillow in 0.3 to 0.6 of the time, except for CMYK, and refuses a
    few files that Pillow reads.
    """
    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
        if colorspace in ("YCbCr", "Gray"):
            return simplejpeg.decode_jpeg(data)
    except ValueError:  # Pillow may read it
        pass

    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    return np.asarray(image.convert("RGB"))


class ShardReader:
    """The samples 0..N-1 of a decoded corpus (a folder with index.parquet and shards), filtered.

    The folder, and the shards in the index, may be paths or URLs. Memory holds only where each
    sample is: tens of bytes, and 24 per frame. Texts and frames stay in the shards.
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
        filters = {"split": split, "kind": kind}
        values = {name: value for name, value in filters.items() if value is not None}

        json_spans = [np.empty((0, 3), np.int64)]
        frame_spans = [np.empty((0, 3), np.int64)]
        frame_counts = [np.zeros(1, np.int64)]
        # The empty table makes `concat_tables` work without a selected row.
        fields = [INDEX.field(name) for name in MEMORY_COLUMNS]
        schema = pa.schema([*fields, ("row", pa.int64())])
        tables = [schema.empty_table()]

        for table in _selected(folder, values, exclude):
            json_spans.append(
                np.stack([table[name] for name in JSON_SPAN_COLUMNS], axis=1)
            )
            columns = [table[name].combine_chunks() for name in FRAME_SPAN_COLUMNS]
            frame_spans.append(
                np.stack([column.flatten() for column in columns], axis=1)
            )
            frame_counts.append(columns[0].value_lengths().to_numpy())
            tables.append(table.drop_columns([*JSON_SPAN_COLUMNS, *FRAME_SPAN_COLUMNS]))

        self.table = pa.concat_tables(tables).combine_chunks()
        self._ids = self.column("id")

        # Each name once: thousands of samples may share a shard.
        shards = self.column("shard").dictionary_encode()
        self._shards = [join(folder, name) for name in shards.dictionary.to_pylist()]
        # Shard of each sample.
        self._shard_index = shards.indices.to_numpy(zero_copy_only=False)
        self.table = self.table.drop_columns(["shard"])

        self._json_spans = np.concatenate(json_spans)
        self._frame_spans = np.concatenate(frame_spans)
        # The frames of sample i are first_frame[i] to first_frame[i + 1].
        self._first_frame = np.cumsum(np.concatenate(frame_counts))
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.Array:
        """Return a column of the index, such as id, split, kind, group, captions or questions. Texts
        are read from the index again."""
        if name in self.table.column_names:
            column = self.table[name].combine_chunks()
        else:
            whole = read_index(self.folder, [name])[name]
            column = whole.take(self.table["row"]).combine_chunks()
        if isinstance(column, pa.Array):
            return column
        return pa.concat_arrays(column.chunks)

    def frame_count(self, sample_index: int) -> int:
        """Return the number of frames of sample 0..N-1, without reading it."""
        first = self._first_frame[sample_index]
        end = self._first_frame[sample_index + 1]
        return int(end - first)

    def __getitem__(self, sample_index: int) -> Sample:
        """Return sample 0..N-1. Raises Unreadable if its shard is missing, truncated, corrupt or
        replaced."""
        kept = self._kept.get(sample_index)
        if kept is not None:
            return kept

        shard = self._shards[self._shard_index[sample_index]]
        sample_id = self._ids[sample_index].as_py()
        json_span: Span = tuple(self._json_spans[sample_index].tolist())
        first, end = self._first_frame[sample_index : sample_index + 2]
        frame_spans = self._frame_spans[first:end].tolist()
        try:
            fetched = None
            if not isinstance(shard, Path):
                fetched = _fetch(shard, [json_span, *frame_spans])
            metadata = json.loads(_read(shard, json_span, fetched))
            stored_id = metadata["id"]
            if stored_id != sample_id:
                raise ValueError(
                    f"the shard has {stored_id} in its place: the index belongs to another shard"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{shard}: {sample_id}: {_reason(error)}") from error

        frame_count = max(1, len(self._frame_spans))
        sample = Sample(
            metadata,
            shard,
            frame_spans,
            fetched,
            max_kept_bytes=MAX_KEPT_BYTES // frame_count,
        )
        # A sample with fetched bytes would keep all of its frames in memory.
        if not fetched and len(self) <= MAX_KEPT_SAMPLES:
            self._kept[sample_index] = sample
        return sample


def _selected(
    folder: Location,
    values: dict[str, str],
    exclude: Collection[str],
) -> Iterator[pa.Table]:
    """Yield the index in batches, with row numbers: the rows that have these values and no excluded
    id."""
    columns = [*MEMORY_COLUMNS, *JSON_SPAN_COLUMNS, *FRAME_SPAN_COLUMNS]
    schema = pa.schema([INDEX.field(name) for name in columns])
    excluded = pa.array(sorted(exclude), pa.string())
    first_row = 0
    for batch in index_batches(folder, columns):
        # Other tools write the same values with other types.
        table = pa.Table.from_batches([batch]).select(columns).cast(schema)
        rows = np.arange(first_row, first_row + table.num_rows)
        table = table.append_column("row", pa.array(rows))
        first_row += table.num_rows

        for column, value in values.items():
            table = table.filter(pc.equal(table[column], value))
        if exclude:
            is_excluded = pc.is_in(table["id"], excluded)
            table = table.filter(pc.invert(is_excluded))
        yield table


def sample_from_row(row: dict[str, Any], shard: Location) -> Sample:
    """Return the sample of an index row, with the row as its metadata."""
    sizes = row["frame_sizes"]
    # An index for search has none.
    checksums = row.get("frame_crc32s") or [None] * len(sizes)
    spans = zip(row["frame_offsets"], sizes, checksums, strict=True)
    return Sample(row, shard, list(spans))


def read_index(folder: Location, columns: list[str] | None = None) -> pa.Table:
    """Read the index of a decoded corpus, one row per sample. Raises InputError if it is missing or
    cannot be read."""
    with _index_file(folder) as file:
        return pq.read_table(file, columns=columns)


def index_batches(folder: Location, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the index of a decoded corpus in batches of thousands of rows. Raises as
    `read_index`."""
    with _index_file(folder) as file:
        yield from pq.ParquetFile(file).iter_batches(ROWS_PER_BATCH, columns=columns)


@contextmanager
def _index_file(folder: Location) -> Iterator[Path]:
    try:
        with local_copy(join(folder, "index.parquet")) as path:
            yield path
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no index.parquet; this is not a decoded corpus"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{folder}: index.parquet cannot be read: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _read(shard: Location, span: Span, fetched: Fetched | None = None) -> bytes:
    """Read the bytes of a member. Raises OSError if they are not those that were indexed."""
    offset, size, crc32 = span
    if fetched:
        start, content = fetched
        data = content[offset - start :][:size]
    elif isinstance(shard, Path):
        # `file` stays open while it is referenced, if another thread evicts it from the cache, too.
        # The key has the time of the last change, so that a replaced shard is opened again.
        file = _opened(str(shard), os.stat(shard).st_mtime_ns)
        data = os.pread(file.fileno(), size, offset)
    else:
        data = read_range(shard, offset, size)

    if len(data) != size:
        raise OSError(
            f"the shard is truncated: it ends at byte {offset + len(data)}, "
            f"{offset + size} expected"
        )
    if crc32 is not None and zlib.crc32(data) != crc32:
        raise OSError(
            f"damaged: {size} bytes at byte {offset} of the shard have changed since it was indexed"
        )
    return data


def _fetch(shard: str, spans: list[Span]) -> Fetched | None:
    """Read all members of a sample in one request; None if they lie too far apart, as in shards of
    other tools."""
    start = min(offset for offset, _, _ in spans)
    end = max(offset + size for offset, size, _ in spans)
    needed = sum(size for _, size, _ in spans)
    if end - start > 2 * needed + MAX_GAP_BYTES:
        return None
    return start, read_range(shard, start, end - start)


@lru_cache(maxsize=64)
def _opened(path: str, modified: int) -> io.FileIO:
    # Unbuffered, as `os.pread` bypasses the buffer.
    return open(path, "rb", buffering=0)
