"""Files by path or by fsspec URL: the one place that knows URLs.

A location is a Path of this machine or, as a text, a URL of anything that fsspec reads (`s3://bucket/a.tar`,
`https://host/a.tar`), chained or not (`filecache::s3://bucket/a.tar` keeps a local copy). `file://` is a path. What a
store needs to know (keys, endpoints) comes from its own environment or fsspec's, never from here. Nothing here runs a
shell: `pipe:` is no protocol of fsspec.

Errors are OSErrors, FileNotFoundError where there is no such file, whatever the store's library raises; a protocol that
is unknown, or whose package is missing, is an InputError.
"""

import errno
import io
import os
import posixpath
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, unquote

import fsspec
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from alpro.credentials import has_credentials, without_credentials
from alpro.errors import InputError
from alpro.files import atomic_write

Location = Path | str
Answer = TypeVar("Answer")

URL = re.compile(r"(?:[a-z][\w+.-]*::)*(?P<protocol>[a-z][\w+.-]*)://", re.IGNORECASE)
# Stores on the network. A row may name a file of these; all other protocols can lead to files of this machine.
NETWORK = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of this machine's disk
AT_ONCE = 16  # requests under way
PAUSES = (0.2, 1.0, 5.0)  # seconds before a failed request is tried again


class GivenUp(OSError):
    """A file is not fetched because it costs more than it may; it is not tried again."""


class TooLarge(GivenUp):
    """A file has more bytes than may be fetched."""


class TooSlow(GivenUp):
    """A file takes longer than it may."""


def is_url(text: object) -> bool:
    """Whether a text is a URL, chained or not; a Path is none.

    >>> [is_url(text) for text in ("s3://b/k", "filecache::s3://b/k", "file:///a", "a::b.mp4", "/a", "a/b")]
    [True, True, True, False, False, False]
    """
    return isinstance(text, str) and URL.match(text) is not None


def located(given: Location) -> Location:
    """The location that a text of the user's means: a URL stays a text, anything else, and file://, is a Path."""
    if isinstance(given, Path) or not is_url(given):
        return Path(given)
    protocol, _, path = given.partition("://")
    return Path(path) if protocol.lower() in ("file", "local") else given


def absolute(given: Location, base: Path | None = None) -> Location:
    """A location that means the same from any folder: a relative path is one in `base` (default: the current folder),
    `~` is the home folder."""
    place = located(given)
    if isinstance(place, str):
        return place
    return ((base or Path()) / os.path.expanduser(place)).resolve()  # noqa: PTH111 (Path's fails for an unknown ~user)


def join(folder: Location, name: str) -> Location:
    """A file in a folder; a name that is itself a URL or an absolute path stands for itself.

    In a chain the folder is what has a path: `zip://a::s3://b/c.zip` and d is `zip://a/d::s3://b/c.zip`.
    """
    if is_url(name):
        return located(name)
    if isinstance(folder, Path) or name.startswith("/"):
        return Path(folder, name)
    if "::" in name:
        raise InputError(f"{folder}: {name!r} has a :: in it, which means something else in a URL; rename it")
    head, path, rest = _split(folder)
    return head + posixpath.join(path, _as_in(head, name)) + rest


def parent(location: Location) -> Location:
    """The folder that a file lies in."""
    if isinstance(location, Path):
        return location.parent
    head, path, rest = _split(location)
    return head + posixpath.dirname(path) + rest


def refuse_credentials(name: str, location: Location) -> None:
    """Raises InputError if a URL contains credentials; `name` is the setting that has it."""
    if isinstance(location, str) and has_credentials(location):
        raise InputError(
            f"{name}: this URL contains a user name, a password or a signature, which would be written to disk; "
            "provide it by the environment (docs/your_data.md, Credentials)"
        )


def resolve(root: Location, given: str) -> Location:
    """The file that a row of a manifest in the folder `root` names. Raises InputError where it may not.

    A row may name what lies in the folder of its manifest, by a relative path, an absolute one or a URL, and a file of
    a store on the network (NETWORK). So a manifest from a stranger opens no file of this machine but those beside it.
    """
    if not is_url(given):
        return _below_path(root, given) if isinstance(root, Path) else _below_url(root, given)
    place = located(given)
    if isinstance(place, Path):
        return _below_path(root, str(place)) if isinstance(root, Path) else _refuse(root, given)
    outside = ".." in unquote(place).split("/")
    if isinstance(root, str) and not outside and place.startswith(root.rstrip("/") + "/"):
        return place
    if "::" in place or place.partition("://")[0].lower() not in NETWORK:
        _refuse(root, given)
    return place


def _below_path(root: Path, given: str) -> Path:
    path = Path(os.path.normpath(root / given))
    return path if path.is_relative_to(os.path.normpath(root)) else _refuse(root, given)


def _below_url(root: str, given: str) -> Location:
    name = posixpath.normpath(given)
    return _refuse(root, given) if name.startswith(("/", "..")) else join(root, name)


def _refuse(root: Location, given: str) -> Any:
    raise InputError(f"path {given!r} leaves the data folder {root}; put the file inside it")


def _split(url: str) -> tuple[str, str, str]:
    """A URL as what comes before its path, the path, and the rest of the chain."""
    match = URL.match(url)
    assert match, url
    path, link, rest = url[match.end() :].partition("::")
    return url[: match.end()], path, link + rest


def _as_in(head: str, name: str) -> str:
    """A file's name as it stands in a URL: over HTTP a # or ? in it would mean something else."""
    return quote(name) if head.lower().endswith(("http://", "https://")) else name


def suffix(location: Location) -> str:
    """A file's ending in lower case, as `.mp4`; of a URL without its query.

    >>> [suffix(text) for text in ("https://host/a.MP4?key=1.2", "zip://a.webm::s3://b/c.zip", "s3://b/a")]
    ['.mp4', '.webm', '']
    """
    if isinstance(location, Path):
        return location.suffix.lower()
    head, path, _ = _split(location)
    if head.lower().endswith(("http://", "https://")):
        path = unquote(re.split("[?#]", path)[0])
    found = PurePosixPath(path).suffix.lower()
    return found if re.fullmatch(r"\.[a-z0-9]{1,10}", found) else ""


def filesystem(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store of a location and its name there. It is asked for anew by each process and thread (20 µs): what a
    fork copied of another's connections cannot be used."""
    if isinstance(location, Path):
        return LocalFileSystem(), str(location.absolute())
    try:
        return url_to_fs(location)
    except ImportError as error:  # fsspec says which package
        raise InputError(f"{location}: {_line(error)}") from error
    except ValueError as error:
        raise InputError(f"{location}: {_line(error)}; see fsspec's documentation") from error


@contextmanager
def told(location: Location) -> Iterator[None]:
    """Turns whatever a store's library raises into an OSError of one line."""
    try:
        yield
    except (InputError, GivenUp):
        raise
    except Exception as error:
        if isinstance(location, Path) or getattr(error, "errno", None) in FULL:
            raise
        why = error.__cause__  # fsspec says of a server that does not answer that there is no such file
        if isinstance(error, FileNotFoundError) and not isinstance(why, OSError) and _status(why) in (None, 404, 410):
            raise FileNotFoundError(errno.ENOENT, "No such file", without_credentials(location)) from error
        kind = PermissionError if isinstance(error, PermissionError) or _status(error) in (401, 403) else OSError
        message = f"{location}: {_line(why if isinstance(error, FileNotFoundError) and why else error)}"
        raise kind(without_credentials(message)) from error


def _status(error: BaseException | None) -> int | None:
    return getattr(error, "status", None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Remote(io.RawIOBase):
    """A store's open file, whose errors are told as all others here."""

    def __init__(self, file: Any, location: str):
        self.file, self.location = file, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def readinto(self, buffer: Any) -> int:
        with told(self.location):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with told(self.location):
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        super().close()


def open_binary(location: Location, **how: Any) -> BinaryIO:
    """A file opened for reading; of a URL what is read is fetched block by block (`how` as fsspec's open takes it)."""
    if isinstance(location, Path):
        return open(location, "rb")
    with told(location):
        system, name = filesystem(location)
        return cast(BinaryIO, _Remote(system.open(name, "rb", **how), location))


def ask(location: Location, act: Callable[[fsspec.AbstractFileSystem, str], Answer]) -> Answer:
    """What `act` gets of a store; asked again a few times where it fails: one lost request among millions is neither a
    damaged file nor a missing one."""
    for pause in (*PAUSES, None):
        try:
            with told(location):
                return act(*filesystem(location))
        except (FileNotFoundError, PermissionError, GivenUp):
            raise
        except OSError as error:
            if pause is None or isinstance(location, Path) or error.errno in FULL:
                raise
            time.sleep(pause)
    raise AssertionError


def read_bytes(location: Location) -> bytes:
    """A whole file."""
    return ask(location, lambda system, name: system.cat_file(name))


def read_range(location: Location, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, in one request; fewer only where the file ends before."""
    data = ask(location, lambda system, name: system.cat_file(name, start=offset, end=offset + size))
    if len(data) > size:
        place = without_credentials(str(location))
        raise OSError(f"{place}: its server gives whole files only; put filecache:: before the URL")
    return data


def exists(location: Location) -> bool:
    """Whether there is such a file. Raises OSError where the store does not answer."""

    def look(system: fsspec.AbstractFileSystem, name: str) -> None:
        system.invalidate_cache()  # another machine may have written it
        system.info(name)

    try:
        ask(location, look)
    except FileNotFoundError:
        return False
    return True


def listing(folder: Location, ending: str) -> list[Location]:
    """The files of a folder whose names end so, in order. Raises FileNotFoundError where there is no folder."""
    if isinstance(folder, Path):
        return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.is_file())
    entries = ask(folder, lambda system, name: system.ls(name, detail=True, refresh=True))
    found = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "file"]
    # A store's own names differ in form (over HTTP they are URLs); what stands after the last slash is a file's name.
    names = sorted(unquote(n.rpartition("/")[2]) if "://" in n else n.rpartition("/")[2] for n in found)
    return [join(folder, n) for n in names if n.endswith(ending)]


def write_bytes(location: Location, data: bytes) -> None:
    """Writes a small file; a reader finds the old one or the whole of it (in an object store, and on this machine)."""
    if isinstance(location, Path):
        location.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(location) as temporary:
            temporary.write_bytes(data)
        return
    ask(location, lambda system, name: system.pipe_file(name, data))


def send_file(path: Path, location: Location) -> None:
    """Copies a file of this machine to a location."""
    if isinstance(location, Path):
        location.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(location) as temporary:
            shutil.copyfile(path, temporary)
        return
    ask(location, lambda system, name: system.put_file(str(path), name))


def fetch_file(location: Location, path: Path) -> None:
    """Copies a file to this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        ask(location, lambda system, name: system.get_file(name, str(temporary)))


@contextmanager
def local_copy(
    location: Location, max_bytes: int | None = None, folder: Path | None = None, seconds: float | None = None
) -> Iterator[Path]:
    """A file of this machine with the contents of a location: itself, or a copy for as long as the context lasts.

    The copy keeps the URL's ending and lies in `folder` (default: the system's temporary one). Raises TooLarge
    beyond `max_bytes`, of which no more is fetched, and OSError as everything here, also after `seconds`.
    """
    if isinstance(location, Path):
        yield location
        return
    until = None if seconds is None else time.monotonic() + seconds
    handle, name = tempfile.mkstemp(suffix(location), ".fetched.", folder)
    os.close(handle)
    copy = Path(name)
    try:
        ask(location, lambda system, name: system.get_file(name, str(copy), callback=_Most(max_bytes, until)))
        _Most(max_bytes).set_size(copy.stat().st_size)  # not every store tells how a transfer goes on
        yield copy
    finally:
        copy.unlink(missing_ok=True)


class _Most(Callback):
    """Ends a transfer that is, or becomes, larger than it may be, or takes too long."""

    def __init__(self, most: int | None, until: float | None = None):
        super().__init__()
        self.most, self.until = most, until

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self._check(size)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._check(self.value)

    def _check(self, size: int | None) -> None:
        if self.most is not None and size is not None and size > self.most:
            raise TooLarge(f"larger than {self.most} bytes")
        if self.until is not None and time.monotonic() > self.until:
            raise TooSlow("it took too long to fetch")
