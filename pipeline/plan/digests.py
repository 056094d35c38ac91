"""Digests of input files, cached so that an unchanged file is read only once."""

import errno
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alpro.errors import InputError
from alpro.files import checksum, create_database, digest, file_state
from alpro.log import progress
from alpro.shards.sources.manifest import Manifest
from alpro.shards.storage import Location, identities, is_url

WAIT_SECONDS = 60  # for another program that writes into the cache
THREADS = 8  # that read files
BATCH = 512  # files that are read before their digests are kept
# In place of a digest: the file does not exist, or must not be read.
MISSING = "missing"
NOT_FETCHED = "not fetched"  # in place of an identity: the store never responded
CREATE = "create table if not exists digests (path primary key, size, changed, digest)"
SELECT = "select digest from digests where path = ? and size = ? and changed = ?"
INSERT = "insert or replace into digests values (?, ?, ?, ?)"
# Errors of a file that is not there, or must not be read.
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM}
ABSENT |= {errno.ELOOP, errno.ENAMETOOLONG}
# Files that a model folder must have.
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")
# In place of the size and the time: the digest is the identity of a file at a URL.
REMOTE = (-1, 0)


@dataclass(frozen=True)
class Digests:
    """SHA-256 of files, cached in an SQLite file by path, size and modification time; identities of
    files at URLs."""

    path: Path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        create_database(self.path)
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as db:
                with db:
                    db.execute(CREATE)
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
        digests: list[str] = []
        with self._open() as db, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(paths), BATCH):
                batch = [str(path) for path in paths[start : start + BATCH]]
                # Taken before the files are read: one that changes meanwhile is read again next time.
                # A file that is not there has a state that no row has.
                states = {
                    file: REMOTE
                    if is_url(file)
                    else file_state(Path(file)) or (None, None)
                    for file in batch
                }
                known = {}
                for file, state in states.items():
                    row = db.execute(SELECT, (file, *state)).fetchone()
                    # What is not there now may be there the next time.
                    absent = NOT_FETCHED if state == REMOTE else MISSING
                    known[file] = row[0] if row else absent

                urls = [file for file, state in states.items() if state == REMOTE]
                unread = [file for file, one in known.items() if one == MISSING]
                fresh = [*zip(unread, pool.map(digest_file, unread), strict=True)]
                if ask and urls:
                    fresh += zip(urls, identities(urls), strict=True)
                # What was not read, or not fetched, is not kept.
                found = {
                    file: one for file, one in fresh if one not in ("", NOT_FETCHED)
                }
                with db:
                    rows = [(file, *states[file], one) for file, one in found.items()]
                    db.executemany(INSERT, rows)
                known |= found
                digests += [known[file] for file in batch]
        return digests


def digest_file(file: str) -> str:
    """Return the SHA-256 of a file; empty if it is not a file or must not be read. Raises InputError
    if reading fails otherwise."""
    try:
        # Raises where Path.is_file would be False, such as for a failing disk.
        path = Path(file)
        path.stat()
        return checksum(path) if path.is_file() else ""
    except OSError as error:
        if error.errno in ABSENT:
            return ""
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


def digest_model(folder: Path, digests: Digests) -> str:
    """Return the digest of a model folder. Raises InputError if it is not a model folder."""
    names = (*REQUIRED, "entities.json", "answers.json")
    files = {name: folder / name for name in names if (folder / name).is_file()}
    missing = {*REQUIRED} - files.keys()
    if missing:
        raise InputError(
            f"pretrained = {str(folder)!r}: {min(missing)} is missing; this is not a model folder"
        )
    return digest_named(files, digests)


def digest_files(path: Path, digests: Digests) -> str:
    """Return the digest of a file, or of the files in and below a folder, such as a spaCy pipeline.
    Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]

    files: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and "/." not in f"/{name}":
            files[name] = file
    return digest_named(files, digests)


def digest_named(files: Mapping[str, Location], digests: Digests) -> str:
    """Return the digest of files and their names, which is the same in another folder."""
    contents = digests.of([*files.values()])
    return digest(dict(zip(files, contents, strict=True)))
