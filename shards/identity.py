"""What tells a file from a changed one: by what its store says of it, or by its bytes."""

import errno
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from alpro.credentials import without_credentials
from alpro.shards.storage import AT_ONCE, Location, ask

# What says that a file is the same, the surest first, as different stores call it.
MARKS = ["etag", "contentmd5", "md5hash", "md5", "sha256", "checksum", "digest", "crc32c", "blobid", "generation"]
MARKS += ["lastmodified", "mtime", "modified", "updated", "created"]


def identity(location: Location) -> str:
    """What tells a file from a changed one without reading it: its size and its ETag, digest or time of change.

    Of a file on this machine, size and time. Raises FileNotFoundError, and OSError where it is no file.
    """
    info = ask(location, lambda system, name: system.info(name))
    if info.get("type", "file") != "file":
        raise OSError(errno.EISDIR, "not a file", without_credentials(str(location)))
    marks = {re.sub("[^a-z0-9]", "", key.lower()): value for key, value in info.items()}
    mark = next(((key, marks[key]) for key in MARKS if marks.get(key)), ("", ""))
    return f"{info.get('size')} {mark[0]} {mark[1]}".rstrip()


def identities(locations: Iterable[Location]) -> Iterator[str]:
    """The identity of each, in order, many asked for at once; "missing" where there is no such file, or no file that
    may be read, and "not fetched" where its store does not say."""

    def one(location: Location) -> str:
        try:
            return identity(location)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "missing" if isinstance(location, Path) else "not fetched"

    waiting = iter(locations)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while some := list(islice(waiting, 64 * AT_ONCE)):
            yield from threads.map(one, some)
