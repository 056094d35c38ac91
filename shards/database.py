"""SQLite files for data that does not fit in memory."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# Error codes of a full disk or a file size limit.
DISK_FULL_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}


@contextmanager
def database(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A new database, closed at the end; without a path a temporary file with a cache of a few MB.

    It does not survive a crash and is rebuilt after one. A full disk raises OSError.
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
        if error.sqlite_errorcode not in DISK_FULL_CODES:
            raise
        raise OSError(errno.ENOSPC, "No space left on device", str(path or "temporary files")) from error
