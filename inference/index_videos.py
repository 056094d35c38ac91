"""Embeds the videos of a folder, a manifest or a decoded corpus into an index: those that it does
not have."""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import ceil
from pathlib import Path

from alpro.errors import InputError
from alpro.inference.find import model_digest
from alpro.inference.index import (
    ITEMS,
    About,
    Index,
    IndexWriter,
    Item,
    changing,
    check_digest,
    key_of,
    read_about,
    source_of,
)
from alpro.inference.model import BATCH, Model
from alpro.log import log, progress
from alpro.shards.reader import Sample, index_batches
from alpro.shards.schema import Reject, Row
from alpro.shards.seeking import video_seconds
from alpro.shards.sources.scan import is_folder, scan_media, scan_source
from alpro.shards.storage import Location, absolute, exists, identities, join, located

MAX_COUNTED = 100_000  # items that are listed before the first is embedded, for the time left
MIN_SECONDS = 10.0  # of the rest, from which on a line says how long it takes
CHUNK = 2048  # sources whose files are looked up together
SHORTEST = 0.1  # seconds; frames at 10 a second are further apart
EMPTY: Item = dict.fromkeys(ITEMS.names)
CORPUS = ["id", "kind", "captions", "shard", "frame_offsets", "frame_sizes"]


def scan_videos(source: Location, columns: Sequence[str] = ()) -> Iterator[Item | Reject]:
    """The items of a folder, a manifest (with or without texts) or a decoded corpus, without
    `identity`, in order.

    columns: of the manifest, which the items keep. Raises InputError if there is no such thing, or
    nothing in it.
    """
    source = absolute(source)
    if is_corpus(source):
        yield from _scan_corpus(source)
        return

    if isinstance(source, Path) and is_folder(source):
        rows = scan_media(source)
    else:
        _, rows = scan_source(source, require_texts=False)

    for row in rows:
        yield row if isinstance(row, Reject) else _item_of(row, columns)


def _scan_corpus(source: Location) -> Iterator[Item]:
    for batch in index_batches(source, CORPUS):
        for row in batch.to_pylist():
            shard = row.pop("shard")
            captions = row.pop("captions") or [None]
            yield EMPTY | row | {"path": str(join(source, shard)), "caption": captions[0]}


def _item_of(row: Row, columns: Sequence[str]) -> Item:
    """The item of a row of a manifest, with those of its columns that the index keeps."""
    known = {"split": row.split, "group": row.group or row.name} | row.meta
    kept = []
    for name in columns:
        if name in known:
            value = known[name]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            kept.append((name, text))

    fields = row.model_dump(include={"id", "kind", "start", "end"})
    fields["path"] = str(row.path)
    fields["caption"] = next(iter(row.captions), None)
    fields["columns"] = kept or None
    return EMPTY | fields


def is_corpus(source: Location) -> bool:
    """Whether it is a decoded corpus. Raises InputError if a local folder may not be read."""
    if isinstance(source, str):
        return exists(join(source, "index.parquet"))
    # `is_file` says no for a folder that may not be read; this raises.
    is_folder(source / "index.parquet")
    return (source / "index.parquet").is_file()


def in_windows(
    items: Iterable[Item | Reject],
    window: float,
    stride: float,
) -> Iterator[Item | Reject]:
    """The items, those that are whole videos longer than a window cut into windows of that many
    seconds, one every `stride` seconds; the last one ends with the video, and shows at least
    SHORTEST seconds that no other does.

    Raises InputError for samples of a decoded corpus, of which only a few frames are there.
    """
    for item in items:
        if isinstance(item, Reject) or item["kind"] != "video":
            yield item
            continue
        if item["start"] is not None or item["end"] is not None:
            yield item
            continue
        if item["frame_offsets"] is not None:
            raise InputError(
                f"{item['path']}: a decoded corpus has no windows; index its videos instead"
            )

        location = located(item["path"])
        if not isinstance(location, Path):
            detail = "windows need a file on this machine, not a URL"
            yield Reject(id=item["id"], path=item["path"], reason="bad row", detail=detail)
            continue

        seconds = video_seconds(location)
        if seconds <= window:
            yield item
            continue

        last = max(0, ceil((seconds - window - SHORTEST) / stride))
        for i in range(last + 1):
            start = i * stride
            end = start + window if i < last else round(seconds, 3)
            yield item | {"start": start, "end": end}


@dataclass
class Counts:
    """What a run did with the items: embedded, rejected (also by reason), and skipped, because an
    earlier run did so. `replaced` of them had changed since; `uncut` are longer than a window, but
    their containers do not say so."""

    embedded: int = 0
    rejected: int = 0
    skipped: int = 0
    replaced: int = 0
    uncut: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self.reasons[reason] += 1


def settings(
    folder: Path,
    model: Path,
    window: float | None = None,
    stride: float | None = None,
    columns: Sequence[str] = (),
) -> About:
    """The settings of an index that is created, or those of one that exists, whose model may be at
    another place now.

    stride: default half a window. Raises InputError if the index is of another model, or has other
    windows or columns, if the windows leave parts of videos out, or if the folder has other files.
    """
    if stride and not (window and stride <= window):
        raise InputError(
            "--stride needs a --window, and is not longer: a longer one would leave parts of "
            "videos out"
        )
    if not stride and window:
        stride = window / 2

    model = model.resolve()
    about = About(
        model=str(model),
        digest=model_digest(model),
        window=window,
        stride=stride,
        columns=tuple(columns),
    )

    if not (folder / "index.json").is_file():
        files = folder.iterdir() if folder.is_dir() else ()
        # Hidden files do not count: `changing` puts .lock there before index.json.
        if any(not file.name.startswith(".") for file in files):
            raise InputError(f"{folder}: not empty, and not an index; choose another folder")
        return about

    before = read_about(folder)
    check_digest(folder, before, about.model, about.digest)
    if window and (window, stride) != (before.window, before.stride):
        windows = "no windows"
        if before.window:
            windows = f"windows of {before.window:g} s every {before.stride:g} s"
        raise InputError(f"{folder}: this index has {windows}; choose another folder for the index")
    if columns and about.columns != before.columns:
        kept = f"keeps {', '.join(before.columns)}" if before.columns else "keeps no columns"
        raise InputError(f"{folder}: this index {kept}; choose another folder for the index")
    return before.model_copy(update={"model": about.model})


def add_videos(
    folder: Path,
    model: Model,
    about: About,
    videos: Location | Iterable[Item | Reject],
    report: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Embeds the videos that the index in `folder` does not have, or whose files changed, and adds
    them to it.

    about: see `settings`. videos: as `scan_videos` takes them, or what it returns. report: called
    with a line for each rejected file. Raises InputError if the index is in use, or if the folder
    cannot be written.
    """
    is_new = not (folder / "index.json").is_file()
    if isinstance(videos, str | Path):
        items: Iterable[Item | Reject] = scan_videos(videos, about.columns)
        # Those of an existing index were compared by `settings`.
        if about.columns and is_new:
            _check_columns(videos, about.columns)
    else:
        items = videos

    with changing(folder):
        if not is_new:
            # Read under the lock: another process may have added parts since `settings`.
            about = about.model_copy(update={"parts": read_about(folder).parts})
        return _add(IndexWriter(folder, about), model, items, report)


def _check_columns(videos: Location, columns: Sequence[str]) -> None:
    """Raises InputError if no row of a manifest has one of the columns."""
    known: set[str] = set()
    for item in scan_videos(videos, columns):
        if isinstance(item, dict):
            known.update(name for name, _ in item["columns"] or ())

    for name in columns:
        if name not in known:
            raise InputError(f"{videos}: no video has a column {name!r}")


def _add(
    writer: IndexWriter,
    model: Model,
    items: Iterable[Item | Reject],
    report: Callable[[str], None],
) -> Counts:

    counts = Counts()
    about = writer.about
    current: dict[str, str] = {}  # identities of the files that may have stale windows
    if about.window and about.stride:
        items = in_windows(items, about.window, about.stride)
    items, total = count_new(items, {key for key, _ in writer.identities()})

    pending: list[Item] = []  # those that are decoded, in order

    # `model.batches` draws from this while it decodes ahead: `pending` says whose clips come next.
    def wanted() -> Iterator[Row | Sample]:
        for item in with_identities(items):
            if isinstance(item, Reject):
                counts.reject(item.reason)
                writer.bad_rows.append(item)
                report(f"{item.id}: {item.reason}: {item.detail}".removesuffix(": "))
                continue
            if about.window:
                current[item["path"]] = item["identity"]

            state = writer.state(item)
            if state == "known" or (state == "new" and writer.take_over(item)):
                counts.skipped += 1
                continue

            counts.replaced += state == "changed"
            pending.append(item)
            yield source_of(item)

    began = time.monotonic()
    for batch in model.batches(wanted(), BATCH, cls_only=True, total=total):
        embeddings = batch.videos.features.cpu().numpy()
        by_position = dict(zip(batch.decoded, embeddings, strict=True))
        for position in batch.sources:
            # Batches have the order of `wanted`.
            item = pending.pop(0)
            if position in by_position:
                item["duration"] = batch.durations[position] or None  # 0: of an image
                counts.embedded += 1
                if about.window and is_uncut(item, about.window):
                    counts.uncut += 1
                writer.add(item, by_position[position])
            else:
                error = batch.errors[position]
                counts.reject(error.reason)
                report(f"{item['path']}: {error}")
                writer.reject(item, error.reason, error.detail)

        if 0 in batch.sources:  # the first batch
            seconds = time.monotonic() - began
            line = time_line(total, len(batch.sources), seconds, model.device.type)
            if line:
                log.info(line)

    # A file that changed may have fewer windows now: those of the old one are removed.
    stale = set()
    for key, identity in writer.identities():
        path = key.rpartition("\n")[0]  # which may have a newline in its name
        if current.get(path, identity) != identity:
            stale.add(key)
    writer.finish(stale)
    if writer.moved:
        log.info(f"{len(writer.moved)} clips have moved: the index has their new paths")
    if counts.uncut:
        log.warning(
            f"{counts.uncut:,} videos are longer than a window, but their containers state no "
            "length or a wrong one: each is one clip; "
            "`ffmpeg -i VIDEO -c copy NEW.mkv` gives a copy with its length"
        )
    return counts


def is_uncut(item: Item, window: float) -> bool:
    """Whether an embedded item is a whole video that `in_windows` would have cut, had it known the
    duration."""
    is_whole = item["kind"] == "video" and item["start"] is None and item["end"] is None
    # Containers and frames may differ by a frame.
    return is_whole and (item["duration"] or 0.0) > window + SHORTEST


def count_new(
    items: Iterable[Item | Reject], known: Collection[str]
) -> tuple[Iterable[Item | Reject], int | None]:
    """The items, and how many of them an index does not have; None if there are more than
    MAX_COUNTED, which are not held in memory."""
    remaining = iter(items)
    first = []
    with progress("listing", None, "videos") as advance:  # windows need the length of each
        for item in islice(remaining, MAX_COUNTED):
            first.append(item)
            advance()

    if len(first) == MAX_COUNTED:
        return chain(first, remaining), None
    new = [item for item in first if isinstance(item, dict) and key_of(item) not in known]
    return first, len(new)


def time_line(total: int | None, done: int, seconds: float, device: str) -> str:
    """A line on how long embedding takes, by the time of the first `done` videos; empty if they
    need less than MIN_SECONDS.

    >>> time_line(20_000, 16, 40.0, "cpu")
    '20,000 videos, about 14 h on this CPU; Ctrl-C, then the same command continues'
    """
    each = seconds / max(1, done)

    where = "this CPU" if device == "cpu" else "this GPU"
    if total is None:
        per_minute = 60 / max(each, 1e-6)
        what = f"more than {MAX_COUNTED:,} videos, {per_minute:,.0f} a minute on {where}"
    elif each * (total - done) < MIN_SECONDS:
        return ""
    else:
        what = f"{total:,} videos, about {rough_time(each * total)} on {where}"
    return f"{what}; Ctrl-C, then the same command continues"


def rough_time(seconds: float) -> str:
    """
    >>> [rough_time(seconds) for seconds in (50, 400, 50_000, 400_000)]
    ['1 min', '7 min', '14 h', '111 h']
    """
    minutes = max(1, round(seconds / 60))
    if minutes < 100:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h"


def remove_videos(folder: Path, names: Sequence[str]) -> list[Item]:
    """Deletes the vectors and rows of what names stand for (`Index.named`), and returns these rows.
    Raises InputError if a name stands for nothing in the index, which then stays as it is, or if
    another process changes the index."""
    read_about(folder)  # raises InputError if there is none
    with changing(folder):
        writer = IndexWriter(folder, read_about(folder))

        named = list(Index.open(folder).named(names))
        matched = {name for name, _ in named}
        missing = [name for name in names if name not in matched]
        items = {} if missing else {key_of(item): item for _, item in named}
        writer.finish(items.keys())

    if missing:
        raise InputError(
            f"{folder}: not in this index: {', '.join(missing)}; `alpro index ls` lists what is"
        )
    return list(items.values())


def with_identities(sources: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    """The items with the identity of their files, looked up with concurrent requests; a shard is
    looked up once."""
    remaining = iter(sources)
    shards: dict[str, str] = {}
    while chunk := list(islice(remaining, CHUNK)):
        items = [item for item in chunk if not isinstance(item, Reject)]
        files = dict.fromkeys(item["path"] for item in items if item["path"] not in shards)
        known = shards | dict(zip(files, identities(map(located, files)), strict=True))

        # Only shards are kept, of which there are few: their samples may be in many chunks.
        for item in items:
            if item["frame_offsets"] is not None:
                shards[item["path"]] = known[item["path"]]

        for row in chunk:
            if isinstance(row, Reject):
                yield row
            else:
                yield row | {"identity": known[row["path"]]}
