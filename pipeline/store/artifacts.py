"""The store of artifacts: finds, makes and removes them.

The result of a stage is a folder, `<root>/<stage>/<fingerprint>`, which becomes an artifact when
its record, artifact.json, is written last. Until then the folder contains unfinished work, which
the next run with the same fingerprint resumes.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from alpro.artifact import (
    RECORD,
    Artifact,
    Record,
    Source,
    artifacts,
    check_record,
    read_record,
)
from alpro.errors import InputError
from alpro.files import make_folder, sync, sync_tree, write_json
from alpro.locks import acquire, file_lock
from alpro.log import log
from alpro.pipeline.store.checksums import UNFINISHED, describe_contents
from alpro.stages.execution.interface import Outcome
from alpro.stages.execution.step import Step
from alpro.versions import package_versions


@dataclass(frozen=True)
class Store:
    """The folder of all artifacts."""

    root: Path

    def folder(self, step: Step) -> Path:
        return Source(step.stage, step.fingerprint).folder(self.root)

    def find(self, step: Step) -> Record | None:
        """Return the record of a step's artifact, None if there is none.

        Raises:
            InputError: If the record was changed.
        """
        folder = self.folder(step)
        record = read_record(folder)
        if record:
            check_record(folder, record)
        return record

    def artifacts(self) -> list[Artifact]:
        """Read every artifact's record. Returns the artifacts with their records, oldest first."""
        return artifacts(self.root)

    @contextmanager
    def lock(
        self,
        step: Step,
        announce: Callable[[str], None] = log.info,
        is_stopping: Callable[[], bool] | None = None,
    ) -> Iterator[FileLock]:
        """Lock a step's folder for writing. Of two runs with the same fingerprint, the second
        announces that it waits, and reads the artifact of the first.

        Raises:
            CancelledError: `is_stopping` returned True while it waited.
        """
        folder = self.folder(step)
        lock = file_lock(folder.with_suffix(".lock"))
        make_folder(folder.parent)
        if not acquire(lock, blocking=False):
            announce(
                f"{step.name}: waiting for another run to build it (`fuser {lock.lock_file}` finds it)"
            )
            if not acquire(lock, cancel_check=is_stopping):
                raise CancelledError(f"{step.name} was stopped")

        try:
            yield lock
        finally:
            lock.release()

    def make(
        self,
        step: Step,
        work: Callable[[Step, Path], Outcome],
        run_info: Mapping[str, Any],
    ) -> Record:
        """Run `work` in the step's folder, then write the record that completes the artifact.
        Call under `lock`.

        Args:
            work: makes the artifact in a folder, for a step.
            run_info: the caller's information about this run (commit, run ids).

        Returns:
            The record. It has the sizes and SHA-256 of all files, of which only those are read that
            the stage has not hashed.

        Raises:
            InputError: If the step's input files change during the run.
        """
        folder = self.folder(step)
        make_folder(folder)
        started = time.monotonic()
        outcome = work(step, folder)
        seconds = round(time.monotonic() - started, 1)

        # The fingerprint has the digests of the files as they were before.
        if step.recheck and not step.recheck():
            # Results from the changed files must not be reused if the files are restored.
            for name in UNFINISHED:
                shutil.rmtree(folder / name, ignore_errors=True)
            raise InputError(
                f"{step.name}: its input files changed during the run; run again"
            )

        # Killed processes left them. The folders are in unfinished work, which is deleted below.
        for stale in folder.rglob(".*.part"):
            if stale.is_file():
                stale.unlink()
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = replace(
            step.description,
            counts=outcome.counts,
            metrics=outcome.metrics,
            warnings=outcome.warnings,
            precision=outcome.precision,
            contents=describe_contents(folder, outcome.sha256),
            versions=package_versions() | step.hub_commits,
            run={"at": at, "seconds": seconds, **run_info},
        )

        values = record.to_json()
        # The files are on the disk before the record that lists them.
        sync_tree(folder)
        write_json(folder / RECORD, values)

        # Deleted only now: without the record, the stage would continue from these.
        for name in UNFINISHED:
            shutil.rmtree(folder / name, ignore_errors=True)
        return Record.from_json(values)

    def interrupted(self, stage: str = "*") -> list[Path]:
        """Return the folders of unfinished work, of one stage or all, that no run is writing now."""
        return [
            folder
            for folder in sorted(self.root.glob(f"{stage}/*/"))
            if not (folder / RECORD).exists() and not is_being_built(folder)
        ]

    def is_elsewhere(self, folder: Path) -> bool:
        """Return whether a folder is a link to another place, or in one. Such a folder is never
        removed."""
        return not folder.resolve().is_relative_to(self.root.resolve())

    def remove(self, folders: Collection[Path]) -> None:
        """Remove folders, in this order.

        Raises:
            InputError: Before a folder is removed: one is outside of the store, or a stage is being
                built. It reads artifacts that only its own record, which is written last, will
                name.
        """
        for folder in folders:
            if self.is_elsewhere(folder):
                raise InputError(
                    f"{folder}: is outside of {self.root}, at {folder.resolve()}; remove it there"
                )
        for path in self.root.glob("*/*.lock"):
            if is_being_built(path):
                raise InputError(
                    f"{path.parent.name}/{path.stem} is being built, or its lock is another "
                    "user's; run this command when it is done, or as that user"
                )

        for folder in folders:
            # A run that needs the artifact now waits, and builds it again.
            with file_lock(folder.with_suffix(".lock")):
                # Delete the record first, so that no record describes an incomplete folder.
                (folder / RECORD).unlink(missing_ok=True)
                # The sync keeps this order after a power failure.
                sync(folder)
                shutil.rmtree(folder)


def is_being_built(folder: Path) -> bool:
    """Return whether a run has locked the folder of a step, or may have: one of another user."""
    lock = file_lock(folder.with_suffix(".lock"))
    try:
        is_free = acquire(lock, blocking=False)
    except PermissionError:
        return True
    lock.release()
    return not is_free
