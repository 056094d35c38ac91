"""DataDigest of people's files as digests, remembered so that an unchanged file is read once."""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.files import checksum
from alpro.shards.annotations import scan_source
from alpro.shards.identity import identities
from alpro.shards.schema import Row
from alpro.shards.storage import Location, parent
from alpro.stages.artifacts.store import digest
from alpro.stages.execution.progress import progress

SECONDS_BETWEEN_COMMITS = 2.0
BATCH = 1024  # rows of a manifest that are held at a time


class Digests:
    """SHA-256 of files, kept in an SQLite file by path, size and time of change."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._create()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # in use, not writable
                raise InputError(f"{path}: {error}") from error
            path.unlink()  # it is damaged, and nothing but a memory
            self._create()

    def _create(self) -> None:
        with closing(self._open()) as db, db:
            db.execute(
                "create table if not exists digests (path text primary key, size integer, changed integer, digest text)"
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def of(self, files: list[Path]) -> list[str]:
        """The digest of each file; "missing" where there is none, or none that can be read.

        No transaction is open while a file is read, so that another pipeline need not wait; what was read is kept
        every few seconds, also by a run that is interrupted.
        """
        found: list[str] = []
        fresh: list[tuple[str, int, int, str]] = []
        with closing(self._open()) as db:
            kept = time.monotonic()
            try:
                for file in files:
                    found.append(self._of(db, file, fresh))
                    if time.monotonic() - kept > SECONDS_BETWEEN_COMMITS:
                        self._keep(db, fresh)
                        kept = time.monotonic()
            finally:
                self._keep(db, fresh)
        return found

    def _of(self, db: sqlite3.Connection, file: Path, fresh: list[tuple[str, int, int, str]]) -> str:
        """The digest of one file, added to `fresh` if it had to be read."""
        try:
            about = file.stat()
            if not stat.S_ISREG(about.st_mode):
                return "missing"
            known = db.execute("select size, changed, digest from digests where path = ?", (str(file),)).fetchone()
            if known and known[:2] == (about.st_size, about.st_mtime_ns):
                return known[2]
            value = checksum(file)
        except OSError:
            return "missing"
        fresh.append((str(file), about.st_size, about.st_mtime_ns, value))
        return value

    def _keep(self, db: sqlite3.Connection, fresh: list[tuple[str, int, int, str]]) -> None:
        try:
            with db:
                db.executemany("insert or replace into digests values (?, ?, ?, ?)", fresh)
        except sqlite3.OperationalError as error:  # in use, not writable
            raise InputError(f"{self.path}: {error}") from error
        fresh.clear()


class DataDigest(NamedTuple):
    """Digests of a corpus: with what stores say of files of other machines, and without asking them."""

    all: str
    here: str


def digest_data(
    source: Location,
    digests: Digests,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    ask: bool = True,
) -> DataDigest:
    """The digest of a manifest, a folder, or a folder with annotation files, with the contents of every file named.

    Files of other machines are not read: what their store says of them stands for their contents; with `ask` false
    nobody asks, and only `here` is of use.
    """
    if isinstance(source, Path):
        source = Path(os.path.normpath(source.absolute()))
    folder = source if isinstance(source, Path) and source.is_dir() else parent(source)
    found, here = hashlib.sha256(), hashlib.sha256()
    records = scan_source(source, annotations, root)
    with progress("reading files", None, "rows") as advance:
        while some := list(islice(records, BATCH)):
            files = {one.path for one in some if isinstance(one, Row)}
            contents = contents_of({file for file in files if ask or isinstance(file, Path)}, digests)
            for one in some:
                told: dict[str, Any] = {"row": one.model_dump(mode="json")}
                if isinstance(one, Row):
                    told["row"]["path"] = (
                        str(one.path.relative_to(folder))
                        if isinstance(one.path, Path)
                        else without_credentials(one.path, keep_query=True)  # a new signature is not a new file
                    )
                    told["content"] = contents.get(one.path, "")
                found.update(digest(told).encode())
                if isinstance(one, Row) and isinstance(one.path, str):
                    told["content"] = ""
                here.update(digest(told).encode())
            advance(len(some))
    return DataDigest(found.hexdigest(), here.hexdigest())


def contents_of(files: set[Location], digests: Digests) -> dict[Location, str]:
    """For each file its digest, or what its store says of it."""
    here = sorted(file for file in files if isinstance(file, Path))
    there = sorted(file for file in files if isinstance(file, str))
    return dict(zip([*here, *there], [*digests.of(here), *identities(there)], strict=True))


def digest_model(folder: Path, digests: Digests) -> str:
    """The digest of a model folder. Raises InputError where it is none."""
    files = [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    for file in files:
        if not file.is_file():
            raise InputError(f"pretrained = {str(folder)!r}: {file.name} is missing; this is not a model folder")
    files += [file for name in ("entities", "answers") if (file := folder / f"{name}.json").is_file()]
    return digest({file.name: value for file, value in zip(files, digests.of(files), strict=True)})
