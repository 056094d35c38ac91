"""Remembers the digest of a manifest, or of annotation files, with the states of its files, and of the folders in which
files were looked up: while no size and no modification time has changed, neither the manifest is parsed nor a file
read. This takes 3 microseconds a file; parsing a row takes 30 times that."""

import os
import stat
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.files import atomic_write, digest, read_json, write_json
from alpro.progress import progress

STATES = pa.schema([("path", pa.string()), ("size", pa.int64()), ("changed", pa.int64())])
ROWS = 65_536  # states in memory
ABSENT = (-1, -1)
FOLDER = -2  # in place of the size; its time changes if a name in it is added or removed
# The packages that a digest depends on.
CODE = ("alpro", "alpro.shards", "alpro.shards.sources", "alpro.pipeline.plan")


def source_code() -> dict[str, str]:
    """The modules of the packages that read manifests and files. A change of any of them may change a digest."""
    modules = (module for package in CODE for module in files(package).iterdir() if module.name.endswith(".py"))
    return {str(module): module.read_text() for module in modules}


class Note(Protocol):
    """Notes a file or folder as it was when the digest was made, or that the digest must not be remembered."""

    def __call__(self, path: Path | None) -> None: ...


def state_of(path: str | Path) -> tuple[int, int]:
    """The size and the modification time (ns) of a file, the latter of a folder; ABSENT if there is neither."""
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    if stat.S_ISDIR(status.st_mode):
        return FOLDER, status.st_mtime_ns
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ABSENT


def remembered(folder: Path, manifest: Path, about: dict[str, Any], make: Callable[[Note], Any]) -> Any:
    """The digest that `make` computes, or that of the last time if no file that it noted has changed.

    FOLDER/<key>.parquet has the states of the files, <key>.json the digest. Nothing is kept after an exception, or if
    something was noted that cannot be checked. manifest: or the folder of the videos. about: whatever else the digest
    depends on. Raises InputError if the folder is not writable.
    """
    key = digest({"manifest": str(manifest), "code": source_code(), **about})[:24]
    states, value = folder / f"{key}.parquet", folder / f"{key}.json"
    if recalled := recall(states, value):
        return recalled
    try:
        folder.mkdir(exist_ok=True)
        value.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    rows, noted, complete = list[dict[str, Any]](), 0, True
    with atomic_write(states) as temporary, pq.ParquetWriter(temporary, STATES) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=STATES))
            rows.clear()

        def note(path: Path | None) -> None:
            nonlocal noted, complete
            if path is None:
                complete = False
                return
            size, changed = state_of(path)
            rows.append({"path": str(path), "size": size, "changed": changed})
            noted += 1
            if len(rows) >= ROWS:
                flush()

        note(manifest)
        made = make(note)
        flush()
    if complete:
        write_json(value, {"digest": made, "files": noted})
    else:
        states.unlink(missing_ok=True)  # another process may do the same
    return made


def recall(states: Path, value: Path) -> Any:
    """The remembered digest; None if there is none, or a file has changed."""
    try:
        known, table = read_json(value), pq.ParquetFile(states)
    except (OSError, ValueError, pa.ArrowException):
        return None
    with table, progress("checking files", table.metadata.num_rows, "files") as advance:
        if known["files"] != table.metadata.num_rows:
            return None
        for batch in table.iter_batches(ROWS):
            paths, sizes, times = (column.to_pylist() for column in batch.columns)
            for path, *state in zip(paths, sizes, times, strict=True):
                if state_of(path) != tuple(state):
                    return None
            advance(len(batch))
    return known["digest"]
