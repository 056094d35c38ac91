"""File access by path or fsspec URL. Only this module handles URLs.

A location is a local Path or, as a str, a URL that fsspec supports (`s3://bucket/a.tar`, `https://host/a.tar`), chained
or not (`filecache::s3://bucket/a.tar` keeps a local copy). `file://` is a path. Keys and endpoints come from the
environment of the store's library or fsspec, never from here. Nothing runs a shell: fsspec has no `pipe:` protocol.

All store errors are raised as OSError, and as FileNotFoundError if the file does not exist. An unknown protocol or a
missing package raises InputError.
"""

import errno
import io
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, unquote

import fsspec
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.shards.schema import Member

Location = Path | str
Answer = TypeVar("Answer")

URL = re.compile(r"(?:[a-z][\w+.-]*::)*(?P<protocol>[a-z][\w+.-]*)://", re.IGNORECASE)
# Network stores, which rows may refer to. All other protocols can lead to local files.
NETWORK_PROTOCOLS = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf"}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the local disk
MAX_CONCURRENT_REQUESTS = 16
CHUNK_BYTES = 1 << 22  # of a member of a tar that are copied at a time
RETRY_DELAYS = (0.2, 1.0, 5.0)  # seconds before a failed request is retried


class TransferLimitExceeded(OSError):
    """A transfer exceeds a limit; it is not retried."""


class TooLarge(TransferLimitExceeded):
    """The file exceeds the size limit."""


class TooSlow(TransferLimitExceeded):
    """The transfer exceeds the time limit."""


def is_url(text: object) -> bool:
    """Whether a value is a URL string, chained or not.

    >>> [is_url(text) for text in ("s3://b/k", "filecache::s3://b/k", "file:///a", "a::b.mp4", "/a", "a/b")]
    [True, True, True, False, False, False]
    """
    return isinstance(text, str) and URL.match(text) is not None


def located(text: Location) -> Location:
    """Converts user input to a location: a URL stays a str, anything else, including file://, becomes a Path."""
    if isinstance(text, Path) or not is_url(text):
        return Path(text)
    protocol, _, path = text.partition("://")
    return Path(path) if protocol.lower() in ("file", "local") else text


def absolute(text: Location, base: Path | None = None) -> Location:
    """Makes a location absolute: a relative path is resolved in `base` (default: current folder), `~` is expanded."""
    location = located(text)
    if isinstance(location, str):
        return location
    return ((base or Path()) / os.path.expanduser(location)).resolve()  # noqa: PTH111 (Path.expanduser raises for an unknown ~user)


def join(folder: Location, name: str) -> Location:
    """The location of a file in a folder. A name that is a URL or an absolute path is returned as it is.

    In a chain, the name is appended to the first link that has a path: `zip://a::s3://b/c.zip` and d is `zip://a/d::s3://b/c.zip`.
    """
    if is_url(name):
        return located(name)
    if isinstance(folder, Path) or name.startswith("/"):
        return Path(folder, name)
    if "::" in name:
        raise InputError(f"{folder}: {name!r} contains ::, which has a meaning in URLs; rename it")
    head, path, rest = _split(folder)
    return head + posixpath.join(path, _quote(head, name)) + rest


def parent(location: Location) -> Location:
    if isinstance(location, Path):
        return location.parent
    head, path, rest = _split(location)
    return head + posixpath.dirname(path) + rest


def resolve(root: Location, path: str) -> Location:
    """Resolves the path of a row in a manifest in the folder `root`. Raises InputError if the path is not allowed.

    A row may refer to files in the folder of its manifest, by a relative path, an absolute path or a URL, and to files
    in network stores (NETWORK_PROTOCOLS). An untrusted manifest therefore cannot open other local files.
    """
    refuse_credentials("path", path)
    if not is_url(path):
        return _below_path(root, path) if isinstance(root, Path) else _below_url(root, path)
    location = located(path)
    if isinstance(location, Path):
        return _below_path(root, str(location)) if isinstance(root, Path) else _refuse(root, path)
    outside = ".." in unquote(location).split("/")
    if isinstance(root, str) and not outside and location.startswith(root.rstrip("/") + "/"):
        return location
    if "::" in location or location.partition("://")[0].lower() not in NETWORK_PROTOCOLS:
        _refuse(root, path)
    return location


def _below_path(root: Path, name: str) -> Path:
    path, folder = os.path.normpath(os.path.join(root, name)), os.path.normpath(root)  # noqa: PTH118 (much faster)
    return Path(path) if path == folder or path.startswith(folder.rstrip("/") + "/") else _refuse(root, name)


def _below_url(root: str, path: str) -> Location:
    name = posixpath.normpath(path)
    return _refuse(root, path) if name.startswith(("/", "..")) else join(root, name)


def _refuse(root: Location, path: str) -> Any:
    raise InputError(f"path {path!r} is outside the data folder {root}; move the file into it")


def _split(url: str) -> tuple[str, str, str]:
    """Splits a URL into the part before its path, the path, and the rest of the chain."""
    match = URL.match(url)
    assert match, url
    path, link, rest = url[match.end() :].partition("::")
    return url[: match.end()], path, link + rest


def _quote(head: str, name: str) -> str:
    """Quotes a file name for a URL over HTTP, where # and ? have a meaning."""
    return quote(name) if head.lower().endswith(("http://", "https://")) else name


def suffix(location: Location) -> str:
    """The extension of a file in lower case, such as `.mp4`; the query of a URL is ignored.

    >>> [suffix(text) for text in ("https://host/a.MP4?key=1.2", "zip://a.webm::s3://b/c.zip", "s3://b/a")]
    ['.mp4', '.webm', '']
    """
    if isinstance(location, Path):
        return location.suffix.lower()
    head, path, _ = _split(location)
    if head.lower().endswith(("http://", "https://")):
        path = unquote(re.split("[?#]", path)[0])
    extension = PurePosixPath(path).suffix.lower()
    return extension if re.fullmatch(r"\.[a-z0-9]{1,10}", extension) else ""


def filesystem(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a location and the file's name in it. Each process and thread creates its own (20 µs):
    connections do not survive a fork."""
    if isinstance(location, Path):
        return LocalFileSystem(), str(location.absolute())
    try:
        return url_to_fs(location)
    except ImportError as error:  # fsspec names the package
        raise InputError(f"{location}: {_line(error)}") from error
    except ValueError as error:
        raise InputError(f"{location}: {_line(error)}; see fsspec's documentation") from error


def _keep_connections() -> None:
    """Before a fork, by which loading processes start: the child keeps the file systems that it inherits.

    fsspec would drop them there, which closes their connections, and also removes them from the selector of the event
    loop, which both processes share: the parent would wait for its next answer without end.
    """
    _kept.clear()
    classes = [fsspec.AbstractFileSystem]
    for cls in classes:
        classes += cls.__subclasses__()
        _kept.extend(vars(cls).get("_cache", {}).values())


_kept: list[fsspec.AbstractFileSystem] = []
os.register_at_fork(before=_keep_connections)


@contextmanager
def store_errors(location: Location) -> Iterator[None]:
    """Converts all exceptions of a store's library to an OSError with a one-line message."""
    try:
        yield
    except (InputError, TransferLimitExceeded):
        raise
    except Exception as error:
        if isinstance(location, Path) or getattr(error, "errno", None) in DISK_FULL:
            raise
        cause = error.__cause__  # fsspec raises FileNotFoundError for a server that does not respond
        if (
            isinstance(error, FileNotFoundError)
            and not isinstance(cause, OSError)
            and _status(cause) in (None, 404, 410)
        ):
            raise FileNotFoundError(errno.ENOENT, "No such file", location) from error
        kind = PermissionError if isinstance(error, PermissionError) or _status(error) in (401, 403) else OSError
        message = _line(cause if isinstance(error, FileNotFoundError) and cause else error)
        raise kind(f"{location}: {message}") from error


def _status(error: BaseException | None) -> int | None:
    return getattr(error, "status", None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Remote(io.RawIOBase):
    """An open file of a store, with its errors converted to OSError."""

    def __init__(self, file: Any, location: str):
        self.file, self.location = file, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def readinto(self, buffer: Any) -> int:
        start, size = self.file.tell(), len(buffer)
        if getattr(self.file, "cache", None) is None:  # a stream, of a server without ranges, cannot go back
            with store_errors(self.location):
                data = self.file.read(size)
        else:
            data = call_store(self.location, lambda *_: (self.file.seek(start), self.file.read(size))[1])
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with store_errors(self.location):
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        super().close()


def open_binary(location: Location, **options: Any) -> BinaryIO:
    """Opens a file for reading. A URL is fetched block by block (`options` as in fsspec's open)."""
    if isinstance(location, Path):
        return open(location, "rb")
    file = call_store(location, lambda system, name: system.open(name, "rb", **options))
    return cast(BinaryIO, _Remote(file, location))


def call_store(location: Location, function: Callable[[fsspec.AbstractFileSystem, str], Answer]) -> Answer:
    """Calls `function` with the file system and the file's name, and retries failed requests a few times: one lost
    request among millions does not mean a corrupt or missing file."""
    for pause in (*RETRY_DELAYS, None):
        try:
            with store_errors(location):
                return function(*filesystem(location))
        except (FileNotFoundError, PermissionError, TransferLimitExceeded):
            raise
        except OSError as error:
            if pause is None or isinstance(location, Path) or error.errno in DISK_FULL:
                raise
            time.sleep(pause)
    raise AssertionError


def read_bytes(location: Location) -> bytes:
    return call_store(location, lambda system, name: system.cat_file(name))


def read_range(location: Location, offset: int, size: int) -> bytes:
    """Reads `size` bytes of a file at `offset` in one request; fewer only if the file ends earlier."""
    data = call_store(location, lambda system, name: system.cat_file(name, start=offset, end=offset + size))
    if len(data) > size:
        raise OSError(f"{location}: the server does not support range requests; put filecache:: before the URL")
    return data


def exists(location: Location) -> bool:
    """Whether a file exists. Raises OSError if the store does not respond."""

    def check(system: fsspec.AbstractFileSystem, name: str) -> None:
        system.invalidate_cache()  # another machine may write files
        system.info(name)

    try:
        call_store(location, check)
    except FileNotFoundError:
        return False
    return True


def listing(folder: Location, extension: str) -> list[Location]:
    """The files of a folder with the extension, in order. Raises FileNotFoundError if there is no such folder."""
    return [join(folder, name) for name in _names(folder) if name.endswith(extension)]


def _names(folder: Location) -> list[str]:
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    entries = call_store(folder, lambda system, name: system.ls(name, detail=True, refresh=True))
    paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "file"]
    # Stores return names in different forms (over HTTP, URLs); the part after the last slash is the file name.
    return sorted(unquote(p.rpartition("/")[2]) if "://" in p else p.rpartition("/")[2] for p in paths)


@contextmanager
def local_copy(
    location: Location,
    max_bytes: int | None = None,
    folder: Path | None = None,
    seconds: float | None = None,
    member: Member | None = None,
) -> Iterator[Path]:
    """Yields a local path of the file: the path itself, or a temporary copy of a URL, or of a member of a tar.

    The copy has the file's extension and is in `folder` (default: the system's temporary folder). Raises TooLarge if
    the file exceeds `max_bytes`, without fetching more, OSError if the store fails or after `seconds`, and EOFError if
    the tar ends inside the member.
    """
    if isinstance(location, Path) and not member:
        yield location
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    handle, name = tempfile.mkstemp(suffix(Path(member.name) if member else location), ".fetched.", folder)
    os.close(handle)
    copy = Path(name)
    try:
        if member:
            _TransferLimit(max_bytes).set_size(member.size)
            _unpack(member, location, copy)
            yield copy
            return
        call_store(
            location,
            lambda system, name: system.get_file(name, str(copy), callback=_TransferLimit(max_bytes, deadline)),
        )
        _TransferLimit(max_bytes).set_size(copy.stat().st_size)  # not every store reports progress
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _unpack(member: Member, tar: Location, copy: Path) -> None:
    with open_binary(tar) if isinstance(tar, Path) else nullcontext() as file, open(copy, "wb") as out:
        for start in range(0, member.size, CHUNK_BYTES):
            size = min(CHUNK_BYTES, member.size - start)
            if file:
                file.seek(member.offset + start)
            data = file.read(size) if file else read_range(tar, member.offset + start, size)
            if len(data) != size:
                raise EOFError(f"{tar} ends inside {member.name}")
            out.write(data)


class _TransferLimit(Callback):
    """Stops a transfer that exceeds the size limit or the deadline."""

    def __init__(self, max_bytes: int | None, deadline: float | None = None):
        super().__init__()
        self.max_bytes, self.deadline = max_bytes, deadline

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self._check(size)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._check(self.value)

    def _check(self, size: int | None) -> None:
        if self.max_bytes is not None and size is not None and size > self.max_bytes:
            raise TooLarge(f"larger than {self.max_bytes} bytes")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TooSlow("fetching takes too long")
