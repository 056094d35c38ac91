"""Shards that video2dataset and img2dataset have written, as a source of items, each decoded from its place in a tar.

A sample is `<key>.mp4` (or `.jpg`), `<key>.txt` with its caption and `<key>.json` with its caption, status, address and
further columns. The table `<shard>.parquet` beside a shard also lists the downloads that failed; they become rejects.
Members are found from the headers of the tar, so no media are read. A key `00000_0003_001` is a clip of `00000_0003`:
clips of one video are one group.

Of a damaged tar, the samples before the damage are read, and the tar is a reject; so is a tar without samples. So is
every further sample that the table lists, or, without a table, `<shard>_stats.json` counts.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from alpro.credentials import has_credentials
from alpro.errors import InputError
from alpro.shards.schema import IMAGE_EXTENSIONS, MAX_JSON_BYTES, VIDEO_EXTENSIONS, Member, Reject, Row
from alpro.shards.sources.forms import split_name
from alpro.shards.sources.records import plain, read_records
from alpro.shards.storage import Location, exists, join, listing, open_binary, parent, read_bytes, suffix
from alpro.shards.tar import DamagedTar, TarMember, tar_members

BLOCKS: dict[str, Any] = {"block_size": 1 << 20, "cache_type": "readahead"}  # of requests to a store
CLIP = re.compile(r"(.+)_\d{3,}")  # the key of a clip that was cut from a sample
MAX_META_CHARACTERS = 1000  # of a text in further columns; subtitles and metadata of YouTube are longer
NOT_META = {"key", "status", "error_message", "caption", "split", "clips", "sha256"}
SUCCESS = ("success", "")
MAX_LOST = 10_000  # samples of a shard that are counted as lost; the statistics may be damaged, too


@dataclass
class Download:
    """The members of one sample in a tar."""

    media: Member | None = None
    caption: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    copies: Counter[str] = field(default_factory=Counter)  # the number of members with each extension


def is_downloads(data: Location) -> bool:
    """Whether a folder has shards of video2dataset or img2dataset: tars whose first sample has media as a file of its
    own, not as numbered frames."""
    for shard in tars(data):
        with (
            suppress(DamagedTar, OSError),  # the next shard may be readable
            open_binary(shard, **BLOCKS) as file,
        ):
            for member in islice(tar_members(file), 16):
                name = PurePosixPath(member.name)
                if name.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                    return name.name.count(".") == 1  # <key>.<nn>.jpg is a frame
    return False


def tars(data: Location) -> list[Location]:
    """The tars of a folder or URL, in order; empty if it is a file or does not exist."""
    if data.is_file() if isinstance(data, Path) else suffix(data):
        return []
    try:
        return listing(data, ".tar")
    except OSError:
        return []


def scan_downloads(folder: Location) -> Iterator[Row | Reject]:
    """Yields the rows of all shards of a folder, and a reject for each failed download and each invalid sample.

    Raises InputError if a shard cannot be read, or if two samples have the same key.
    """
    ids: dict[str, Location] = {}
    for shard in tars(folder):
        found, problem = samples(shard)
        if problem or not found:
            detail = f"{problem}; {len(found)} samples before it" if problem else "it has no samples"
            yield Reject(id=PurePosixPath(str(shard)).name, path=str(shard), reason="unreadable", detail=detail)
        for key, sample in found.items():
            row = row_of(key, sample, shard)
            if isinstance(row, Row) and (other := ids.setdefault(key, shard)) is not shard:
                raise InputError(f"{shard}: id {key!r} is also used in {other}; ids must be unique")
            yield row
            yield from [row] * (max(sample.copies.values()) - 1)  # a reject for each of them
        yield from lost(shard, found.keys())


def samples(shard: Location) -> tuple[dict[str, Download], str]:
    """The samples of a tar by their keys, up to where it is damaged, and in which way, or an empty string. Raises
    InputError if its store does not respond."""
    found: dict[str, Download] = {}
    last, problem = "", ""
    try:
        with open_binary(shard, **BLOCKS) as file:
            for member in tar_members(file):
                last = add_member(found, member, file) or last
    except DamagedTar as error:
        problem = str(error)
    except OSError as error:
        raise InputError(f"{shard}: not a readable shard: {error}") from error
    if last and may_lack_members(found[last], found.values(), bool(problem)):
        found[last].problem = f"its last members are lost: {problem or 'the shard ends inside this sample'}"
    return found, problem


def may_lack_members(last: Download, all_samples: Collection[Download], damaged: bool) -> bool:
    """Whether the last sample of a tar may have had further members: others have, or there are no others to tell. Of a
    tar that ends as it should, only the JSON counts, which every sample has or none: zeros at its end may be a hole."""
    if damaged:
        return len(all_samples) == 1 or any(last.copies.keys() < other.copies.keys() for other in all_samples)
    return ".json" not in last.copies and any(".json" in other.copies for other in all_samples)


def add_member(found: dict[str, Download], member: TarMember, file: BinaryIO) -> str:
    """Adds a member of a tar to its sample. Returns the key, or an empty string for other files."""
    path = PurePosixPath(member.name)
    key, _, extension = path.name.partition(".")
    if not member.is_file or not key:
        return ""
    key, extension = str(path.with_name(key)), f".{extension.lower()}"
    sample = found.setdefault(key, Download())
    sample.copies[extension] += 1
    if sample.copies[extension] > 1:
        sample.problem = f"{member.name} is in the shard {sample.copies[extension]} times; keys must be unique"
    elif extension in (".json", ".txt"):
        read_text(member, file, extension, sample)
    elif extension in VIDEO_EXTENSIONS or (extension in IMAGE_EXTENSIONS and sample.media is None):
        sample.media = Member(name=member.name, offset=member.offset, size=member.size)
    return key


def read_text(member: TarMember, file: BinaryIO, extension: str, sample: Download) -> None:
    if member.size > MAX_JSON_BYTES:
        sample.problem = f"{member.name} has {member.size} bytes, the limit is {MAX_JSON_BYTES}"
        return
    try:
        text = member.read(file).decode()
        about = {"caption": text} if extension == ".txt" else json.loads(text)
        about = plain(about, ("caption",)) if isinstance(about, dict) else {}
        sample.caption, sample.about = (text, sample.about) if extension == ".txt" else (sample.caption, about)
    except UnicodeDecodeError as error:
        sample.problem = f"{member.name}: not UTF-8: {error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        sample.problem = f"{member.name}: not JSON: {getattr(error, 'msg', error)}"


def row_of(key: str, sample: Download, shard: Location) -> Row | Reject:
    """The row of a sample, or a reject with the reason."""
    about = sample.about
    if sample.media is None or str(about.get("status") or "") not in SUCCESS:
        return not_fetched(key, about, "no media in the shard")
    try:
        if sample.problem:
            raise ValueError(sample.problem)
        caption = " ".join((sample.caption or str(about.get("caption") or "")).split())
        clip = CLIP.fullmatch(key) if about.get("clips") else None
        return Row(
            id=key,
            path=shard,
            member=sample.media,
            kind="image" if PurePosixPath(sample.media.name).suffix.lower() in IMAGE_EXTENSIONS else "video",
            captions=(caption,) if caption else (),
            split=split_name(about.get("split")),
            group=clip[1] if clip else "",
            name=key,
            meta={k: v for k, v in about.items() if is_meta(k, v)},
        )
    except ValueError as error:
        return Reject(id=key, path=url_of(about), reason="bad row", detail=str(error))


def not_fetched(key: str, about: dict[str, Any], otherwise: str) -> Reject:
    """The reject of a download that failed, with its status and message, or another reason."""
    texts = (str(about.get(name) or "") for name in ("status", "error_message"))
    detail = ": ".join(text for text in texts if text not in SUCCESS) or otherwise
    return Reject(id=key, path=url_of(about), reason="not fetched", detail=detail)


def url_of(record: dict[str, Any]) -> str:
    """The address that a sample was downloaded from; empty if it has credentials, as any other column with such a URL:
    nothing is fetched from it again."""
    url = str(record.get("url") or "")
    return "" if has_credentials(url) else url


def is_meta(key: str, value: Any) -> bool:
    """Whether a column is kept with the sample: plain values, without long texts."""
    short = isinstance(value, str) and len(value) <= MAX_META_CHARACTERS and not has_credentials(value)
    return key not in NOT_META and (short or isinstance(value, int | float | bool))


def lost(shard: Location, keys: Collection[str]) -> Iterator[Reject]:
    """The downloads of a shard that failed, and those that succeeded and that it lacks, from the table beside it, or
    from the statistics if there is no table."""
    name = PurePosixPath(str(shard)).stem
    table = join(parent(shard), f"{name}.parquet")
    if not exists(table):
        missing = successes(shard) - len({match[1] if (match := CLIP.fullmatch(key)) else key for key in keys})
        for number in range(min(missing, MAX_LOST)):
            detail = f"a sample that {name}_stats.json counts is not in the shard"
            yield Reject(id=f"{name}.tar lost {number}", path=str(shard), reason="unreadable", detail=detail)
        return
    for where, record in read_records(table):
        if isinstance(record, str):
            yield Reject(id=f"{name}.parquet {where}", path="", reason="bad row", detail=record)
        elif (key := str(record.get("key"))) in keys:
            continue
        elif str(record.get("status") or "") in SUCCESS:
            detail = f"a sample that {name}.parquet lists is not in {name}.tar"
            yield Reject(id=key, path=url_of(record), reason="unreadable", detail=detail)
        else:
            yield not_fetched(key, record, "")


def successes(shard: Location) -> int:
    """The number of downloads of a shard that succeeded, from the statistics beside it; 0 without statistics."""
    statistics = join(parent(shard), f"{PurePosixPath(str(shard)).stem}_stats.json")
    try:
        return int(json.loads(read_bytes(statistics))["successes"]) if exists(statistics) else 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
