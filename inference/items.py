"""Items: the rows of an index, each a clip or a file without an embedding."""

from typing import Any

import pyarrow as pa

from alpro.shards.schema import Member, Row, arrow_type
from alpro.shards.storage import located

SCHEMA = pa.schema(
    {
        "key": pa.string(),  # digest of the path and of the part of the file
        "id": pa.string(),
        # Location of the file or tar, stored relative to the root of the index.
        "path": pa.string(),
        "kind": pa.string(),
        "start": pa.float64(),  # seconds; null: the whole file
        "end": pa.float64(),
        "duration": pa.float64(),  # seconds of the clip; null: an image, or unknown
        "caption": pa.string(),
        "words": pa.string(),  # caption, file name and id, case folded
        # Table, stored like `path`; empty: a folder.
        "listed_by": pa.string(),
        "listed_as": pa.string(),  # digest of what it says
        # Changes with the file; empty: a bad row of a manifest.
        "identity": pa.string(),
        "member": arrow_type(Member),  # place in a tar of downloads
        # Frames of decoded samples, which earlier versions indexed.
        "frame_offsets": pa.list_(pa.int64()),
        "frame_sizes": pa.list_(pa.int64()),
        "reason": pa.string(),  # why there is no embedding
        "detail": pa.string(),
    }
)
COMPUTED = ["vector", "duration", "reason", "detail"]  # columns that an embedding fills
Item = dict[str, Any]  # a row of SCHEMA, with the values of a manifest as `columns`
EMPTY: Item = dict.fromkeys(SCHEMA.names) | {"columns": {}}


def get_source(item: Item) -> Row:
    """Return what decodes an item."""
    fields = {name: item[name] for name in ("id", "kind", "start", "end", "member")}
    return Row(path=located(item["path"]), **fields)


def describe_location(item: Item) -> str:
    """Name the file of an item, and the part of it.

    >>> describe_location(EMPTY | {"path": "a.mp4", "start": 1.5, "end": 4.0})
    'a.mp4 1.5-4 s'
    """
    if item["frame_offsets"] or item["member"]:
        return f"{item['path']}: {item['id']}"
    start = item["start"] or 0.0
    end = item["end"]
    if start or end:
        return f"{item['path']} {start:g}-{f'{end:g}' if end else ''} s"
    return item["path"]
