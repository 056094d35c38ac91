"""Shards that video2dataset and img2dataset have written, as a source of items, each decoded from its place in a tar.

A sample is `<key>.mp4` (or `.jpg`), `<key>.txt` with its caption and `<key>.json` with its caption, status, address and
further columns. The table `<shard>.parquet` beside a shard also lists the downloads that failed; they become rejects.
Members are found from the headers of the tar, so no media are read. A key `00000_0003_001` is a clip of `00000_0003`:
clips of one video are one group.
"""

import json
import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alpro.credentials import clean_values, without_credentials
from alpro.errors import InputError
from alpro.shards.adapters import split_name
from alpro.shards.database import database
from alpro.shards.manifest import Groups, Ids
from alpro.shards.members import Member
from alpro.shards.records import plain, read_records
from alpro.shards.schema import IMAGE_EXTENSIONS, MAX_JSON_BYTES, VIDEO_EXTENSIONS, Reject, Row
from alpro.shards.storage import Location, exists, join, listing, open_binary, parent, suffix

BLOCKS: dict[str, Any] = {"block_size": 1 << 20, "cache_type": "readahead"}  # of requests to a store
CLIP = re.compile(r"(.+)_\d{3,}")  # the key of a clip that was cut from a sample
MAX_META_CHARACTERS = 1000  # of a text in further columns; subtitles and metadata of YouTube are longer
NOT_META = {"key", "status", "error_message", "caption", "split", "clips", "sha256"}
SUCCESS = ("success", "")


@dataclass
class Download:
    """The members of one sample in a tar."""

    media: Member | None = None
    caption: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def is_downloads(data: Location) -> bool:
    """Whether a folder has shards of video2dataset or img2dataset: tars whose first sample has media as a file of its
    own, not as numbered frames."""
    for shard in tars(data):
        with (
            suppress(tarfile.TarError, OSError),  # the next shard may be readable
            open_binary(shard, **BLOCKS) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member, _ in zip(tar, range(16), strict=False):
                name = PurePosixPath(member.name)
                if name.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                    return name.name.count(".") == 1  # <key>.<nn>.jpg is a frame
    return False


def tars(data: Location) -> list[Location]:
    """The tars of a folder or URL, in order; none if it is a file or does not exist."""
    if data.is_file() if isinstance(data, Path) else suffix(data):
        return []
    try:
        return listing(data, ".tar")
    except OSError:
        return []


def scan_downloads(folder: Location, group_pattern: str = "") -> Iterator[Row | Reject]:
    """Yields the rows of all shards of a folder, and a reject for each failed download and each invalid sample.

    group_pattern: as in `scan_manifest`, applied to `<shard>/<key>`; default: clips of a sample are a group. Raises
    InputError if a shard cannot be read, or if two samples have the same key.
    """
    groups = Groups(group_pattern)
    with database() as db:
        ids = Ids(folder, db)
        for shard in tars(folder):
            found, problem = samples(shard)
            if problem:
                detail = f"{problem}; {len(found)} samples before it"
                yield Reject(id=PurePosixPath(str(shard)).name, path=str(shard), reason="unreadable", detail=detail)
            for key, sample in found.items():
                row = row_of(key, sample, shard, groups)
                if isinstance(row, Row):
                    ids.add(row.id, str(shard))
                yield row
            yield from failed(shard, found.keys())
    groups.check(folder)


def samples(shard: Location) -> tuple[dict[str, Download], str]:
    """The samples of a tar by their keys, up to where it is corrupt, and in which way, or an empty string. Raises
    InputError if its store does not respond."""
    found: dict[str, Download] = {}
    try:
        with open_binary(shard, **BLOCKS) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            add_members(tar, shard, found)
    except tarfile.TarError as error:
        return found, f"corrupt or truncated: {error}"
    except OSError as error:
        raise InputError(f"{shard}: not a readable shard: {error}") from error
    return found, ""


def add_members(tar: tarfile.TarFile, shard: Location, found: dict[str, Download]) -> None:
    """Adds the members of a tar to its samples."""
    for member in tar:
        path = PurePosixPath(member.name)
        key, _, extension = path.name.partition(".")
        if not member.isreg() or member.issparse() or not key:
            continue
        sample = found.setdefault(str(path.with_name(key)), Download())
        extension = f".{extension.lower()}"
        if extension in (".json", ".txt"):
            read_text(tar, member, extension, sample)
        elif extension in VIDEO_EXTENSIONS or (extension in IMAGE_EXTENSIONS and sample.media is None):
            sample.media = Member(shard, member.name, member.offset_data, member.size)


def read_text(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, sample: Download) -> None:
    """Reads the caption or the metadata of a sample."""
    if member.size > MAX_JSON_BYTES:
        sample.problem = f"{member.name} has {member.size} bytes, the limit is {MAX_JSON_BYTES}"
        return
    file = tar.extractfile(member)
    assert file is not None
    data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    if extension == ".txt":
        sample.caption = data.decode("utf-8", "replace")
        return
    try:
        about = json.loads(data)
        sample.about = plain(about, ("caption",)) if isinstance(about, dict) else {}
    except (ValueError, RecursionError) as error:
        sample.problem = f"{member.name}: not JSON: {getattr(error, 'msg', error)}"


def row_of(key: str, sample: Download, shard: Location, groups: Groups) -> Row | Reject:
    """The row of a sample, or a reject with the reason."""
    about = sample.about
    url = without_credentials(str(about.get("url") or ""), keep_query=True)
    status = str(about.get("status") or "")
    if sample.media is None or status not in SUCCESS:
        detail = ": ".join(text for text in (status, str(about.get("error_message") or "")) if text)
        return Reject(id=key, path=url, reason="not fetched", detail=detail or "no media in the shard")
    try:
        if sample.problem:
            raise ValueError(sample.problem)
        caption = " ".join((sample.caption or str(about.get("caption") or "")).split())
        clip = CLIP.fullmatch(key) if about.get("clips") else None
        name = f"{stem(shard)}/{key}"
        return Row(
            id=key,
            path=sample.media.location,
            kind="image" if PurePosixPath(sample.media.name).suffix.lower() in IMAGE_EXTENSIONS else "video",
            captions=(caption,) if caption else (),
            split=split_name(about.get("split")),
            group=groups.of(name) if groups.pattern else clip[1] if clip else key,
            meta=clean_values({k: v for k, v in about.items() if is_meta(k, v)}, keep_query=True),
        )
    except ValueError as error:
        return Reject(id=key, path=url, reason="bad row", detail=str(error))


def is_meta(key: str, value: Any) -> bool:
    """Whether a column is kept with the sample: plain values, without long texts."""
    short = isinstance(value, str) and len(value) <= MAX_META_CHARACTERS
    return key not in NOT_META and (short or isinstance(value, int | float | bool))


def failed(shard: Location, keys: Collection[str]) -> Iterator[Reject]:
    """The downloads of a shard that failed, from the table beside it, if there is one."""
    table = join(parent(shard), f"{stem(shard)}.parquet")
    if not exists(table):
        return
    for where, record in read_records(table):
        if isinstance(record, str):
            yield Reject(id=f"{stem(shard)}.parquet {where}", path="", reason="bad row", detail=record)
            continue
        status, key = str(record.get("status") or ""), str(record.get("key"))
        if status not in SUCCESS and key not in keys:
            detail = ": ".join(text for text in (status, str(record.get("error_message") or "")) if text)
            url = without_credentials(str(record.get("url") or ""), keep_query=True)
            yield Reject(id=key, path=url, reason="not fetched", detail=detail)


def stem(shard: Location) -> str:
    return PurePosixPath(str(shard)).stem
