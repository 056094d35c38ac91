"""File access by path or fsspec URL. Only this module handles URLs.

A location is a local Path or, as a str, a URL that fsspec supports (`s3://bucket/a.tar`,
`https://host/a.tar`), also after `filecache::`, which keeps a local copy. `file://` is a path. Keys
and endpoints come from the environment of the store's library or fsspec, never from here. Nothing
runs a shell: fsspec has no `pipe:` protocol.

All store errors are raised as OSError, and as FileNotFoundError if the file does not exist. An
unknown protocol or a missing package raises InputError.
"""

import errno
import math
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, TypeVar
from urllib.parse import quote, unquote

import fsspec
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import DISK_FULL, expand_home, file_state
from alpro.shards.credentials import redact, refuse_credentials
from alpro.shards.schema import HTTP, Member, without_query
from alpro.threads import map_ahead

Location = Path | str
Answer = TypeVar("Answer")

CACHE = "filecache::"  # before a URL: fsspec keeps local copies of its files
URL = re.compile(r"(?:[a-z][\w+.-]*::)*[a-z][\w+.-]*://", re.IGNORECASE)
LOCAL_PROTOCOLS = ("file", "local")
# Network stores, which rows may refer to. All other protocols can lead to local files.
NETWORK_PROTOCOLS = {
    "http",
    "https",
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "oss",
    "hf",
}
MAX_CONCURRENT_REQUESTS = 16
CHUNK_BYTES = 1 << 22  # bytes of a tar member that are copied at a time
RETRY_DELAYS = (0.2, 1.0, 5.0)  # seconds before a failed request is retried
# Keys that different stores use for a file's version, the most reliable first.
VERSION_KEYS = [
    "etag",
    "contentmd5",
    "md5hash",
    "md5",
    "sha256",
    "checksum",
    "digest",
    "crc32c",
    "blobid",
    "generation",
    "lastmodified",
    "mtime",
    "modified",
    "updated",
    "created",
]


class TooLarge(OSError):
    """Raised if a file exceeds the size limit. It is not requested again."""


# Names


def is_url(text: object) -> TypeGuard[str]:
    """Return whether a value is a URL string, chained or not.

    >>> [is_url(text) for text in ("s3://b/k", "filecache::s3://b/k", "file:///a", "a::b.mp4", "/a", "a/b")]
    [True, True, True, False, False, False]
    """
    return isinstance(text, str) and URL.match(text) is not None


def located(text: Location) -> Location:
    """Convert user input to a location: a URL stays a str, anything else, including file://,
    becomes a Path. Raises InputError for a chain of URLs other than `filecache::`."""
    if not is_url(text):
        return Path(text)
    if "::" in text.removeprefix(CACHE):
        raise InputError(f"{redact(text)}: of chained URLs, only {CACHE} is supported")

    protocol, _, path = text.partition("://")
    return Path(path) if protocol.lower() in LOCAL_PROTOCOLS else text


def absolute(text: Location, base: Path | None = None) -> Location:
    """Make a location absolute: a relative path is resolved in `base` (default: current folder),
    `~` is expanded.

    Raises:
        InputError: For a link to itself, for a chain, and for a URL with credentials.
    """
    refuse_credentials("address", text)
    location = located(text)
    if isinstance(location, str):
        return location
    path = (base or Path()) / expand_home(location)
    try:
        return path.resolve()
    except RuntimeError as error:
        raise InputError(f"{path}: a link to itself") from error


def join(folder: Location, name: str) -> Location:
    """Return the location of a file in a folder. A name that is a URL or an absolute path is
    returned as it is."""
    if is_url(name):
        return located(name)
    if isinstance(folder, Path) or name.startswith("/"):
        return Path(folder, name)
    if "::" in name:
        raise InputError(
            f"{folder}: {name!r} contains ::, which has a meaning in URLs; rename it"
        )

    # A file name may have characters that mean something in a URL.
    if HTTP.match(folder):
        name = quote(name)
    return f"{folder.rstrip('/')}/{name}"


def parent(location: Location) -> Location:
    if isinstance(location, Path):
        return location.parent
    return location.rpartition("/")[0]


def suffix(location: Location) -> str:
    """Return the extension of a file in lower case, such as `.mp4`; the query of a URL is ignored.

    >>> [suffix(text) for text in ("https://host/a.MP4?key=1.2", "filecache::s3://b/a.webm", "s3://b/a")]
    ['.mp4', '.webm', '']
    >>> [suffix(text) for text in ("https://host/a%2Emp4#t=1", "s3://b/a.x y/../z", Path("A.JPG"))]
    ['.mp4', '', '.jpg']
    """
    extension = PurePosixPath(without_query(str(location))).suffix.lower()
    return extension if re.fullmatch(r"\.[a-z0-9]{1,10}", extension) else ""


def resolve(root: Location, path: str) -> Location:
    """Resolve the path of a row in a manifest in the folder `root`.

    A row may refer to files in the folder of its manifest, by a relative path, an absolute path or
    a URL, and to files in network stores (NETWORK_PROTOCOLS). An untrusted manifest therefore
    cannot open other local files.

    Raises:
        InputError: If it is a URL with credentials.
        ValueError: If it is not allowed.
    """
    refuse_credentials("path", path)
    protocol, _, local_path = path.partition("://")
    if local_path and protocol.lower() in LOCAL_PROTOCOLS:
        path = local_path
    resolved: Location | None = None
    if is_url(path):
        resolved = path if _is_allowed(root, path) else None
    elif isinstance(root, str):
        # Normalized, so that the first part shows whether the path leads out.
        name = posixpath.normpath(path)
        if not name.startswith(("/", "..")) and "::" not in name:
            resolved = join(root, name)
    else:
        whole = os.path.normpath(os.path.join(root, path))  # noqa: PTH118 - much faster than Path
        folder = os.path.normpath(root)
        if whole == folder or whole.startswith(folder.rstrip("/") + "/"):
            resolved = Path(whole)
    if resolved is None:
        raise ValueError(
            f"{path!r} is outside the data folder {root}; put the table above its files, or set "
            "`root` of the corpus to the folder that corresponds to it"
        )
    return resolved


def _is_allowed(root: Location, url: str) -> bool:
    """Return whether a URL is below `root`, or one of a network store without a cache."""
    prefix = f"{str(root).rstrip('/')}/"
    is_below = isinstance(root, str) and url.startswith(prefix)
    # Unquoted: `..` may be written %2e%2e.
    if is_below and ".." not in unquote(url).split("/"):
        return True
    return url.partition("://")[0].lower() in NETWORK_PROTOCOLS


# Requests


def filesystem(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a location and the file's name in it."""
    if isinstance(location, Path):  # a path may have `::` in it
        return LocalFileSystem(), str(location.absolute())
    try:
        system, name = url_to_fs(location)
    except (ImportError, ValueError) as error:
        # A missing package, or an unknown protocol.
        raise InputError(f"{location}: {_line(error)}") from error
    _kept.add(system)
    return system, name


# A loading process is a fork. There, fsspec drops the file systems of its parent, and what is no
# longer referenced closes its connections in the event loop that both processes share: the parent
# would wait for its next answer forever.
_kept: set[fsspec.AbstractFileSystem] = set()


def call_store(
    location: Location, function: Callable[[fsspec.AbstractFileSystem, str], Answer]
) -> Answer:
    """Call `function` with the file system and the file's name.

    Failed requests are retried a few times: one lost request among millions does not mean a corrupt
    or missing file. Raises OSError with a one-line message.
    """
    for pause in (*RETRY_DELAYS, None):
        try:
            return function(*filesystem(location))
        except (InputError, TooLarge):
            raise
        except Exception as error:
            # Nothing is gained by another request: the fault is on this machine.
            if isinstance(location, Path) or getattr(error, "errno", None) in DISK_FULL:
                raise

            cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
            status = getattr(cause, "status", None)
            # fsspec also raises FileNotFoundError for a server that does not respond: then the
            # cause is an OSError.
            is_not_found = cause is not error and not isinstance(cause, OSError)
            if is_not_found and status in (None, 404, 410):
                raise FileNotFoundError(
                    errno.ENOENT, "No such file", location
                ) from error
            is_forbidden = isinstance(error, PermissionError) or status in (401, 403)
            if pause is None or is_forbidden:
                raise OSError(f"{location}: {_line(cause or error)}") from error
            time.sleep(pause)
    raise AssertionError


def _line(error: BaseException) -> str:
    """Return the message of a store, in a line, without the credentials that it may repeat. Of an
    answer over HTTP, only the status: its reason is a text of the server."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}"
    return redact(one_line(error, max_length=MAX_MESSAGE))


def read_range(location: Location, offset: int, size: int) -> bytes:
    """Read `size` bytes of a file at `offset` in one request; fewer only if the file ends
    earlier."""
    if isinstance(location, Path):
        with open(location, "rb") as file:
            file.seek(offset)
            return file.read(size)

    data: Any = call_store(  # a str only if a text is asked for
        location,
        lambda system, name: system.cat_file(name, start=offset, end=offset + size),
    )
    if len(data) > size:
        raise OSError(
            f"{location}: the server does not support range requests; put {CACHE} before the URL"
        )
    return data


def exists(location: Location) -> bool:
    """Return whether a file exists. Raises OSError if the store does not respond."""
    if isinstance(location, Path):
        return location.exists()

    def ask(system: fsspec.AbstractFileSystem, name: str) -> None:
        system.invalidate_cache()  # another machine may write files
        system.info(name)

    try:
        call_store(location, ask)
    except FileNotFoundError:
        return False
    return True


def listing(folder: Location, ending: str) -> list[Location]:
    """List the files of a folder whose names have the ending, in order. Raises FileNotFoundError if
    there is no such folder."""
    if isinstance(folder, Path):
        files = (path for path in folder.iterdir() if path.name.endswith(ending))
        return sorted(path for path in files if path.is_file())

    entries = call_store(
        folder, lambda system, name: system.ls(name, detail=True, refresh=True)
    )
    names = []
    for entry in entries:
        # Stores return names in different forms (over HTTP, URLs); the part after the last slash is
        # the file name.
        name = entry["name"].rpartition("/")[2]
        if "://" in entry["name"]:
            name = unquote(name)
        if entry["type"] == "file" and name.endswith(ending):
            names.append(name)
    return [join(folder, name) for name in sorted(names)]


def identities(locations: Iterable[Location]) -> Iterator[str]:
    """Return what changes with each file, in order, without reading it: its size and its ETag, digest
    or modification time.

    "missing" if there is no readable file, and "not fetched" if its store does not respond.
    Requests are concurrent.
    """
    return map_ahead(_identity, locations, MAX_CONCURRENT_REQUESTS)


def _identity(location: Location) -> str:
    if isinstance(location, Path):
        return " ".join(map(str, file_state(location) or ["missing"]))

    try:
        info = call_store(location, lambda system, name: system.info(name))
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "not fetched"
    if info.get("type", "file") != "file":
        return "missing"

    # Stores spell the same key in several ways, such as ETag and etag.
    values = {
        re.sub("[^a-z0-9]", "", key.lower()): value for key, value in info.items()
    }
    versions = (f"{key} {values[key]}" for key in VERSION_KEYS if values.get(key))
    return f"{info.get('size')} {next(versions, '')}"


# Local copies


@contextmanager
def local_copy(
    location: Location,
    max_bytes: float = math.inf,
    folder: Path | None = None,
    member: Member | None = None,
) -> Iterator[Path]:
    """Yield a local path of the file: the path itself, or a temporary copy of a URL, or of a
    member of a tar.

    The copy has the file's extension and is in `folder` (default: the system's temporary folder).

    Raises:
        TooLarge: If the file exceeds `max_bytes`. No more is fetched.
        OSError: If the store fails.
        EOFError: If the tar ends inside the member.
    """
    if isinstance(location, Path) and not member:
        yield location
        return

    def check_size(size: float | None, fetched: int = 0) -> None:
        if max(size or 0, fetched) > max_bytes:
            raise TooLarge(f"larger than {max_bytes} bytes")

    def fetch(system: fsspec.AbstractFileSystem, name: str) -> None:
        callback = Callback(hooks={"limit": check_size})
        # fsspec annotates the type of its default, a callback that does nothing.
        system.get_file(name, str(copy), callback=callback)  # pyright: ignore[reportArgumentType]

    extension = suffix(Path(member.name) if member else location)
    with tempfile.TemporaryDirectory(prefix=".fetched.", dir=folder) as place:
        copy = Path(place, f"copy{extension}")
        if member:
            check_size(member.size)
            _unpack(member, location, copy)
        else:
            call_store(location, fetch)
            check_size(copy.stat().st_size)  # not every store reports progress
        yield copy


def _unpack(member: Member, tar: Location, copy: Path) -> None:
    with open(copy, "wb") as out:
        for start in range(0, member.size, CHUNK_BYTES):
            size = min(CHUNK_BYTES, member.size - start)
            out.write(read_range(tar, member.offset + start, size))
    if copy.stat().st_size != member.size:
        raise EOFError(f"{tar} ends inside {member.name}")
