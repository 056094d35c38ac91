"""Local files: checksums, JSON, and writes that survive a killed process and a power failure.

An operating system writes files to the disk later than a program does, and in any order. After a
power failure, a file may be empty although another one, written later, refers to it. So final files
are written under another name, synced and renamed, and the folder is synced (`publish`). The file
that marks work as finished is published last.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from alpro.errors import InputError

# Errors of file systems that do not sync files or folders, and of folders that can be written but
# not read.
CANNOT_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full local disk


def expand_home(path: str | Path) -> Path:
    """Return a path in which `~` is the home folder. Raise InputError if the user after it is
    unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{path}: there is no such user; begin the name of a file with ./"
        ) from error


def read_text(path: Path) -> str:
    """Read a text that a user has written, in UTF-8 with or without its byte order mark.

    Raises:
        InputError: If it has another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from error


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> tuple[int, int] | None:
    """Return the size and the modification time (ns) of a file.

    None if it is not a regular file or cannot be reached.
    """
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size, status.st_mtime_ns
    return None


def create_database(path: Path) -> None:
    """Create an empty file for SQLite, unless it exists, with the permissions of other new files.

    SQLite's own are not writable for a group, whatever the umask.
    """
    if not path.exists():
        path.touch()


@contextmanager
def os_errors(path: Path | str) -> Iterator[None]:
    """Raise errors of the operating system, such as a full disk, as OSError.

    Libraries in Rust (safetensors, tokenizers) only quote their number in an error of their own.
    """
    try:
        yield
    except Exception as error:
        match = re.search(r"\(os error (\d+)\)", str(error))
        # An InputError already says what to do.
        if match is None or isinstance(error, OSError | InputError):
            raise

        code = int(match[1])
        raise OSError(code, os.strerror(code), path) from error


def temporary_name(path: Path) -> Path:
    """Return a unique, hidden name in the same folder, for a file that is being written."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")


def sync(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def sync_tree(path: Path) -> None:
    """Sync a file, or a folder with all that is in it. Symbolic links are not followed."""
    paths = [path, *(inside for inside in path.rglob("*") if not inside.is_symlink())]

    # File systems combine concurrent syncs: 1,000 files take 0.2 s instead of 2.6.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, paths))


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that they exist after a power failure."""
    if path.is_dir():
        return

    make_folder(path.parent)
    # `exist_ok`, because another process may create it at the same time.
    path.mkdir(exist_ok=True)
    sync(path.parent)


def publish(temporary: Path, path: Path) -> None:
    """Rename a file or a folder to its final name.

    After a power failure, either it is complete or the earlier one is still there.
    """
    sync_tree(temporary)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which is published as `path` at the end of the
    block.

    After an exception it is deleted and `path` is unchanged, so a reader never sees a partial file.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        # If a disk is full, the system does not say which file it is.
        if (
            isinstance(error, OSError)
            and error.errno in DISK_FULL
            and not error.filename
        ):
            error.filename = str(path)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that gets its name at the end of the block.

    A killed program leaves no folder of this name, and two of them do not share one.

    Raises:
        InputError: If the folder exists already.
        OSError: If it cannot be written.
    """
    if folder.exists():
        raise InputError(
            f"{folder}: exists already; choose another folder or delete it"
        )
    with atomic_write(folder) as building, os_errors(folder):
        building.mkdir(parents=True)
        yield building


def use_default_mode(path: Path) -> None:
    """Give a file the mode of new files. Files of safetensors are readable by their owner only."""
    umask = os.umask(0o077)  # the only way to read it
    os.umask(umask)

    with suppress(OSError):  # CIFS and gcsfuse of another user have no modes
        path.chmod(0o666 & ~umask)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_small_json(path: Path, max_bytes: int = 64 << 20) -> Any:
    """Read a JSON file of unknown origin.

    Raises:
        ValueError: One line, if it is not a regular file, larger than `max_bytes`, or not JSON.
    """
    # Check before opening the file: opening a pipe waits for a writer.
    if not path.is_file() or path.stat().st_size > max_bytes:
        raise ValueError(
            f"{path}: missing, no regular file, or larger than {max_bytes:,} bytes"
        )
    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n")


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
