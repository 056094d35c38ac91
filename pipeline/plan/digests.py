"""Digests of input files, cached so that an unchanged file is read only once."""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from alpro.errors import InputError
from alpro.files import checksum, create_database, digest, file_state
from alpro.log import progress
from alpro.shards.sources.manifest import Manifest
from alpro.shards.storage import Location, identities, is_url
from alpro.stages.index_shards import list_shards

State = tuple[int, int] | None  # size and time of a file

WAIT_SECONDS = 60  # for another program that writes into the cache
THREADS = 8  # that read files
BATCH = 512  # files that are read before their digests are kept
# In place of a digest: the file does not exist, or must not be read.
MISSING = "missing"
NOT_FETCHED = "not fetched"  # in place of an identity: the store never responded
# Errors of a file that is not there, or must not be read.
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM}
ABSENT |= {errno.ELOOP, errno.ENAMETOOLONG}
# Files that a model folder must have.
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")
# In place of the size and the time: the digest is the identity of a file at a URL.
REMOTE = (-1, 0)


class Digests:
    """SHA-256 of files, cached in an SQLite file by path, size and modification time; identities of
    files at URLs."""

    def __init__(self, path: Path):
        self.path = path
        self.manifests = path.with_name("manifests")  # the folder of imported manifests
        create_database(path)
        with self._open() as db, db:
            db.execute(
                "create table if not exists digests (path primary key, size, changed, digest)"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as db:
                yield db
        except sqlite3.DatabaseError as error:  # in use, not writable, damaged
            raise InputError(
                f"{self.path}: {error}; if it is damaged, delete it: it is only a cache"
            ) from error

    def of(self, paths: Sequence[Path | str], ask: bool = True) -> list[str]:
        """Return the digest of each file, "missing" if it does not exist or must not be read; of a
        file at a URL its identity, "not fetched" if its store never responded.

        New digests are kept batch by batch, so that an interrupted run keeps them. No transaction
        is open while files are read, so that other pipelines do not wait. If a store does not
        respond now, its identity is the last one: a server that is down for a moment does not
        change a fingerprint.

        Args:
            ask: ask the stores; otherwise, return the identities of the last time.

        Raises:
            InputError: If reading fails otherwise. One error of a disk or a network must not decide a
                fingerprint.
        """
        files = [str(path) for path in paths]
        digests: list[str] = []
        with self._open() as db, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(files), BATCH):
                # Taken before the files are read: one that changes meanwhile is read again next time.
                batch = files[start : start + BATCH]
                states = {
                    file: REMOTE if is_url(file) else file_state(file) for file in batch
                }
                cached = {
                    file: self._find(db, file, state) for file, state in states.items()
                }
                remote = [file for file in states if is_url(file)]
                unread = [
                    file
                    for file, digest in cached.items()
                    if not digest and states[file] != REMOTE
                ]
                checksums = pool.map(checksum_or_missing, unread)
                fresh = dict(zip(unread, checksums, strict=True))
                if ask and remote:
                    answers = zip(remote, identities(remote), strict=True)
                    fresh |= {url: one for url, one in answers if one != NOT_FETCHED}
                self._keep(db, fresh, states)
                known = cached | fresh
                digests += [known[file] or NOT_FETCHED for file in batch]
        return digests

    def _find(self, db: sqlite3.Connection, file: str, state: State) -> str:
        """Return the cached digest of a file that is still in a state; empty without one."""
        query = "select digest from digests where path = ? and size = ? and changed = ?"
        row = db.execute(query, (file, *(state or (None, None)))).fetchone()
        return row[0] if row else ""

    def _keep(
        self,
        db: sqlite3.Connection,
        fresh: Mapping[str, str],
        states: Mapping[str, State],
    ) -> None:
        """Cache digests, each with the state that its file had before it was read."""
        rows = []
        for file, value in fresh.items():
            state = states[file]
            # A local file that is missing now may be there the next time.
            if state and (state == REMOTE or value != MISSING):
                rows.append((file, *state, value))
        with db:
            db.executemany("insert or replace into digests values (?, ?, ?, ?)", rows)


def checksum_or_missing(file: str) -> str:
    """Return the SHA-256 of a file; "missing" if it is not a file or must not be read. Raises InputError
    if reading fails otherwise."""
    try:
        # Raises where Path.is_file would be False, such as for a failing disk.
        os.stat(file)
        return checksum(file) if Path(file).is_file() else MISSING
    except OSError as error:
        if error.errno in ABSENT:
            return MISSING
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


def digest_manifest(manifest: Manifest, digests: Digests, ask: bool = True) -> str:
    """Return the digest of an imported source, including the contents of all media files.

    Remote files are not read: their store's identity (size, ETag, ...) represents their contents.

    Args:
        ask: ask the stores; otherwise, use the identities of the last time.
    """
    everything = hashlib.sha256(manifest.about["digest"].encode())
    with progress("reading files", manifest.about["rows"], "rows") as advance:
        for batch in manifest.batches(["path"]):
            # Hashed in the order of the rows, whose other values are in the manifest's digest.
            contents = digests.of(batch["path"].to_pylist(), ask)
            everything.update("\n".join(contents).encode())
            advance(len(batch))
    return everything.hexdigest()


def digest_shards(folder: Location, digests: Digests) -> str:
    """Return the digest of existing shards: their locations, which are also in the index, and their
    contents. The identity in the store (size, and ETag, digest or time) represents the contents of
    shards at a URL."""
    return digest_named({str(shard): shard for shard in list_shards(folder)}, digests)


def digest_model(folder: Path, digests: Digests) -> str:
    """Return the digest of a model folder. Raises InputError if it is not a model folder."""
    names = (*REQUIRED, "entities.json", "answers.json")
    files = {name: folder / name for name in names if (folder / name).is_file()}
    for name in REQUIRED:
        if name not in files:
            raise InputError(
                f"pretrained = {str(folder)!r}: {name} is missing; this is not a model folder"
            )
    return digest_named(files, digests)


def digest_files(path: Path, digests: Digests) -> str:
    """Return the digest of a file, or of the files in and below a folder, such as a spaCy pipeline.
    Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]

    files: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not is_hidden:
            files[str(name)] = file
    return digest_named(files, digests)


def digest_named(files: Mapping[str, Location], digests: Digests) -> str:
    """Return the digest of files and their names, which is the same in another folder."""
    contents = digests.of([*files.values()])
    return digest(dict(zip(files, contents, strict=True)))
