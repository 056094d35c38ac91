"""SQLite files, temporary or not, that hold what would be too much for memory."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# What SQLite says of a full disk, or of a file that may not grow.
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}


@contextmanager
def database(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A new database, closed in the end; without a path a temporary file, of which memory holds a few MB.

    It is not meant to outlive a crash, and made anew after one. A full disk is an OSError, as it is elsewhere.
    """
    if path:
        path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path or "", isolation_level=None)) as db:
            db.execute("pragma journal_mode = off")
            db.execute("pragma synchronous = off")
            db.execute("begin")
            yield db
            db.execute("commit")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode not in FULL:
            raise
        raise OSError(errno.ENOSPC, "No space left on device", str(path or "temporary files")) from error
