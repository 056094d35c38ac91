"""Embeds the videos of a folder, a manifest or a decoded corpus into an index: those that it does not have."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alpro.errors import InputError
from alpro.files import make_folder
from alpro.inference.index import (
    ITEMS,
    About,
    Index,
    IndexWriter,
    Item,
    check_digest,
    items_named,
    key_of,
    read_about,
    repair,
    source_of,
)
from alpro.inference.model import BATCH, Model
from alpro.shards.decoding import video_seconds
from alpro.shards.reader import Sample, index_batches
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.identity import identities
from alpro.shards.sources.manifest import scan_manifest
from alpro.shards.storage import Location, absolute, exists, join, located

UNFINISHED = re.compile(r"\.lock|\..*\.part|[0-9a-f]{12}\.(npy|arrow|rejects\.parquet)")  # files of a killed first run
CHUNK = 2048  # sources whose files are looked up together


def scan_videos(source: Location, columns: Sequence[str] = ()) -> Iterator[Item | Reject]:
    """The items of a folder, a manifest (with or without texts) or a decoded corpus, without `identity`, in order.

    columns: of the manifest, which the items keep. Raises InputError if there is no such thing, or nothing in it.
    """
    source, empty = absolute(source), dict.fromkeys(ITEMS.names)
    if is_corpus(source):
        for batch in index_batches(source, ["id", "kind", "shard", "frame_offsets", "frame_sizes"]):
            for row in batch.to_pylist():
                yield empty | row_of_shard(row, source)
        return
    for row in scan_manifest(source, require_texts=False):
        if isinstance(row, Reject):
            yield row
        else:
            kept = {"split": row.split, "group": row.group} | row.meta
            own = [(name, text_of(kept[name])) for name in columns if name in kept]
            fields = row.model_dump(include={"id", "kind", "start", "end"})
            yield empty | fields | {"path": str(row.path), "columns": own or None}


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_corpus(source: Location) -> bool:
    """Whether it is a decoded corpus."""
    return exists(join(source, "index.parquet")) if isinstance(source, str) else (source / "index.parquet").is_file()


def row_of_shard(row: dict[str, Any], corpus: Location) -> Item:
    return {name: row[name] for name in ("id", "kind", "frame_offsets", "frame_sizes")} | {
        "path": str(join(corpus, row["shard"]))
    }


def in_windows(items: Iterable[Item | Reject], window: float, stride: float) -> Iterator[Item | Reject]:
    """The items, those that are whole videos longer than a window cut into windows of that many seconds, one every
    `stride` seconds; the last one ends with the video.

    Raises InputError for samples of a decoded corpus, of which only a few frames are there.
    """
    for item in items:
        if isinstance(item, Reject) or item["kind"] != "video" or (item["start"], item["end"]) != (None, None):
            yield item
        elif item["frame_offsets"] is not None:
            raise InputError(f"{item['path']}: a decoded corpus has no windows; index its videos instead")
        elif not isinstance(location := located(item["path"]), Path):
            detail = "windows need a file on this machine, not a URL"
            yield Reject(id=item["id"], path=item["path"], reason="bad row", detail=detail)
        elif (seconds := video_seconds(location)) <= window:
            yield item
        else:
            for number in range(ceil((seconds - window) / stride) + 1):
                start = number * stride
                yield item | {"start": start, "end": min(start + window, round(seconds, 3))}


@dataclass
class Counts:
    """What a run did with the items: embedded, rejected, and skipped, because an earlier run did so. `replaced` of them
    had changed since."""

    embedded: int = 0
    rejected: int = 0
    skipped: int = 0
    replaced: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


def update_index(
    folder: Path,
    model: Model,
    about: About,
    sources: Iterable[Item | Reject],
    report: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Embeds the items that the index in `folder` does not have, or whose files changed, and adds them to it.

    sources: a list has a progress with its length, unless it is cut into windows. about: the model and the windows, for
    a new index; one that exists keeps its windows. report: called with a line for each rejected file. Raises InputError
    if the index is of another model or has other windows, if it is in use, or if the folder has other files or cannot
    be created.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error
    if not (folder / "index.json").is_file() and not all(UNFINISHED.fullmatch(f.name) for f in folder.iterdir()):
        raise InputError(f"{folder}: not empty, and not an index; choose another folder")
    with locked(folder):
        return _update(folder, model, about, sources, report)


def remove_from_index(folder: Path, names: Sequence[str]) -> list[Item]:
    """Deletes the vectors and rows of what `items_named` finds, and returns it. Raises InputError if a name stands for
    nothing in the index, which then stays as it is, and if another process changes the index."""

    def chosen(index: Index) -> list[Item]:
        found = list(items_named(index, names))
        if missing := [name for name in names if name not in {name for name, _ in found}]:
            raise InputError(f"{folder}: not in this index: {', '.join(missing)}; `alpro index ls` lists what is")
        return [item for _, item in found]

    return remove_items(folder, chosen)


def remove_items(folder: Path, choose: Callable[[Index], Iterable[Item]]) -> list[Item]:
    """Deletes what a function chooses of the items and rejects of an index, and returns it. Raises InputError as
    `remove_from_index`."""
    read_about(folder)  # raises InputError if there is none
    with locked(folder):
        writer = IndexWriter(folder, repair(folder))
        items = list(choose(Index.open(folder)))
        if items:
            writer.finish(True, {key_of(item) for item in items})
    return items


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises InputError if another process changes the index."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another process is changing this index") from None
    try:
        yield
    finally:
        lock.release()


def _update(
    folder: Path, model: Model, about: About, sources: Iterable[Item | Reject], report: Callable[[str], None]
) -> Counts:
    if (folder / "index.json").is_file():
        before = read_about(folder)
        check_digest(folder, before, about.model, about.digest)
        if about.window and (about.window, about.stride) != (before.window, before.stride):
            windows = f"windows of {before.window:g} s every {before.stride:g} s" if before.window else "no windows"
            raise InputError(f"{folder}: this index has {windows}; choose another folder for the index")
        if about.columns and about.columns != before.columns:
            kept = f"keeps {', '.join(before.columns)}" if before.columns else "keeps no columns"
            raise InputError(f"{folder}: this index {kept}; choose another folder for the index")
        about = repair(folder).model_copy(update={"model": about.model})  # the same model may have moved
    writer, counts, total = IndexWriter(folder, about), Counts(), None
    current: dict[str, str] = {}  # identities of the files that may have stale windows
    if about.window and about.stride:
        items: Iterable[Item | Reject] = with_identities(in_windows(sources, about.window, about.stride))
    else:
        items = with_identities(sources)
    if isinstance(sources, list) and not about.window:
        items = list(items)
        total = sum(not isinstance(item, Reject) and writer.state(item) != "known" for item in items)
    pending: list[Item] = []  # those that are decoded: `encode` returns results in order

    def wanted() -> Iterator[Row | Sample]:
        for item in items:
            if isinstance(item, Reject):
                counts.reject(item.reason)
                writer.bad_rows.append(item)
                report(f"{item.id}: {item.reason}: {item.detail}".removesuffix(": "))
                continue
            state = writer.state(item)
            if about.window:
                current[item["path"]] = item["identity"]
            if state == "known":
                counts.skipped += 1
                continue
            counts.replaced += state == "changed"
            pending.append(item)
            yield source_of(item)

    for batch in model.encode(wanted(), BATCH, cls_only=True, total=total):
        features = dict(zip(batch.decoded, batch.videos.features.cpu().numpy(), strict=True))
        own, pending[:] = pending[: len(batch.sources)], pending[len(batch.sources) :]
        for i, item in enumerate(own):
            if i in features:
                counts.embedded += 1
                writer.add(item, features[i])
            else:
                error = batch.errors[i]
                counts.reject(error.reason)
                report(f"{item['path']}: {error}")
                writer.reject(item, error.reason, error.detail)
    stale = {key for key, identity in writer.known.items() if current.get(key.split("\n")[0], identity) != identity}
    writer.finish(counts.replaced > 0, stale)
    return counts


def with_identities(sources: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    """The items with the identity of their files, looked up with concurrent requests."""
    remaining = iter(sources)
    shards: dict[str, str] = {}
    while chunk := list(islice(remaining, CHUNK)):
        files = dict.fromkeys(i["path"] for i in chunk if not isinstance(i, Reject) and i["frame_offsets"] is None)
        samples = {i["path"] for i in chunk if not isinstance(i, Reject) and i["frame_offsets"] is not None}
        files |= dict.fromkeys(samples - shards.keys())
        known = dict(zip(files, identities(map(located, files)), strict=True))
        shards |= {path: known[path] for path in samples if path in known}
        for item in chunk:
            yield (
                item
                if isinstance(item, Reject)
                else item | {"identity": known.get(item["path"]) or shards[item["path"]]}
            )
