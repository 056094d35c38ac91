"""Detects changed files without reading them, from their size, ETag, digest or modification time."""

import errno
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from alpro.shards.storage import MAX_CONCURRENT_REQUESTS, Location, call_store

# Keys that different stores use for a file's version, the most reliable first.
VERSION_KEYS = ["etag", "contentmd5", "md5hash", "md5", "sha256", "checksum", "digest", "crc32c", "blobid"]
VERSION_KEYS += ["generation", "lastmodified", "mtime", "modified", "updated", "created"]


def file_identity(location: Location) -> str:
    """The size of a file and its ETag, digest or modification time, without reading it.

    For a local file, size and time. Raises FileNotFoundError, and OSError if it is not a file.
    """
    info = call_store(location, lambda system, name: system.info(name))
    if info.get("type", "file") != "file":
        raise OSError(errno.EISDIR, "not a file", str(location))
    values = {re.sub("[^a-z0-9]", "", key.lower()): value for key, value in info.items()}
    version = next(((key, values[key]) for key in VERSION_KEYS if values.get(key)), ("", ""))
    return f"{info.get('size')} {version[0]} {version[1]}".rstrip()


def identities(locations: Iterable[Location]) -> Iterator[str]:
    """The identity of each location, in order, with concurrent requests; "missing" if there is no readable file, and
    "not fetched" if its store does not respond."""

    def identity_or_reason(location: Location) -> str:
        try:
            return file_identity(location)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "missing" if isinstance(location, Path) else "not fetched"

    remaining = iter(locations)
    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads:
        while batch := list(islice(remaining, 64 * MAX_CONCURRENT_REQUESTS)):
            yield from threads.map(identity_or_reason, batch)
