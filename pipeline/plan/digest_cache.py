"""Remembers the digest of a manifest, or of annotation files, with the states of its files, and of the folders in which
files were looked up: while no size and no modification time has changed, neither the manifest is parsed nor a file
read. This takes 3 microseconds a file; parsing a row takes 30 times that (benchmarks/planning.py)."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import digest, publish, read_json, temporary_name, write_json
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


class Remembered:
    """The files of one manifest: FOLDER/<key>.parquet has their states, <key>.json the digest."""

    def __init__(self, folder: Path, manifest: Path, about: dict[str, Any]):
        """manifest: or the folder of the videos. about: whatever else the digest depends on."""
        key = digest({"manifest": str(manifest), "code": source_code(), **about})[:24]
        self.manifest, self.states, self.value = manifest, folder / f"{key}.parquet", folder / f"{key}.json"

    def recall(self) -> Any:
        """The remembered digest; None if there is none, or a file has changed."""
        try:
            value, table = read_json(self.value), pq.ParquetFile(self.states)
        except (OSError, ValueError, pa.ArrowException):
            return None
        with table, progress("checking files", table.metadata.num_rows, "files") as advance:
            if value["files"] != table.metadata.num_rows:
                return None
            for batch in table.iter_batches(ROWS):
                paths, sizes, times = (column.to_pylist() for column in batch.columns)
                for path, *state in zip(paths, sizes, times, strict=True):
                    if state_of(path) != tuple(state):
                        return None
                advance(len(batch))
        return value["digest"]

    @contextmanager
    def noting(self) -> Iterator[Note]:
        """Yields what notes each file before it is read. Nothing is kept after an exception."""
        self.states.parent.mkdir(exist_ok=True)
        self.value.unlink(missing_ok=True)
        self.noted, self.complete, rows = 0, True, list[tuple[str, int, int]]()
        temporary = temporary_name(self.states)
        try:
            with pq.ParquetWriter(temporary, STATES) as writer:

                def note(path: Path | None) -> None:
                    self.complete &= path is not None
                    if path is not None:
                        rows.append((str(path), *state_of(path)))
                        self.noted += 1
                    if len(rows) >= ROWS:
                        flush()

                def flush() -> None:
                    columns = list(zip(*rows, strict=True)) or [(), (), ()]
                    writer.write_table(pa.table(list(map(pa.array, columns, STATES.types)), schema=STATES))
                    rows.clear()

                note(self.manifest)
                yield note
                flush()
            publish(temporary, self.states)
        finally:
            temporary.unlink(missing_ok=True)

    def remember(self, value: Any) -> None:
        """Keeps the digest, unless a file was noted that cannot be checked."""
        if self.complete:
            write_json(self.value, {"digest": value, "files": self.noted})
        else:
            self.states.unlink(missing_ok=True)
