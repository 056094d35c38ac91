"""Random access to the samples of shards: each sample is read from its offset in its tar.

Shards may be local or at a URL. Members of a sample that are adjacent are read at once: training
needs most of a clip, and the seek or request dominates the cost. Readers can be forked or pickled:
no file stays open.
"""

import io
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image, UnidentifiedImageError

from alpro.errors import InputError
from alpro.shards.clip import error_text
from alpro.shards.schema import INDEX
from alpro.shards.storage import Location, join, local_copy, read_range

# Columns that a reader holds in memory.
MEMORY_COLUMNS = ["id", "split", "kind", "group", "shard"]
MEMORY_COLUMNS += ["json_offset", "json_size", "json_crc32"]
MEMORY_COLUMNS += ["frame_offsets", "frame_sizes", "frame_crc32s"]
ROWS_PER_BATCH = 8192  # rows of an index that are read at a time
# Headers and members of other samples that one request may fetch, beyond twice a sample's size.
MAX_GAP_BYTES = 65536
# A corpus of at most these bytes is kept in memory once it is read.
MAX_KEPT_BYTES = 2**28

# What the user can do if samples are unreadable.
REPAIR = "`alpro artifacts verify` lists damaged files and how to rebuild them"


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
    fetched: Fetched | None = None  # the bytes of all frames, if they were read at once

    def __len__(self) -> int:
        return len(self.spans)

    def frames(self, chosen: list[int] | None = None) -> np.ndarray:
        """Read and decode the chosen frames (all of them by default): (T, H, W, 3) uint8. Raises
        Unreadable."""
        spans = self.spans if chosen is None else [self.spans[i] for i in chosen]
        try:
            fetched = self.fetched or _fetch(self.shard, spans)
            members = [_member(self.shard, span, fetched) for span in spans]
            return np.stack([decode_jpeg(data) for data in members])
        except Exception as error:  # Pillow raises many types for corrupt JPEGs
            name = f"{self.shard}: {self.metadata['id']}"
            raise Unreadable(f"{name}: {error_text(error)}") from error


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a frame (H, W, 3) uint8. Raises many types for a corrupt file.

    simplejpeg gives the pixels of Pillow in 0.3 to 0.6 of the time, except for CMYK, and refuses a
    few files that Pillow reads.
    """
    with suppress(ValueError):  # Pillow may read it
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
            return simplejpeg.decode_jpeg(data)

    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    except UnidentifiedImageError:
        # Pillow's message has an address in memory, so rejects would differ from run to run.
        raise ValueError("not a JPEG file") from None
    return np.asarray(image.convert("RGB"))


class ShardReader(Sequence[Sample]):
    """The samples 0..N-1 of a decoded corpus (a folder with index.parquet and shards), filtered.

    The folder, and the shards in the index, may be paths or URLs. Memory holds only where each
    sample is: about a hundred bytes, and 24 per frame. Texts and frames stay in the shards, unless
    the corpus is small: training reads it again and again.
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
        tables = list(_selected(folder, {"split": split, "kind": kind}, exclude))
        # In one chunk, a row is found in constant time.
        self.table = pa.concat_tables(tables).combine_chunks()
        size = pc.sum(pc.list_flatten(self.table["frame_sizes"])).as_py() or 0
        self._keeps = size <= MAX_KEPT_BYTES
        self._kept: dict[int, Sample] = {}  # by the row of the index

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.Array:
        """Return a column of the index, such as id, split, kind, group, captions or questions. Texts
        are read from the index again."""
        if name in self.table.column_names:
            return self.table[name].combine_chunks()
        whole = read_index(self.folder, [name])[name]
        return whole.take(self.table["row"]).combine_chunks()

    def select(self, samples: Sequence[int]) -> "ShardReader":
        """Return a reader of some of the samples. Both share the samples in memory."""
        selected = copy(self)
        selected.table = self.table.take(pa.array(samples, pa.int64()))
        return selected

    def frame_count(self, sample_index: int) -> int:
        """Return the number of frames of sample 0..N-1, without reading it."""
        return len(self.table["frame_offsets"][sample_index])

    def __getitem__(self, sample_index: int) -> Sample:  # type: ignore[override]
        """Return sample 0..N-1. Raises Unreadable if its shard is missing, truncated, corrupt or
        replaced."""
        index_row = self.table["row"][sample_index].as_py()
        if index_row in self._kept:
            return self._kept[index_row]

        (row,) = self.table.slice(sample_index, 1).to_pylist()
        shard = join(self.folder, row["shard"])
        json_span = (row["json_offset"], row["json_size"], row["json_crc32"])
        frame_spans = _frame_spans(row)
        try:
            fetched = _fetch(shard, [json_span, *frame_spans])
            metadata = json.loads(_member(shard, json_span, fetched))
            if metadata["id"] != row["id"]:
                raise ValueError(
                    f"the shard has {metadata['id']} in its place: the index belongs to another "
                    "shard"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{shard}: {row['id']}: {error_text(error)}") from error
        sample = Sample(metadata, shard, frame_spans, fetched)
        if self._keeps:
            self._kept[index_row] = sample
        return sample


def _selected(
    folder: Location,
    values: dict[str, str | None],
    exclude: Collection[str],
) -> Iterator[pa.Table]:
    """Yield the index in batches, with row numbers: the rows that have these values and no excluded
    id."""
    schema = pa.schema([INDEX.field(name) for name in MEMORY_COLUMNS])
    # `concat_tables` needs a table without a selected row.
    yield schema.append(pa.field("row", pa.int64())).empty_table()

    excluded = pa.array(sorted(exclude), pa.string())
    first_row = 0
    for batch in index_batches(folder, MEMORY_COLUMNS):
        # Other tools write the same values with other types.
        table = pa.Table.from_batches([batch]).select(MEMORY_COLUMNS).cast(schema)
        rows = np.arange(first_row, first_row + table.num_rows)
        table = table.append_column("row", pa.array(rows))
        first_row += table.num_rows

        for column, value in values.items():
            if value is not None:
                table = table.filter(pc.equal(table[column], value))
        is_excluded = pc.is_in(table["id"], excluded)
        yield table.filter(pc.invert(is_excluded))


def _frame_spans(row: dict[str, Any]) -> list[Span]:
    """Return the spans of the frames in an index row. An index for search has no checksums."""
    sizes = row["frame_sizes"]
    checksums = row.get("frame_crc32s") or [None] * len(sizes)
    return list(zip(row["frame_offsets"], sizes, checksums, strict=True))


def sample_from_row(row: dict[str, Any], shard: Location) -> Sample:
    """Return the sample of an index row, with the row as its metadata."""
    return Sample(row, shard, _frame_spans(row))


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
            f"{folder}: index.parquet cannot be read: {error_text(error)}"
        ) from error


def _fetch(shard: Location, spans: list[Span]) -> Fetched | None:
    """Read the bytes of a shard from the first to the last of some members; None if they lie too far
    apart, as in shards of other tools."""
    start = min(offset for offset, _, _ in spans)
    end = max(offset + size for offset, size, _ in spans)
    needed = sum(size for _, size, _ in spans)
    if end - start > 2 * needed + MAX_GAP_BYTES:
        return None
    return start, read_range(shard, start, end - start)


def _member(shard: Location, span: Span, fetched: Fetched | None) -> bytes:
    """Return the bytes of a member, which are read unless they were fetched. Raises OSError if they
    are not those that were indexed."""
    offset, size, crc32 = span
    start, content = fetched or (offset, read_range(shard, offset, size))
    data = content[offset - start :][:size]
    if len(data) != size:
        raise OSError(f"the shard is truncated: it ends at byte {offset + len(data)}")
    if crc32 is not None and zlib.crc32(data) != crc32:
        raise OSError(
            f"damaged: {size} bytes at byte {offset} have changed since it was indexed"
        )
    return data
