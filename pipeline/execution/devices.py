"""Which GPUs of this machine a stage uses. It locks them, so that runs at the same time use
different ones."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

from alpro.errors import InputError
from alpro.interpreter import interpreter
from alpro.locks import acquire, lock_descriptor
from alpro.stages.execution.interface import STOP, Resources

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Of the locks, for all users; jobs of a cluster have a /tmp of their own.
FOLDER = Path("/var/tmp/alpro-devices")
POLL_SECONDS = 1.0
DRIVER = Path("/proc/driver/nvidia/version")
UUIDS = "import torch; print(*(torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())))"


def visible_devices(resources: Resources) -> dict[str, str]:
    """The GPUs that stages of this process may use, by names that CUDA_VISIBLE_DEVICES accepts,
    with what identifies each on this machine: two jobs may call different GPUs "0", or one GPU by
    its index and by its UUID."""
    if resources.device == "cpu":
        return {}

    import torch

    count = torch.cuda.device_count()
    # CUDA stops at the first name that it does not know: the visible GPUs are the first ones.
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    names = named[:count] if named else [str(index) for index in range(count)]
    uuids = device_uuids(os.environ.get(VISIBLE)) if names else []

    # A part of a GPU (MIG) has a name that is its own; CUDA may report the UUID of the whole GPU.
    return {
        name: name if name.startswith("MIG-") else uuid
        for name, uuid in zip(names, uuids, strict=True)
    }


@cache
def device_uuids(visible: str | None) -> list[str]:
    """The UUIDs of the visible GPUs, in CUDA's order. CUDA is asked in a process of its own: this
    one forks.

    Raises InputError with CUDA's reason if it cannot use them, as with a driver that is too old.
    """
    command = interpreter("-c", UUIDS)
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode == 0:
        return asked.stdout.split()

    import torch

    lines = asked.stderr.strip().splitlines() or [f"status {asked.returncode}"]
    # The last line of a traceback is the exception's name, a colon and CUDA's reason.
    reason = lines[-1].partition(": ")[2] or lines[-1]
    needed = f"this torch ({torch.__version__}) needs a driver for CUDA {torch.version.cuda}"
    raise InputError(
        f"there is a GPU, but CUDA cannot use it: {reason.strip()} Driver {driver_version()}; "
        f"{needed}; "
        "update the driver, install a torch for its CUDA, or set resources.device=cpu"
    )


def driver_version() -> str:
    """The version of NVIDIA's driver on this machine."""
    with suppress(OSError):
        words = DRIVER.read_text().split()
        # NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5 2024
        versions = [word for word in words if word[0].isdigit() and "." in word]
        if versions:
            return versions[0]
    return "of unknown version"


@contextmanager
def reserved(
    devices: Mapping[str, str], count: int, announce: Callable[[str], None], folder: Path = FOLDER
) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Reserves `count` of the devices (name: identity) for the time of the body. Waits until they
    are free.

    Yields their names and the open files of their locks. Processes that inherit these keep the
    devices reserved, even if this process is killed. Raises Stopped, and InputError if there are
    fewer devices or if the folder of the locks cannot be used. Without devices, nothing is
    reserved.
    """
    if not devices:
        yield [], ()
        return

    if count > len(devices):
        raise InputError(
            f"resources.processes = {count}, but the number of visible GPUs is {len(devices)}"
        )

    # The old names of MIG parts have slashes: MIG-GPU-UUID/1/0.
    files = {
        folder / f"{identity.replace('/', '_')}.lock": name for name, identity in devices.items()
    }

    try:
        make_shared(folder)
        locks = lock_all(list(files), count)
        if not locks:
            plural = "s" if count > 1 else ""
            announce(f"waits for {count} free GPU{plural} of {len(devices)}; others are in use")
        while not locks:
            STOP.get().wait(POLL_SECONDS)
            locks = lock_all(list(files), count)
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror}; the locks of the GPUs are there, it must be writable"
        ) from error

    try:
        names = [files[file] for file in locks]
        yield names, tuple(lock_descriptor(lock) for lock in locks.values())
    finally:
        for lock in locks.values():
            lock.release()


def make_shared(folder: Path) -> None:
    """Creates a folder in which all users of this machine may write."""
    if folder.is_dir():
        return

    # mkdir applies the umask to a mode, which would keep other users out.
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another user has just created it, or the disk has no modes
        folder.chmod(0o777)


def lock_all(files: list[Path], count: int) -> dict[Path, FileLock]:
    """Locks `count` of the files, or none if too few are free: two runs that each kept a part would
    wait for each other."""
    taken: dict[Path, FileLock] = {}
    for file in files:
        # Runs of other users open the same file.
        lock = FileLock(file, mode=0o666, thread_local=False)
        if acquire(lock, blocking=False):
            taken[file] = lock
        if len(taken) == count:
            return taken

    for lock in taken.values():
        lock.release()
    return {}
