"""Limits the memory of this process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Within the body, let this process allocate `size` bytes more than it holds.

    Further allocations raise MemoryError: FFmpeg and numpy report the failure, and the process
    continues. For processes of one thread, on Linux.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(FileNotFoundError):  # another system
        # Pages of data, which RLIMIT_DATA counts, and of the stack, which is small.
        data_pages = int(Path("/proc/self/statm").read_text().split()[5])
        allowed = data_pages * resource.getpagesize() + size
        limits = {allowed, soft, hard} - {resource.RLIM_INFINITY}
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))

    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
