"""Shards that video2dataset and img2dataset have written, as a source of items, each decoded from
its place in a tar.

A sample is `<key>.mp4` (or `.jpg`), `<key>.txt` with its caption and `<key>.json` with its caption,
status, address and further columns. The table `<shard>.parquet` beside a shard also lists the
downloads that failed; they become rejects. Members are found from the headers of the tar, so no
media are read. A key `00000_0003_001` is a clip of `00000_0003`: clips of one video are one group.

Of a damaged tar, the samples before the damage are read, except the last, and the tar is a reject; so
is a tar without samples, and every further sample that the table lists.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from alpro.errors import InputError
from alpro.shards.credentials import find_credentials, redact
from alpro.shards.file_type import (
    HEAD_BYTES,
    IMAGE_EXTENSIONS,
    MEDIA_EXTENSIONS,
    VIDEO_EXTENSIONS,
    media_kind,
)
from alpro.shards.schema import MAX_JSON_BYTES, Reject
from alpro.shards.sources.form import SAMPLE, Form, Record, has_any
from alpro.shards.sources.rows import (
    MAYBE_ANIMATED,
    Items,
    Part,
    Rows,
    check_record,
    reject_row,
)
from alpro.shards.sources.tables import Table
from alpro.shards.storage import (
    Location,
    call_store,
    exists,
    join,
    listing,
    parent,
    suffix,
)
from alpro.shards.tar import DamagedTar, TarMember, samples_in, tar_members

T = TypeVar("T")
# The options with which fsspec opens a tar: how much a request to a store fetches.
REQUEST_OPTIONS: dict[str, Any] = {"block_size": 1 << 20, "cache_type": "readahead"}
FRAME = re.compile(r"\.\d+\.\w+$")  # <key>.<nn>.jpg
ENDING = re.compile(r"\.(tar\.gz|tgz)$")
CLIP = re.compile(r"(.+)_\d{3,}")  # the key of a clip that was cut from a sample
# Maximum length of a text in further columns. Subtitles and metadata of YouTube are longer.
MAX_META_CHARACTERS = 1000
NOT_META = {
    "key",
    "status",
    "error_message",
    "captions",
    "clips",
    "sha256",
    "id",
    "kind",
}
SUCCESS = ("success", "")


@dataclass
class Download:
    """The members of one sample in a tar."""

    media: Part = field(default_factory=dict)  # `kind` and `member` of its row
    caption: str = ""
    metadata: Record = field(default_factory=dict)  # contents of the JSON file
    problem: str = ""
    copies: Counter[str] = field(default_factory=Counter)  # members by their extension

    def record(self, key: str, form: Form) -> Record:
        """Return the caption of the sample, and the further columns of its JSON: those that the user
        names, and of the others the short ones."""
        metadata = self.metadata
        captions = (
            self.caption.strip() or metadata.get("caption") or metadata.get("captions")
        )
        clip = CLIP.fullmatch(key) if metadata.get("clips") else None
        meta = {}
        named = form.meanings - SAMPLE.meanings
        for column, value in metadata.items():
            is_cell = column not in NOT_META and isinstance(value, str | int | float)
            if (is_cell and len(str(value)) <= MAX_META_CHARACTERS) or has_any(
                named, [column]
            ):
                meta[column] = value
        return meta | {"caption": captions, "group": clip[1] if clip else ""}


def is_fetched(metadata: Record) -> bool:
    return str(metadata.get("status") or "") in SUCCESS


def not_fetched(key: str, metadata: Record, otherwise: str) -> Reject:
    """Return the reject of a failed download, with its status and message, or another reason."""
    texts = [str(metadata.get(column) or "") for column in ("status", "error_message")]
    problems = [text for text in texts if text not in SUCCESS]
    detail = redact(": ".join(problems))
    url = str(metadata.get("url") or "")
    return reject_row(key, detail or otherwise, url, "not fetched")


def without_credentials(record: Record) -> Record:
    """Return the columns without URLs that contain a password: nothing is fetched from these."""
    return {key: value for key, value in record.items() if not find_credentials(value)}


def is_downloads(data: Location) -> bool:
    """Return whether a folder has shards of video2dataset or img2dataset: tars whose first sample has
    media as a file of its own, not as numbered frames."""

    def has_media(file: BinaryIO) -> bool | None:
        with suppress(DamagedTar):  # the next shard may be readable
            # A sample has a few members: these hold a whole one.
            for member in islice(tar_members(file), 16):
                name = PurePosixPath(member.name)
                extension = name.suffix.lower()
                if extension in MEDIA_EXTENSIONS:
                    # A video is no frame, whatever number is before its extension.
                    return extension in VIDEO_EXTENSIONS or not FRAME.search(name.name)
        return None

    for shard in tars(data):
        with suppress(OSError):
            answer = with_tar(shard, has_media)
            if answer is not None:
                return answer
    return False


def tars(data: Location) -> list[Location]:
    """List the tars of a folder or URL, in order; none if it is a file or does not exist."""
    # The extension of a URL is enough: no request is needed.
    if not isinstance(data, Path) and suffix(data):
        return []
    try:
        return listing(data, ".tar")
    except OSError:
        return []


def compressed_tars(data: Location) -> list[Location]:
    """List the tars of a folder or URL that are compressed as a whole, which no reader seeks in,
    without those that `gunzip --keep` has unpacked beside them."""
    unpacked = {str(shard).removesuffix(".tar") for shard in listing(data, ".tar")}
    shards = [*listing(data, ".tar.gz"), *listing(data, ".tgz")]
    return [shard for shard in shards if ENDING.sub("", str(shard)) not in unpacked]


def with_tar(shard: Location, function: Callable[[BinaryIO], T]) -> T:
    """Call a function with the open tar, again from its start if a request to a store fails."""

    def read(system: Any, name: str) -> T:
        with system.open(name, "rb", **REQUEST_OPTIONS) as file:
            return function(file)

    return call_store(shard, read)


def scan_downloads(folder: Location, items: Items, form: Form = SAMPLE) -> Rows:
    """Yield the rows of all shards of a folder, and a reject for each failed download and each
    invalid sample.

    Raises:
        InputError: If a shard cannot be read, or if two samples have the same key.
    """
    for shard in tars(folder):
        try:
            samples, problem = with_tar(shard, read_samples)
        except OSError as error:
            raise InputError(f"{shard}: not a readable shard: {error}") from error

        if problem or not samples:
            yield reject_row(
                Path(shard).name,
                f"{problem or 'no samples'}; {len(samples)} samples before it",
                str(shard),
                "unreadable",
            )
        for key, sample in samples.items():
            if not sample.media or not is_fetched(sample.metadata):
                yield not_fetched(key, sample.metadata, "no media in the shard")
            elif sample.problem:
                reject = reject_row(key, sample.problem, str(shard))
                yield from [reject] * max(sample.copies.values())
            else:
                media = {"name": key, "path": str(shard)} | sample.media
                yield from items.add(key, sample.record(key, form), form, media=media)
        yield from missing_downloads(shard, samples.keys())

    for shard in compressed_tars(folder):
        yield reject_row(
            Path(shard).name,
            "a compressed shard is not read: gunzip it",
            str(shard),
            "unreadable",
        )
    yield from items.rows()


def read_samples(file: BinaryIO) -> tuple[dict[str, Download], str]:
    """Return the samples of a tar by their keys, up to where it is damaged, and in which way, or an
    empty string."""
    members, damage = samples_in(file)
    samples = {}
    for key, by_extension in members.items():
        sample = Download()
        for extensions, copies in by_extension.items():
            # Other programs write <key>.video.mp4 and <key>.caption.txt.
            extension = PurePosixPath(f"_.{extensions}").suffix
            for member in copies:
                if member.is_file:
                    add_member(sample, member, extension, file)
        if key and sample.copies:
            samples[key] = sample
    problem = str(damage or "")

    # The last sample of a damaged tar may have lost members. Zeros at the end of another may be a
    # hole: then only the JSON tells, which every sample has or none.
    *others, last = samples.values() or [Download()]
    have_json = any(".json" in other.copies for other in others)
    if problem or (have_json and ".json" not in last.copies):
        reason = problem or "the shard ends inside this sample"
        last.problem = f"its last members may be lost: {reason}"
    return samples, problem


def add_member(
    sample: Download,
    member: TarMember,
    extension: str,
    file: BinaryIO,
) -> None:
    sample.copies[extension] += 1
    count = sample.copies[extension]
    is_video = extension in VIDEO_EXTENSIONS
    try:
        if count > 1:
            raise ValueError(
                f"in the shard {count} times; keys must be unique, and end at the first dot"
            )
        if extension in (".json", ".txt"):
            if member.size > MAX_JSON_BYTES:
                raise ValueError(f"{member.size} bytes, the limit is {MAX_JSON_BYTES}")
            text = member.read(file).decode("utf-8-sig")
            if extension == ".txt":
                sample.caption = text
                return

            metadata = json.loads(text)
            if isinstance(metadata, dict):
                sample.metadata = without_credentials(check_record(metadata))
        elif is_video and sample.media.get("kind") == "video":
            raise ValueError("a second video of its key")
        # An image may be a video's thumbnail.
        elif is_video or (extension in IMAGE_EXTENSIONS and not sample.media):
            head = b""
            if extension in MAYBE_ANIMATED:
                file.seek(member.offset)
                head = file.read(min(member.size, HEAD_BYTES))
            kind = media_kind(PurePosixPath(member.name), head)
            sample.media = {"kind": kind, "member": vars(member)}
    except (ValueError, RecursionError) as error:
        sample.problem = f"{member.name}: {error}"


def missing_downloads(shard: Location, keys: Collection[str]) -> Iterator[Reject]:
    """Yield the downloads of a shard that failed, and those that succeeded and that it lacks, from the
    table beside it."""
    name = PurePosixPath(str(shard)).stem
    table = join(parent(shard), f"{name}.parquet")
    if not exists(table):
        return

    for _, record in Table(table).records:
        assert isinstance(record, dict)  # in Parquet, every record is one
        key = str(record.get("key"))
        if key in keys:
            continue

        otherwise = f"{name}.parquet lists it, and {name}.tar lacks it"
        reject = not_fetched(key, without_credentials(record), otherwise)
        if is_fetched(record):
            # It was fetched once: asking the server again would not repair the shard.
            reject = reject.model_copy(update={"reason": "unreadable"})
        yield reject
