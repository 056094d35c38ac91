"""Embeds the videos of a folder, a manifest or a decoded corpus into an index: those that it does not have."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
from alpro.log import log
from alpro.shards.pyav_decoder import video_seconds
from alpro.shards.reader import Sample, index_batches
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.manifest import known_form, scan_manifest, scan_source
from alpro.shards.storage import Location, absolute, exists, identities, join, located

CHUNK = 2048  # sources whose files are looked up together
SHORTEST = 0.1  # seconds; frames at 10 a second are further apart
CORPUS = ["id", "kind", "captions", "shard", "frame_offsets", "frame_sizes"]


def scan_videos(source: Location, columns: Sequence[str] = ()) -> Iterator[Item | Reject]:
    """The items of a folder, a manifest (with or without texts) or a decoded corpus, without `identity`, in order.

    columns: of the manifest, which the items keep. Raises InputError if there is no such thing, or nothing in it.
    """
    source, empty = absolute(source), dict.fromkeys(ITEMS.names)
    if is_corpus(source):
        for batch in index_batches(source, CORPUS):
            for row in batch.to_pylist():
                shard, caption = row.pop("shard"), next(iter(row.pop("captions") or ()), None)
                yield empty | row | {"path": str(join(source, shard)), "caption": caption}
        return
    file = source if isinstance(source, Path) and source.is_file() and known_form(source) else None
    for row in scan_source(file)[1] if file else scan_manifest(source, require_texts=False):
        if isinstance(row, Reject):
            yield row
        else:
            known = {"split": row.split, "group": row.group or row.name} | row.meta
            values = [(name, known[name]) for name in columns if name in known]
            kept = [
                (name, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False))
                for name, v in values
            ]
            fields = row.model_dump(include={"id", "kind", "start", "end"})
            caption = next(iter(row.captions), None)
            yield (
                empty
                | fields
                | {"path": str(row.path), "caption": caption, "columns": kept or None}
            )


def is_corpus(source: Location) -> bool:
    """Whether it is a decoded corpus."""
    return (
        exists(join(source, "index.parquet"))
        if isinstance(source, str)
        else (source / "index.parquet").is_file()
    )


def in_windows(
    items: Iterable[Item | Reject], window: float, stride: float
) -> Iterator[Item | Reject]:
    """The items, those that are whole videos longer than a window cut into windows of that many seconds, one every
    `stride` seconds; the last one ends with the video, and shows at least SHORTEST seconds that no other does.

    Raises InputError for samples of a decoded corpus, of which only a few frames are there.
    """
    for item in items:
        if (
            isinstance(item, Reject)
            or item["kind"] != "video"
            or (item["start"], item["end"]) != (None, None)
        ):
            yield item
        elif item["frame_offsets"] is not None:
            raise InputError(
                f"{item['path']}: a decoded corpus has no windows; index its videos instead"
            )
        elif not isinstance(location := located(item["path"]), Path):
            detail = "windows need a file on this machine, not a URL"
            yield Reject(id=item["id"], path=item["path"], reason="bad row", detail=detail)
        elif (seconds := video_seconds(location)) <= window:
            yield item
        else:
            last = max(0, ceil((seconds - window - SHORTEST) / stride))
            for number in range(last + 1):
                end = number * stride + window if number < last else round(seconds, 3)
                yield item | {"start": number * stride, "end": end}


@dataclass
class Counts:
    """What a run did with the items: embedded, rejected (also by reason), and skipped, because an earlier run did so.
    `replaced` of them had changed since."""

    embedded: int = 0
    rejected: int = 0
    skipped: int = 0
    replaced: int = 0
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
    """The settings of an index that is created, or those of one that exists, whose model may be at another place now.

    stride: default half a window. Raises InputError if the index is of another model, or has other windows or columns,
    if the windows leave parts of videos out, or if the folder has other files.
    """
    if stride and not (window and stride <= window):
        raise InputError(
            "--stride needs a --window, and is not longer: a longer one would leave parts of videos out"
        )
    stride = stride or (window and window / 2)
    model = model.resolve()
    about = About(
        model=str(model),
        digest=model_digest(model),
        window=window,
        stride=stride,
        columns=tuple(columns),
    )
    if not (folder / "index.json").is_file():
        if folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise InputError(f"{folder}: not empty, and not an index; choose another folder")
        return about
    before = read_about(folder)
    check_digest(folder, before, about.model, about.digest)
    if window and (window, stride) != (before.window, before.stride):
        windows = (
            f"windows of {before.window:g} s every {before.stride:g} s"
            if before.window
            else "no windows"
        )
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
    """Embeds the videos that the index in `folder` does not have, or whose files changed, and adds them to it.

    about: see `settings`. videos: as `scan_videos` takes them, or what it returns. report: called with a line for each
    rejected file. Raises InputError if the index is in use, or if the folder cannot be written.
    """
    items = scan_videos(videos, about.columns) if isinstance(videos, str | Path) else videos
    if isinstance(videos, Path) and videos.is_dir():
        items = list(items)  # for the progress; the rows of a manifest are streamed
    if about.columns and isinstance(videos, str | Path) and not (folder / "index.json").is_file():
        rows = (item for item in scan_videos(videos, about.columns) if isinstance(item, dict))
        known = {name for row in rows for name, _ in row["columns"] or ()}
        if unknown := [name for name in about.columns if name not in known]:
            raise InputError(f"{videos}: no video has a column {unknown[0]!r}")
    with changing(folder):
        if (folder / "index.json").is_file():
            about = about.model_copy(update={"parts": read_about(folder).parts})
        return _add(IndexWriter(folder, about), model, items, report)


def _add(
    writer: IndexWriter, model: Model, items: Iterable[Item | Reject], report: Callable[[str], None]
) -> Counts:
    counts, about, total = Counts(), writer.about, None
    current: dict[str, str] = {}  # identities of the files that may have stale windows
    if about.window and about.stride:
        items = in_windows(items, about.window, about.stride)
    elif isinstance(items, list):
        known = dict(writer.identities())
        total = sum(isinstance(item, dict) and key_of(item) not in known for item in items)
    pending: list[Item] = []  # those that are decoded, in order

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

    for batch in model.batches(wanted(), BATCH, cls_only=True, total=total):
        features = dict(zip(batch.decoded, batch.videos.features.cpu().numpy(), strict=True))
        for place in batch.sources:
            item = pending.pop(0)
            if place in features:
                counts.embedded += 1
                writer.add(item, features[place])
            else:
                error = batch.errors[place]
                counts.reject(error.reason)
                report(f"{item['path']}: {error}")
                writer.reject(item, error.reason, error.detail)
    writer.finish(
        {key for key, old in writer.identities() if current.get(key.split("\n")[0], old) != old}
    )
    if writer.moved:
        log.info(f"{len(writer.moved)} clips have moved: the index has their new paths")
    return counts


def remove_videos(folder: Path, names: Sequence[str]) -> list[Item]:
    """Deletes the vectors and rows of what names stand for (`Index.named`), and returns these rows. Raises InputError
    if a name stands for nothing in the index, which then stays as it is, or if another process changes the index."""
    read_about(folder)  # raises InputError if there is none
    with changing(folder):
        writer, found = (
            IndexWriter(folder, read_about(folder)),
            list(Index.open(folder).named(names)),
        )
        missing = [name for name in names if name not in {name for name, _ in found}]
        items = [] if missing else [item for _, item in found]
        writer.finish({key_of(item) for item in items})
    if missing:
        raise InputError(
            f"{folder}: not in this index: {', '.join(missing)}; `alpro index ls` lists what is"
        )
    return items


def with_identities(sources: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    """The items with the identity of their files, looked up with concurrent requests; a shard is looked up once."""
    remaining, shards = iter(sources), dict[str, str]()
    while chunk := list(islice(remaining, CHUNK)):
        items = [item for item in chunk if not isinstance(item, Reject)]
        files = dict.fromkeys(item["path"] for item in items if item["path"] not in shards)
        known = shards | dict(zip(files, identities(map(located, files)), strict=True))
        shards |= {
            item["path"]: known[item["path"]] for item in items if item["frame_offsets"] is not None
        }
        for item in chunk:
            yield item if isinstance(item, Reject) else item | {"identity": known[item["path"]]}
