"""The files of an artifact: their sizes and SHA-256, recorded when it is built, and compared with
the files later."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import (
    RECORD,
    RECORD_DIGEST,
    Record,
    digest_record,
    find_damaged,
    read_record,
)
from alpro.files import checksum
from alpro.log import progress

# Files that only a resumed run reads. A finished artifact does not have them.
UNFINISHED = ("checkpoints", "parts")

# Size in bytes and sha256, by the file's name relative to the folder.
Contents = dict[str, dict[str, Any]]


def describe_contents(folder: Path, known: Mapping[str, str]) -> Contents:
    """Return sizes and SHA-256 of an artifact's files, without its record and unfinished work.

    Args:
        known: SHA-256 of files that need not be read again, by name.
    """
    contents = {}
    # Sorted: records of equal folders are equal.
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in (RECORD, *UNFINISHED):
            name = "/".join(parts)
            sha256 = known.get(name) or checksum(path)
            contents[name] = {"size": path.stat().st_size, "sha256": sha256}
    return contents


def verify(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of artifacts that are not as their records say: damaged or missing; and the
    records that cannot be read, or were changed."""
    with progress("verifying", len(folders), "artifacts") as advance:
        for folder in folders:
            record = read_record(folder) or Record()
            is_own = record.values.get(RECORD_DIGEST) == digest_record(record.values)
            if not is_own or folder.name != record.fingerprint[:16]:
                yield folder / RECORD

            files = record.contents.items()
            yield from find_damaged(
                {folder / name: one["sha256"] for name, one in files}
            )
            advance(1)
