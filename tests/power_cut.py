"""Power failures on a disk that writes nothing by itself: what is not synced is lost.

`record` runs a job and notes after each of its file operations what the disk holds if the power
fails then. Contents are those of the file's last sync, empty if there was none. Names are either
all there, as a journal may write them early ("kept"), or those of the folder's last sync ("lost").
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Disk = dict[str, bytes | None]  # contents of the files by their path; None for a folder
# The names in a folder: inode, and whether it is a folder.
Names = dict[str, tuple[int, bool]]

OPERATIONS = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.truncate",
}
# An audit hook cannot be removed from a process.
_hooks: list[Callable[[str, tuple], None]] = []


class Recorder:
    """The disk below a folder while a job runs."""

    def __init__(self, root: Path):
        self.root = root
        self.contents: dict[int, bytes] = {}  # synced, by inode
        self.names: dict[int, Names] = {}
        self.pinned: list[
            int
        ] = []  # open files of synced inodes, so that their numbers are not used again
        self.cuts: list[dict[str, Disk]] = []  # after each operation
        self.pause = False
        self.names[root.stat().st_ino] = {}

    def hook(self, event: str, args: tuple) -> None:
        writes = (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (
            not self.pause
            and (writes or event in OPERATIONS)
            and str(args[0]).startswith(str(self.root))
        ):
            self.note()

    def note(self) -> None:
        """Before an operation, that is after the one before it."""
        self.pause = True
        kept: Disk = {}
        for folder, _, files in os.walk(self.root):
            kept |= {folder: None}
            kept |= {
                f"{folder}/{file}": self.contents.get(
                    os.stat(f"{folder}/{file}").st_ino, b""
                )
                for file in files
            }
        self.cuts.append(
            {
                "kept": kept,
                "lost": dict(self.synced(str(self.root), self.root.stat().st_ino)),
            }
        )
        self.pause = False

    def synced(self, path: str, number: int) -> Iterator[tuple[str, bytes | None]]:
        yield path, None
        for name, (inside, is_folder) in self.names.get(number, {}).items():
            if is_folder:
                yield from self.synced(f"{path}/{name}", inside)
            else:
                yield f"{path}/{name}", self.contents.get(inside, b"")

    def fsync(self, number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if not path.is_relative_to(self.root):
            return
        self.note()
        self.pause = True
        self.pinned.append(os.dup(number))
        status = os.fstat(number)
        if path.is_dir():
            self.names[status.st_ino] = {
                e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)
            }
        else:
            self.contents[status.st_ino] = path.read_bytes()
        self.pause = False


@contextmanager
def recorded(root: Path, monkeypatch: Any) -> Iterator[Recorder]:
    recorder = Recorder(root)
    if not _hooks:
        sys.addaudithook(lambda event, args: _hooks[-1](event, args))
    _hooks.append(recorder.hook)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", recorder.fsync)
            yield recorder
            recorder.note()
    finally:
        _hooks[:] = [lambda event, args: None]
        for number in recorder.pinned:
            os.close(number)


def restore(disk: Disk, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for path, contents in disk.items():
        if contents is None:
            Path(path).mkdir(parents=True)
        else:
            Path(path).write_bytes(contents)


def cut_everywhere(
    root: Path,
    job: Callable[[], None],
    result: Callable[[], Any],
    monkeypatch: Any,
    every: int = 1,
) -> dict[str, int]:
    """Runs `job` in `root`, cuts the power after each `every`-th file operation, runs it again on
    what the disk holds, and compares the result with that of the first run. Equal disks are tried
    once."""
    root.mkdir()
    with recorded(root, monkeypatch) as recorder:
        job()
    expected = result()
    tried = set[int]()
    restore(recorder.cuts[-1]["lost"], root)
    assert result() == expected, "what is finished is on the disk"
    # Those around the record, which is written near the end, are always tried.
    chosen = {*range(0, len(recorder.cuts), every), *range(len(recorder.cuts))[-3:]}
    for number in sorted(chosen):
        for names, disk in recorder.cuts[number].items():
            if (key := hash(frozenset(disk.items()))) in tried:
                continue
            tried.add(key)
            restore(disk, root)
            job()
            assert result() == expected, f"after operation {number}, names {names}"
    return {
        "operations": len(recorder.cuts),
        "cuts": 2 * len(chosen),
        "disks": len(tried),
    }
