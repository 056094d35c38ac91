"""Reads the headers of tars strictly: anything but one whole archive is an error, never a short
list of members.

Python's `tarfile` takes a bad header after the first, or a hole of zeros, for the end of the
archive.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_END
from pathlib import PurePosixPath
from typing import BinaryIO

from alpro.shards.file_type import HEAD_BYTES, find_placeholder

BLOCK = tarfile.BLOCKSIZE
GZIP = b"\x1f\x8b"  # the first bytes of a file that is compressed with gzip
MAX_NAME = 4096  # characters


class DamagedTar(ValueError):
    """Raised for a tar that is truncated, changed or not one archive.

    The message names the byte and the reason.
    """

    def __init__(self, offset: int, reason: str):
        super().__init__(f"damaged at byte {offset}: {reason}")


@dataclass(frozen=True)
class TarMember:
    """A member of a tar: its name, the offset and size of its data in bytes, and its type."""

    name: str
    offset: int
    size: int
    is_file: bool

    def read(self, file: BinaryIO) -> bytes:
        """Return the data from the open tar. Raises DamagedTar if the tar has become shorter."""
        file.seek(self.offset)
        data = file.read(self.size)
        if len(data) != self.size:
            raise DamagedTar(self.offset, f"the file ends inside {self.name!r}")
        return data


def tar_members(file: BinaryIO) -> Iterator[TarMember]:
    """Yield the members of a tar, which must end with two blocks of zeros.

    A third block of zeros is allowed, or as many as fill a record. More of them are a hole.

    Raises:
        DamagedTar: At a header with a wrong checksum, at a member that the end of the file cuts,
            and at a wrong end of the archive.
    """
    end = file.seek(0, SEEK_END)
    at = 0  # the end of the last member
    file.seek(0)
    try:
        # Uncompressed alone: readers need offsets. A name that is not UTF-8 is no damage.
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="replace"
        ) as tar:
            while member := tar.next():
                # A link or a folder has no data, whatever size it states.
                size = member.size if member.isreg() else 0
                is_inside = 0 <= size <= end - member.offset_data
                if not is_inside or len(member.name) > MAX_NAME:
                    raise DamagedTar(
                        at, f"{member.name[:80]!r} of {size} bytes, of a file of {end}"
                    )
                yield TarMember(
                    name=member.name,
                    offset=member.offset_data,
                    size=size,
                    # A sparse file has other bytes than its data.
                    is_file=member.isreg() and not member.issparse(),
                )
                at = tar.offset
    except DamagedTar:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        file.seek(0)
        head = file.read(HEAD_BYTES) if at == 0 else b""
        reason = str(find_placeholder(head) or error)
        if head.startswith(GZIP):
            reason = "it is compressed: gunzip it"
        raise DamagedTar(at, reason) from None

    # The first header that tarfile does not take must be the end of the archive.
    file.seek(at)
    limit = 3 * BLOCK
    if end % tarfile.RECORDSIZE == 0:
        limit = tarfile.RECORDSIZE + BLOCK
    has_length_of_end = 2 * BLOCK <= end - at <= limit
    if not has_length_of_end or file.read(limit).strip(b"\0"):
        raise DamagedTar(
            at, "a bad header, a hole of zeros, or an end without two blocks of zeros"
        )


# The members of each sample by key and extension. More than one of an extension are duplicates.
Samples = dict[str, dict[str, list[TarMember]]]


def samples_in(file: BinaryIO) -> tuple[Samples, DamagedTar | None]:
    """Group the members of a tar by sample, as WebDataset does, whatever their order in the tar.

    A key is the path up to the first dot of the file name. The rest, in lower case, is the
    extension. A name that begins with a dot has the key "".

    Returns:
        The members up to the damage, and the damage, or None for a whole tar.
    """
    samples: Samples = {}
    try:
        for member in tar_members(file):
            path = PurePosixPath(member.name)
            if not path.name:  # the folder itself, which `tar -c .` writes
                continue
            stem, _, extension = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else ""
            sample = samples.setdefault(key, {})
            sample.setdefault(extension.lower(), []).append(member)
    except DamagedTar as damage:
        return samples, damage
    return samples, None
