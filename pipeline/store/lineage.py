"""What an artifact was built from, which artifacts the newest results need, and removal of the others."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from alpro.artifact import RECORD
from alpro.errors import InputError
from alpro.files import sync
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


def unreachable(artifacts: list[Artifact], kept: Iterable[str] = ()) -> list[Artifact]:
    """The artifacts that no kept one was built from, newest first, so that users come before their inputs.

    artifacts: all of a store, oldest first. kept: fingerprints; by default the newest artifact of each name.
    """
    newest = {record["name"]: record["fingerprint"] for _, record in artifacts}
    inputs = {record["fingerprint"]: record["inputs"].values() for _, record in artifacts}
    reached, left = set(), [*kept] or [*newest.values()]
    while left:
        if (one := left.pop()) not in reached:
            reached.add(one)
            left += [source["fingerprint"] for source in inputs.get(one, ())]
    return [(folder, record) for folder, record in reversed(artifacts) if record["fingerprint"] not in reached]


def unfinished(store: Store) -> list[Path]:
    """The folders of interrupted stages: they have no record, and the same stage continues in them."""
    finished = {folder for folder, _ in store.all()}
    return [folder for folder in sorted(store.root.glob("*/*")) if folder.is_dir() and folder not in finished]


def is_elsewhere(store: Store, folder: Path) -> bool:
    """Whether a folder of the store is a link to another place, or in one. Such a folder is never removed."""
    return not folder.resolve().is_relative_to(store.root.resolve())


def remove(store: Store, folders: Iterable[Path]) -> None:
    """Removes folders of the store, in this order.

    Raises InputError, before it removes a folder, if that is outside of the store, or if a stage is being built: it
    reads artifacts that only its own record, which is written last, will name.
    """
    for folder in folders:
        if is_elsewhere(store, folder):
            raise InputError(f"{folder}: is outside of {store.root}, at {folder.resolve()}; remove it there")
        for path in store.root.glob("*/*.lock"):
            lock = FileLock(path)
            if not acquired(lock):
                raise InputError(f"{path.parent.name}/{path.stem} is being built; run this command when it is done")
            lock.release()
        with FileLock(folder.with_suffix(".lock")):  # a run that needs it now waits, and builds it again
            (folder / RECORD).unlink(missing_ok=True)  # first, so that no record describes an incomplete folder
            sync(folder)
            shutil.rmtree(folder)


def sizes_of(folders: Iterable[Path]) -> list[int]:
    """The bytes of each folder. A file with several hard links counts in the first folder that has one."""
    seen: set[tuple[int, int]] = set()
    sizes = []
    for folder in folders:
        files = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        new = {(file.st_dev, file.st_ino): file.st_size for file in files if (file.st_dev, file.st_ino) not in seen}
        seen |= new.keys()
        sizes.append(sum(new.values()))
    return sizes
