"""List the clips of a folder or a manifest, as items of an index."""

import os
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.inference.index import EMPTY, Item
from alpro.shards.duration import video_seconds
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.downloads import is_downloads
from alpro.shards.sources.manifest import Manifest
from alpro.shards.sources.scan import scan_media, scan_source
from alpro.shards.storage import Location, absolute, exists, join, located

SHORTEST = 0.1  # seconds; frames at 10 a second are further apart


def scan_videos(source: Location, columns: Sequence[str] = ()) -> Iterator[Item]:
    """List the items of a folder or a manifest (with or without texts), or the videos of a corpus.

    Args:
        source: Folder, file or URL.
        columns: Columns of a manifest that the items keep.

    Raises:
        InputError: If there is no such source, or nothing in it.
    """
    source = absolute(source)
    is_folder = os.path.isdir(source)  # noqa: PTH112 - no error if it may not be read
    rows: Iterable[Row | Reject]
    if is_corpus(source):
        # The corpus was decoded with a configuration of the table's columns.
        manifest = read_manifest(source)
        rows = manifest.rows()
        source = manifest.about["source"]
    elif isinstance(source, Path) and is_folder and not is_downloads(source):
        rows = scan_media(source)
        source = ""  # Only a table removes the rows that it no longer has.
    else:
        _, rows = scan_source(source, require_texts=False)

    for row in rows:
        if isinstance(row, Reject):
            yield EMPTY | vars(row)
            continue
        values = {"split": row.split, "group": row.group or row.name} | row.meta
        fields = row.model_dump(include={"id", "kind", "start", "end", "member"})
        fields |= {
            "path": str(row.path),
            "caption": next(iter(row.captions), None),
            "columns": {name: values.get(name) for name in columns},
            "listed_by": str(source),
        }
        yield EMPTY | fields


def is_corpus(source: Location) -> bool:
    """Check whether a location is a decoded corpus."""
    return exists(join(source, "index.parquet"))


def read_manifest(corpus: Location) -> Manifest:
    """Return the manifest from which a corpus was decoded.

    Raises:
        InputError: If the corpus has no manifest, as that of the sample, or if it was removed.
    """
    record = read_record(corpus) if isinstance(corpus, Path) else None
    folder = record.paths.get("manifest") if record else None
    if folder is None or not Path(folder, "about.json").is_file():
        raise InputError(
            f"{corpus}: there is no table of its videos; name the manifest or the folder of the "
            "videos"
        )
    return Manifest(Path(folder))


def split_into_windows(
    items: Iterable[Item], window: float, stride: float
) -> Iterator[Item]:
    """Split whole videos that are longer than a window into windows.

    The last window ends with the video, and shows at least SHORTEST seconds that no other does.

    Args:
        items: Items, of which images and parts of videos stay as they are.
        window: Seconds of a window.
        stride: Seconds from the start of one window to the next.
    """
    for item in items:
        is_whole = (
            item["kind"] == "video" and item["start"] is None and item["end"] is None
        )
        if not is_whole or item["reason"]:
            yield item
            continue
        path = located(item["path"])
        if item["member"] or not isinstance(path, Path):
            detail = "windows need a video file on this machine"
            yield item | {"reason": "bad row", "detail": detail}
            continue

        seconds = video_seconds(path)
        if seconds <= window:
            yield item
            continue

        last = max(0, ceil((seconds - window - SHORTEST) / stride))
        for i in range(last + 1):
            start = i * stride
            end = start + window if i < last else round(seconds, 3)
            yield item | {"start": start, "end": end}
