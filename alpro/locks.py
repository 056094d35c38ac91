"""File locks, which the kernel releases when the last process that has them open ends."""

import errno
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from alpro.errors import InputError

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def file_lock(path: Path) -> FileLock:
    """Return the lock of a file, which is not acquired.

    On Lustre without locks, filelock would create and delete a file instead: one that a killed process
    leaves locks forever, and children do not hold it.
    """
    return FileLock(path, fallback_to_soft=False)


def acquire(
    lock: FileLock,
    blocking: bool = True,
    cancel_check: Callable[[], bool] | None = None,
) -> bool:
    """Acquire a lock.

    Args:
        blocking: If True, wait until the lock is free.
        cancel_check: If it returns True, waiting ends.

    Returns:
        True if this process has the lock.

    Raises:
        InputError: If the file system has no locks. Without them, two runs would write the same files.
    """
    try:
        lock.acquire(blocking=blocking, cancel_check=cancel_check)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"{lock.lock_file}: this disk has no file locks ({error.strerror}); choose a folder on a "
            "local disk, or mount this one with locks (NFS version 4, or lockd; Lustre: the option "
            "flock)"
        ) from error
    return True


def lock_descriptor(lock: FileLock) -> int:
    """Return the file descriptor of a held lock.

    If child processes inherit it, the lock is free when all of them have ended.
    """
    # filelock has no public name for it.
    descriptor = lock._context.lock_file_fd
    assert descriptor is not None
    return descriptor
