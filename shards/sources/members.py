"""Files inside uncompressed tars, addressed without unpacking: `member://OFFSET+SIZE/NAME::SHARD`.

Only readers of shards create these locations. A row of a manifest cannot name one: it is not a network protocol.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from alpro.shards.storage import Location, TooLarge, is_url, read_range

MEMBER = re.compile(r"member://(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>[^:]*)::(?P<shard>.+)", re.DOTALL)
CHUNK_BYTES = 1 << 22  # of a member that are copied at a time


@dataclass(frozen=True)
class Member:
    """A member of a tar: its name, and the position of its bytes."""

    shard: Location
    name: str
    offset: int
    size: int

    @property
    def location(self) -> str:
        return f"member://{self.offset}+{self.size}/{quote(self.name)}::{self.shard}"


def member_of(location: Location) -> Member | None:
    """The member that a location addresses; None for any other location."""
    match = MEMBER.fullmatch(location) if isinstance(location, str) else None
    if match is None:
        return None
    shard = match["shard"] if is_url(match["shard"]) else Path(match["shard"])
    return Member(shard, unquote(match["name"]), int(match["offset"]), int(match["size"]))


@contextmanager
def unpacked(member: Member, max_bytes: int, folder: Path) -> Iterator[Path]:
    """Yields a temporary copy of a member in `folder`, with its extension.

    Raises TooLarge if it exceeds `max_bytes`, FileNotFoundError if there is no shard, EOFError if the shard is shorter.
    """
    if member.size > max_bytes:
        raise TooLarge(f"{member.size} bytes")
    extension = PurePosixPath(member.name).suffix.lower()
    with tempfile.NamedTemporaryFile(prefix=".fetched.", suffix=extension, dir=folder) as copy:
        for data in chunks(member):
            copy.write(data)
        copy.flush()
        yield Path(copy.name)


def chunks(member: Member) -> Iterator[bytes]:
    """The bytes of a member, in parts. Raises EOFError if the shard ends before the member does."""
    end = member.offset + member.size
    for at in range(member.offset, end, CHUNK_BYTES):
        size = min(CHUNK_BYTES, end - at)
        if isinstance(member.shard, Path):
            with open(member.shard, "rb") as file:
                data = os.pread(file.fileno(), size, at)
        else:
            data = read_range(member.shard, at, size)
        if len(data) != size:
            raise EOFError(f"{member.shard} ends inside {member.name}")
        yield data


def local_shard(location: Location) -> Path | None:
    """The shard of a member on this machine; None for any other location."""
    member = member_of(location)
    return member.shard if member and isinstance(member.shard, Path) else None


def is_local(location: Location) -> bool:
    """Whether the bytes of a location are on this machine: a file, or a member of a local shard."""
    return isinstance(location, Path) or local_shard(location) is not None
