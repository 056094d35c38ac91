"""Reads the headers of tars strictly: what is not a whole, single archive is an error, never a short list of members.

Python's `tarfile` takes a bad header after the first, and a hole of zeros, for the end of the archive.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from os import SEEK_END
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MAX_END_BYTES = 2 * BLOCK + tarfile.RECORDSIZE - BLOCK  # two blocks of zeros, and the rest of a record
MAX_HEADER_BYTES = 1 << 20  # of the long name of a member, or its extended header
CHUNK_BYTES = 1 << 22  # of a member that are in memory
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
NO_END = "it ends without two blocks of zeros"
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class DamagedTar(ValueError):
    """A tar that is cut, changed or not one archive. The message names the byte and the reason."""

    def __init__(self, offset: int, reason: str):
        super().__init__(f"damaged at byte {offset}: {reason}")


@dataclass(frozen=True)
class TarMember:
    """A member of a tar: its name, the offset and size of its data in bytes, and what it is."""

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool

    def read(self, file: BinaryIO) -> bytes:
        """Its data, from the open tar. Raises DamagedTar if the tar has become shorter."""
        return b"".join(self.chunks(file))

    def crc32(self, file: BinaryIO) -> int:
        """The CRC-32 of its data, which need not fit into memory. Raises as `read`."""
        return reduce(lambda value, data: zlib.crc32(data, value), self.chunks(file), 0)

    def chunks(self, file: BinaryIO) -> Iterator[bytes]:
        file.seek(self.offset)
        for start in range(0, self.size, CHUNK_BYTES):
            data = file.read(size := min(CHUNK_BYTES, self.size - start))
            if len(data) != size:
                raise DamagedTar(self.offset + start, f"the file ends inside {self.name!r}")
            yield data


def tar_members(file: BinaryIO) -> Iterator[TarMember]:
    """Yields the members of a tar whose data is inside the file.

    Raises DamagedTar at a header whose checksum does not hold, at a member that the end of the file cuts, and unless
    the archive ends as it should: with two blocks of zeros, and at most the rest of a record of zeros after them.
    """
    end, at = file.seek(0, SEEK_END), 0
    extended: dict[str, str] = {}  # of the next member: its name and size, if they do not fit into its header
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if block == bytes(BLOCK):
            return check_end(file, at, end)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except (tarfile.HeaderError, ValueError) as error:
            reason = f"not a header ({error})" if at == 0 or len(block) == BLOCK else NO_END
            raise DamagedTar(at, reason) from None
        is_extra = header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *LONG_NAMES)
        size = header.size if is_extra else _number(extended.get("size", header.size), at)
        size = 0 if header.type in WITHOUT_DATA else size
        data = at + BLOCK
        at_next = data + -(-size // BLOCK) * BLOCK
        if not 0 <= size <= end - data or (is_extra and size > MAX_HEADER_BYTES):
            raise DamagedTar(at, f"{header.name!r} of {size} bytes, of a file of {end}")
        if is_extra:
            content = file.read(size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = content.rstrip(b"\0").decode("utf-8", "replace")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended |= _extended_header(content, data)
        else:
            name = extended.get("path", header.name).rstrip("/")
            sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended)
            yield TarMember(name, data, size, header.isreg() and not sparse, header.isdir())
            extended = {}
        at = at_next


def check_end(file: BinaryIO, at: int, end: int) -> None:
    """Raises DamagedTar unless only the zeros that end an archive follow."""
    if end - at < 2 * BLOCK:
        raise DamagedTar(at, NO_END)
    file.seek(at)
    if end - at > MAX_END_BYTES or file.read(end - at).strip(b"\0"):
        raise DamagedTar(at, f"a hole of zeros, or the end of a first archive: {end - at} bytes follow")


def _extended_header(content: bytes, at: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header."""
    found, start = dict[str, str](), 0
    while content[start:].strip(b"\0"):
        length, _, _ = content[start : start + 20].partition(b" ")
        record = content[start : start + int(length)] if length.isdigit() and int(length) else b""
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedTar(at + start, "not an extended header")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
        start += len(record)
    return found


def _number(text: str | int, at: int) -> int:
    try:
        return int(text)
    except ValueError:  # not a number, or one of thousands of digits
        raise DamagedTar(at, "its size is not a number") from None
