"""Where an artifact comes from, and which artifacts no run needs."""

import glob
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from alpro.artifact import RECORD
from alpro.errors import InputError
from alpro.files import read_json
from alpro.pipeline.store.artifacts import Store, acquired

Artifact = tuple[Path, dict[str, Any]]  # its folder and its record


def current_folder() -> str:
    """The folder to which the paths of a command are relative, for its repetition: relative to the checkout that this
    code is in, so that it holds for a clone of it too; absolute outside of the checkout."""
    checkout, folder = Path(__file__).parents[2], Path.cwd()
    inside = (checkout / ".git").exists() and folder.is_relative_to(checkout)
    return folder.relative_to(checkout).as_posix() if inside else str(folder)


def lineage(store: Store, record: dict[str, Any]) -> list[Artifact]:
    """The artifact and all that it was built from, inputs before their users.

    Raises InputError if one of them is not in the store.
    """
    present = {found["fingerprint"]: (folder, found) for folder, found in store.all()}
    ordered: dict[str, Artifact] = {}

    def visit(fingerprint: str, user: str) -> None:
        if fingerprint in ordered:
            return
        if fingerprint not in present:
            raise InputError(f"{fingerprint[:16]}, an input of {user}, is not in {store.root}")
        _, found = present[fingerprint]
        for source in found["inputs"].values():
            visit(source["fingerprint"], found["name"])
        ordered[fingerprint] = present[fingerprint]

    visit(record["fingerprint"], "")
    return list(ordered.values())


def required_by(records: Iterable[Mapping[str, Any]], kept: Iterable[str]) -> set[str]:
    """The fingerprints of `kept`, and of everything that these were built from as far as it is in `records`."""
    inputs = {
        record["fingerprint"]: [source["fingerprint"] for source in record["inputs"].values()] for record in records
    }
    required, left = set(), list(kept)
    while left:
        if (one := left.pop()) not in required:
            required.add(one)
            left += inputs.get(one, [])
    return required


@dataclass(frozen=True)
class Unneeded:
    """A folder of the store that can be removed: an artifact, or unfinished work (without a record)."""

    folder: Path
    record: dict[str, Any] | None
    size: int  # bytes that its removal frees

    @property
    def name(self) -> str:
        return self.record["name"] if self.record else f"{self.folder.parent.name}, unfinished"


def unneeded(store: Store, kept: set[str], known: set[str]) -> list[Unneeded]:
    """The artifacts and the unfinished work in the store that those of the fingerprints `kept` do not need, newest
    first, so that users are before their inputs.

    known: the fingerprints to choose from: others may belong to runs that are logged elsewhere.
    """
    artifacts = store.all()
    required = required_by((record for _, record in artifacts), kept)
    finished = {folder for folder, _ in artifacts}
    others = [(folder, None) for folder in store.root.glob("*/*") if folder.is_dir() and folder not in finished]
    names = {fingerprint[:16] for fingerprint in known} - {fingerprint[:16] for fingerprint in required}
    chosen = [(folder, record) for folder, record in [*others, *reversed(artifacts)] if folder.name in names]
    sizes = sizes_of([folder for folder, _ in chosen], freed=True)
    return [Unneeded(folder, record, size) for (folder, record), size in zip(chosen, sizes, strict=True)]


def sizes_of(folders: list[Path], freed: bool = False) -> list[int]:
    """The bytes of each folder. A file with several hard links counts in the first folder that has one.

    freed: the bytes that removing the folders frees: such a file counts with its last link, and not at all if a link
    outside of the folders keeps it.
    """
    links: dict[tuple[int, int], int] = {}
    sizes = []
    for folder in folders:
        size = 0
        for status in regular_files(folder):
            file = status.st_dev, status.st_ino
            links[file] = links.get(file, 0) + 1
            if links[file] == (status.st_nlink if freed else 1):
                size += status.st_size
        sizes.append(size)
    return sizes


def regular_files(folder: Path) -> Iterator[os.stat_result]:
    """The status of each file in a folder; links to files elsewhere occupy nothing."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink() and path.is_file():
            yield path.stat()


def occupied(workspace: Path) -> dict[str, int]:
    """The bytes of each file and folder of a workspace, largest first. A file with several hard links counts once."""
    places = sorted(workspace.iterdir())
    sizes = sizes_of(places)
    return dict(sorted(((p.name, size) for p, size in zip(places, sizes, strict=True)), key=lambda pair: -pair[1]))


def leftovers(workspace: Path, gone: set[str]) -> list[Path]:
    """Files of a workspace that nothing needs while nothing runs: reports with an artifact of the fingerprints `gone`,
    interrupted downloads, and temporary files of killed processes."""
    fetched = sorted((workspace / "artifacts" / ".fetched").glob("*/*"))
    return [*reports_of(workspace, gone), *fetched, *sorted(workspace.rglob(".*.part"))]


def reports_of(workspace: Path, fingerprints: set[str]) -> Iterator[Path]:
    """The files of the reports of runs with one of these artifacts."""
    for summary in sorted((workspace / "reports").glob("*.json")):
        try:
            steps = {step["fingerprint"] for step in read_json(summary)["steps"]}
        except (ValueError, KeyError, TypeError):  # something else
            continue
        if steps & fingerprints:
            yield from sorted(workspace.glob(f"reports/{glob.escape(summary.stem)}.*"))


def remove(store: Store, items: list[Unneeded], files: Iterable[Path] = ()) -> None:
    """Removes folders of the store, and `leftovers`. Raises InputError if a stage is being built, before anything is
    removed: it reads artifacts that only its own record, which is written last, will name. If one starts in the
    meantime, the rest stays."""
    for item in items:
        check_locks(store)
        with FileLock(item.folder.with_suffix(".lock")):  # a run that needs it now waits, and builds it again
            if item.folder.is_dir():
                (item.folder / RECORD).unlink(missing_ok=True)  # first, so that no incomplete artifact remains
                shutil.rmtree(item.folder)
    check_locks(store)
    for file in files:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def check_locks(store: Store) -> None:
    """Raises InputError if a process holds the lock of an artifact."""
    for path in store.root.glob("*/*.lock"):
        lock = FileLock(path)
        if not acquired(lock):
            raise InputError(f"{path.parent.name}/{path.stem} is being built; run this command when it is done")
        lock.release()
