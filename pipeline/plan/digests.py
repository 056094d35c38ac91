"""Digests of input files, cached so that an unchanged file is read only once."""

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alpro.errors import InputError
from alpro.files import checksum, digest, file_state
from alpro.pipeline.plan.digest_cache import Note, remembered
from alpro.progress import progress
from alpro.shards.schema import Row
from alpro.shards.sources.annotations import can_be_noted, has_questions, scan_source, table_of
from alpro.shards.sources.downloads import is_downloads
from alpro.shards.sources.identity import identities
from alpro.shards.sources.members import is_local, local_shard, member_of
from alpro.shards.storage import Location, parent
from alpro.stages.index_shards import list_shards

SECONDS_BETWEEN_COMMITS = 2.0
BATCH = 4096  # rows of a manifest in memory, or files in the queue of the threads
THREADS = 8  # that read files
QUERIED = 512  # rows of the cache that are read at a time
MISSING, NOT_FETCHED = "missing", "not fetched"
ABSENT_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
T = TypeVar("T")
REMOTE = -1  # in the column `size`: the digest is the identity of a file at a URL


class Digests:
    """SHA-256 of files, cached in an SQLite file by path, size and modification time; identities of files at URLs."""

    def __init__(self, path: Path):
        self.path = path
        self._renewed(self._create)

    def _renewed(self, use: Callable[[], T]) -> T:
        """The result of `use`. A corrupt file is replaced: it is only a cache. Raises InputError if it is in use."""
        try:
            return use()
        except sqlite3.OperationalError as error:  # in use, not writable
            raise InputError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
            self._create()
            return use()

    def _create(self) -> None:
        with closing(self._open()) as db, db:
            db.execute(
                "create table if not exists digests (path text primary key, size integer, changed integer, digest text)"
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def of(self, paths: Sequence[Path | str]) -> list[str]:
        """The digest of each file; "missing" if it does not exist or must not be read. Raises InputError if reading
        fails otherwise: what a disk or a network says once must not decide a fingerprint.

        Files that are not cached are read by several threads. No transaction is open while a file is read, so that
        other pipelines do not wait. New digests are committed every few seconds, so an interrupted run keeps them.
        """
        return self._renewed(lambda: self._of(paths))

    def _of(self, paths: Sequence[Path | str]) -> list[str]:
        files = list(map(str, paths))  # compared and looked up in a fraction of the time of Path objects
        stated = {file: file_state(file) for file in files}
        digests = {file: missing(file) for file, state in stated.items() if state is None}
        states = {file: state for file, state in stated.items() if state}
        fresh: dict[str, str] = {}

        def commit(db: sqlite3.Connection) -> None:
            self._commit(db, [(file, *states[file], value) for file, value in fresh.items() if value != MISSING])
            digests.update(fresh)
            fresh.clear()

        with closing(self._open()) as db, ThreadPoolExecutor(THREADS) as pool:
            digests |= self._cached(db, states)
            unknown, committed = iter([file for file in states if file not in digests]), time.monotonic()
            try:
                while batch := list(islice(unknown, BATCH)):
                    for file, value in zip(batch, pool.map(checksum_or_missing, batch), strict=True):
                        fresh[file] = value
                        if time.monotonic() - committed > SECONDS_BETWEEN_COMMITS:
                            commit(db)
                            committed = time.monotonic()
            finally:
                commit(db)
        return [digests[file] for file in files]

    def identities(self, locations: Sequence[str]) -> list[str]:
        """The identity of each file at a URL. If its store does not respond, that of the last time, so that a server
        that is down for a moment does not change a fingerprint; "not fetched" if there is none."""
        files = list(locations)
        asked = dict(zip(files, identities(locations), strict=True))

        def with_earlier() -> dict[str, str]:
            with closing(self._open()) as db:
                self._commit(db, [(file, REMOTE, 0, value) for file, value in asked.items() if value != NOT_FETCHED])
                unknown = {file: (REMOTE, 0) for file, value in asked.items() if value == NOT_FETCHED}
                return asked | self._cached(db, unknown)

        found = self._renewed(with_earlier)
        return [found[file] for file in files]

    def _cached(self, db: sqlite3.Connection, states: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """The cached digests of files that have the same state."""
        cached: dict[str, str] = {}
        for start in range(0, len(files := list(states)), QUERIED):
            names = files[start : start + QUERIED]
            query = f"select * from digests where path in ({','.join('?' * len(names))})"
            for name, *state, value in db.execute(query, names):
                if tuple(state) == states[name]:
                    cached[name] = value
        return cached

    def _commit(self, db: sqlite3.Connection, fresh: list[tuple[str, int, int, str]]) -> None:
        with db:
            db.executemany("insert or replace into digests values (?, ?, ?, ?)", fresh)


def checksum_or_missing(file: str) -> str:
    """The SHA-256 of a file; "missing" if it must not be read. Raises InputError if reading fails otherwise."""
    try:
        return checksum(file)
    except OSError as error:
        return absent(file, error)


def missing(file: str) -> str:
    """As `checksum_or_missing`, of what is no file."""
    try:
        os.stat(file)
    except OSError as error:
        return absent(file, error)
    return MISSING


def absent(file: str, error: OSError) -> str:
    if error.errno in ABSENT_ERRORS:
        return MISSING
    raise InputError(f"{file}: cannot be read: {error.strerror}; run again, or remove it") from error


class DataDigest(NamedTuple):
    """Digests of a corpus: `all` includes the identities of remote files, `here` only the contents of local files."""

    all: str
    here: str
    has_media: bool  # whether any media file exists


def digest_data(
    source: Location,
    digests: Digests,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    ask: bool = True,
) -> DataDigest:
    """The digest of a manifest, a folder, or a folder with annotation files, including the contents of all media files.

    Remote files are not read: their store's identity (size, ETag, ...) represents their contents. With `ask=False`,
    stores are not queried and only `here` is valid. The digest of a manifest or of annotation files is remembered if
    all of their files are here.
    """
    if isinstance(source, Path):
        source = Path(os.path.normpath(source.absolute()))
    if not can_be_noted(source, annotations):
        return digest_rows(source, digests, annotations, root, ask, lambda path: None)
    files = {split: os.path.normpath(file.absolute()) for split, file in (annotations or {}).items()}
    about = {"annotations": files, "root": str(root), "ask": ask}

    def make(note: Note) -> dict[str, Any]:
        return digest_rows(source, digests, annotations, root, ask, note)._asdict()

    return DataDigest(**remembered(digests.path.with_name("manifests"), Path(source), about, make))


def asks_questions(data: Location, digests: Digests) -> bool:
    """As `has_questions`. The answer for a local file, or the only table of a folder, is remembered."""
    if is_downloads(data) or not (file := table_of(data)) or not file.is_file():
        return has_questions(data)
    place, about = digests.path.with_name("manifests"), {"asks_questions": str(data)}
    return bool(remembered(place, file, about, lambda note: {"questions": has_questions(data)})["questions"])


def digest_rows(
    source: Location,
    digests: Digests,
    annotations: Mapping[str, Path] | None,
    root: Path | None,
    ask: bool,
    note: Note,
) -> DataDigest:
    """As `digest_data`, from the rows and the files themselves. note: called with each file, before it is read."""
    folder = source if isinstance(source, Path) and source.is_dir() else parent(source)
    everything, here, has_media = hashlib.sha256(), hashlib.sha256(), False
    records = scan_source(source, annotations, root, note=note)
    with progress("reading files", row_count(source, annotations), "rows") as advance:
        while batch := list(islice(records, BATCH)):
            files = {record.path for record in batch if isinstance(record, Row)}
            for file in files:
                note(file if isinstance(file, Path) else None)
            contents = content_digests({file for file in files if ask or is_local(file)}, digests)
            has_media |= any(content not in (MISSING, NOT_FETCHED) for content in contents.values())
            for record in batch:
                value: dict[str, Any] = {"row": record.model_dump(mode="json")}
                if isinstance(record, Row):
                    value["row"]["path"] = path_in(folder, record.path)
                    value["content"] = contents.get(record.path, "")
                whole = digest(value).encode()
                everything.update(whole)
                if isinstance(record, Row) and not is_local(record.path):
                    whole = digest(value | {"content": ""}).encode()
                here.update(whole)
            advance(len(batch))
    return DataDigest(everything.hexdigest(), here.hexdigest(), has_media)


def row_count(source: Location, annotations: Mapping[str, Path] | None) -> int | None:
    """About the number of rows: the lines of tables of text. None if it is not known without parsing."""
    tables = list(annotations.values()) if annotations else [source]
    lines = 0
    for table in tables:
        if not isinstance(table, Path) or table.suffix not in (".jsonl", ".ndjson", ".csv", ".tsv"):
            return None
        with suppress(OSError), open(table, "rb") as file:  # reading the rows reports it
            lines += sum(1 for _ in file)
    return lines


def path_in(folder: Location, path: Location) -> str:
    """The path of a file, or of the shard that it is in, relative to the folder of the data; a URL without credentials
    and signature, because a new signature is not a new file."""
    if isinstance(path, Path):
        inside = str(path).removeprefix(f"{folder}/")
        return inside if inside != str(path) else str(path.relative_to(Path(folder)))
    member, shard = member_of(path), local_shard(path)
    if member and shard:
        return f"{shard.relative_to(Path(folder))}/{member.name} {member.offset}+{member.size}"
    return str(path)


def content_digests(files: set[Location], digests: Digests) -> dict[Location, str]:
    """The digest of each local file, or of the local shard that it is in, and the identity of each remote file."""
    local = {file: str(file if isinstance(file, Path) else local_shard(file)) for file in files if is_local(file)}
    paths = sorted(set(local.values()))
    contents = dict(zip(paths, digests.of(paths), strict=True))
    remote = sorted(file for file in files if isinstance(file, str) and file not in local)
    return {file: contents[path] for file, path in local.items()} | dict(
        zip(remote, digests.identities(remote), strict=True)
    )


def digest_shards(folder: Location, digests: Digests) -> str:
    """The digest of existing shards: their locations, which are also in the index, and their contents. The contents of
    shards at a URL are represented by their identity in the store (size, and ETag, digest or time)."""
    shards = list_shards(folder)
    local = [shard for shard in shards if isinstance(shard, Path)]
    contents = digests.of(local) if local else digests.identities([str(shard) for shard in shards])
    return digest(dict(zip(map(str, shards), contents, strict=True)))


def digest_model(folder: Path, digests: Digests) -> str:
    """The digest of a model folder. Raises InputError if it is not a model folder."""
    files = [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    for file in files:
        if not file.is_file():
            raise InputError(f"pretrained = {str(folder)!r}: {file.name} is missing; this is not a model folder")
    files += [file for name in ("entities", "answers") if (file := folder / f"{name}.json").is_file()]
    return digest({file.name: value for file, value in zip(files, digests.of(files), strict=True)})
