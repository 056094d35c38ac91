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
from alpro.files import checksum, digest, file_state
from alpro.log import progress
from alpro.shards.sources.manifest import Manifest
from alpro.shards.storage import Location, identities, is_url
from alpro.stages.index_shards import list_shards

THREADS = 8  # that read files
BATCH = 512  # files that are looked up, or read before their digests are kept
MISSING = "missing"  # in place of a digest: the file does not exist, or must not be read
NOT_FETCHED = "not fetched"  # in place of an identity: the store never responded
ABSENT_ERRORS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
REMOTE = (-1, 0)  # in place of the size and the time: the digest is the identity of a file at a URL


class Digests:
    """SHA-256 of files, cached in an SQLite file by path, size and modification time; identities of
    files at URLs."""

    def __init__(self, path: Path):
        self.path = path
        self.manifests = path.with_name("manifests")  # the folder of imported manifests
        with self._open() as db, db:
            db.execute(
                "create table if not exists digests (path primary key, size, changed, digest)"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as db:
                yield db
        except sqlite3.DatabaseError as error:  # in use, not writable, damaged
            raise InputError(
                f"{self.path}: {error}; if it is damaged, delete it: it is only a cache"
            ) from error

    def of(self, paths: Sequence[Path | str]) -> list[str]:
        """The digest of each file; "missing" if it does not exist or must not be read.

        Raises InputError if reading fails otherwise: one error of a disk or a network must not
        decide a fingerprint. New digests are kept batch by batch, so that an interrupted run keeps
        them; no transaction is open while files are read, so that other pipelines do not wait.
        """
        files = [str(path) for path in paths]
        digests: list[str] = []
        with self._open() as db, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(files), BATCH):
                batch = files[start : start + BATCH]
                # Before the files are read: one that changes meanwhile is read again the next time.
                states = {file: file_state(file) for file in batch}
                cached = self._cached(db, states)

                unknown = [file for file in states if file not in cached]
                fresh = dict(zip(unknown, pool.map(checksum_or_missing, unknown), strict=True))
                # A file that is missing now may be there the next time.
                read = {file: value for file, value in fresh.items() if value != MISSING}
                self._keep(db, read, states)

                known = cached | fresh
                digests += [known[file] for file in batch]
        return digests

    def identities(self, locations: Sequence[str], ask: bool = True) -> list[str]:
        """The identity of each file at a URL; "not fetched" if its store never responded.

        If the store does not respond now, or without `ask`, it is that of the last time: a server
        that is down for a moment does not change a fingerprint.
        """
        known: dict[str, str] = {}
        if ask:
            answers = zip(locations, identities(locations), strict=True)
            known = {url: value for url, value in answers if value != NOT_FETCHED}

        unknown = [url for url in dict.fromkeys(locations) if url not in known]
        with self._open() as db:
            self._keep(db, known, dict.fromkeys(known, REMOTE))
            # In batches: SQLite limits the parameters of a statement.
            for start in range(0, len(unknown), BATCH):
                known |= self._cached(db, dict.fromkeys(unknown[start : start + BATCH], REMOTE))
        return [known.get(url, NOT_FETCHED) for url in locations]

    def _cached(
        self, db: sqlite3.Connection, states: Mapping[str, tuple[int, int] | None]
    ) -> dict[str, str]:
        """The cached digests of the files that are still in these states."""
        marks = ",".join("?" * len(states))
        rows = db.execute(f"select * from digests where path in ({marks})", list(states))
        return {
            file: value for file, size, changed, value in rows if states[file] == (size, changed)
        }

    def _keep(
        self,
        db: sqlite3.Connection,
        fresh: Mapping[str, str],
        states: Mapping[str, tuple[int, int] | None],
    ) -> None:
        """Caches digests, each with the state that its file had before it was read."""
        rows = []
        for file, value in fresh.items():
            state = states[file]
            if state:
                rows.append((file, *state, value))

        with db:
            db.executemany("insert or replace into digests values (?, ?, ?, ?)", rows)


def checksum_or_missing(file: str) -> str:
    """The SHA-256 of a file; "missing" if it is not a file or must not be read. Raises InputError
    if reading fails otherwise."""
    try:
        os.stat(file)  # raises where Path.is_file would be False, such as for a failing disk
        return checksum(file) if Path(file).is_file() else MISSING
    except OSError as error:
        if error.errno in ABSENT_ERRORS:
            return MISSING
        raise InputError(
            f"{file}: cannot be read: {error.strerror}; run again, or remove it"
        ) from error


def digest_manifest(manifest: Manifest, digests: Digests, ask: bool = True) -> str:
    """Return the digest of an imported source, including the contents of all media files.

    Remote files are not read: their store's identity (size, ETag, ...) represents their contents.

    Args:
        ask: ask the stores; otherwise, use the identities of the last time.
    """
    everything = hashlib.sha256(manifest.about["digest"].encode())
    with progress("reading files", manifest.about["rows"], "rows") as advance:
        for batch in manifest.batches(["path"]):
            paths = batch["path"].to_pylist()
            local = sorted({path for path in paths if not is_url(path)})
            remote = sorted(set(paths).difference(local))
            contents = dict(zip(local, digests.of(local), strict=True))
            contents |= dict(zip(remote, digests.identities(remote, ask), strict=True))

            # In the order of the rows, whose other values are in the manifest's digest.
            everything.update("\n".join(contents[path] for path in paths).encode())
            advance(len(batch))
    return everything.hexdigest()


def digest_shards(folder: Location, digests: Digests) -> str:
    """The digest of existing shards: their locations, which are also in the index, and their
    contents. The identity in the store (size, and ETag, digest or time) represents the contents of
    shards at a URL."""
    shards = list_shards(folder)
    local = [shard for shard in shards if isinstance(shard, Path)]
    contents = digests.of(local) if local else digests.identities([str(shard) for shard in shards])
    return digest(dict(zip(map(str, shards), contents, strict=True)))


def digest_model(folder: Path, digests: Digests) -> str:
    """The digest of a model folder. Raises InputError if it is not a model folder."""
    files = [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"pretrained = {str(folder)!r}: {file.name} is missing; this is not a model folder"
            )

    optional = [folder / name for name in ("entities.json", "answers.json")]
    files += [file for file in optional if file.is_file()]

    # By name: the same model in another folder has the same digest.
    names = [file.name for file in files]
    return digest(dict(zip(names, digests.of(files), strict=True)))
