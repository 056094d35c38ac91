"""Steps and the store of their artifacts: finds and makes them, knows what each was built from, and
removes them.

The result of a stage is a folder, `<root>/<stage>/<fingerprint>`, which becomes an artifact when
its record, artifact.json, is written last. Until then the folder contains unfinished work, which
the next run with the same fingerprint resumes.
"""

import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock
from huggingface_hub import constants

from alpro.artifact import (
    RECORD,
    Record,
    Source,
    artifacts,
    check_artifact,
    check_record,
    digest_of,
    read_record,
)
from alpro.errors import InputError
from alpro.files import make_folder, sync, sync_tree, write_json
from alpro.locks import acquire
from alpro.pipeline.config.pipeline_config import FILES_OR_NAMES
from alpro.pipeline.store.checksums import UNFINISHED, describe_contents
from alpro.shards.ffmpeg_decoder import ffmpeg_version
from alpro.shards.storage import Location, absolute, located
from alpro.stages.execution.interface import STOP, Outcome, StageConfig

LOCK_SECONDS = 0.2  # between two looks at a lock
PACKAGES = ["alpro-pipeline", "torch", "transformers", "tokenizers", "webdataset"]
PACKAGES += ["av", "spacy", "numpy", "pillow", "pyarrow"]

Artifact = tuple[Path, Record]  # its folder and its record


@dataclass(frozen=True)
class Step:
    """A stage with everything that determines its result, and so its fingerprint."""

    stage: str
    name: str  # name for users: the stage, and the corpus if there are several
    config: StageConfig
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    # SHA-256 or version of outside files, by name or STAGE.KEY.
    files: Mapping[str, str] = field(default_factory=dict)
    # Inputs that no step builds, such as a model folder of the user's. Only their digests in
    # `files` count.
    paths: Mapping[str, Location] = field(default_factory=dict)
    # The user's files that an input in `paths` was imported from.
    sources: Mapping[str, Location] = field(default_factory=dict)
    unchanged: Callable[[], bool] | None = None  # whether the local outside files are unchanged
    # Why the outside files cannot be read on this machine; the step cannot run then.
    missing: str = ""

    def needs(self, other: "Step") -> bool:
        """Whether the other's artifact is an input of this step, or of one of its inputs."""
        return any(step.name == other.name or step.needs(other) for step in self.inputs.values())

    @property
    def module(self) -> ModuleType:
        return import_module(f"alpro.stages.{self.stage}")

    @cached_property
    def fingerprint(self) -> str:
        return digest_of(self._recipe())

    @property
    def description(self) -> Record:
        """The artifact's record as it is known before the stage runs."""
        paths = {**self.sources, **self.paths}
        return replace(
            self._recipe(),
            name=self.name,
            fingerprint=self.fingerprint,
            paths={name: str(absolute(path)) for name, path in paths.items()},
        )

    def _recipe(self) -> Record:
        """What the fingerprint is the digest of."""
        inputs = {name: Source(step.stage, step.fingerprint) for name, step in self.inputs.items()}
        return Record(
            stage=self.stage,
            stage_version=self.module.VERSION,
            config=self.config.model_dump(mode="json"),
            inputs=inputs,
            files=dict(self.files),
        )


class Store:
    """The folder of all artifacts."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, step: Step) -> Path:
        return self.root / step.stage / step.fingerprint[:16]

    def find(self, step: Step) -> Record | None:
        """The record of a step's artifact, None if there is none. Raises InputError if the record
        was changed."""
        record = read_record(self.folder(step))
        if record is not None:
            check_record(self.folder(step), record)
        return record

    def all(self) -> list[Artifact]:
        """Every artifact with its record, oldest first."""
        return artifacts(self.root)

    @contextmanager
    def lock(self, step: Step, announce: Callable[[str], None] | None = None) -> Iterator[FileLock]:
        """Locks a step's folder for writing. Of two runs with the same fingerprint, the second
        announces that it waits, and reads the artifact of the first. Raises InputError if the
        store's folder is not writable, and Stopped."""
        folder = self.folder(step)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            make_folder(folder.parent)
            while not acquire(lock, blocking=False):
                if announce:
                    announce(f"{step.name}: waiting for another run to build it")
                # Once, however long it waits.
                announce = None
                STOP.get().wait(LOCK_SECONDS)
        except OSError as error:
            raise InputError(f"{folder.parent}: {error.strerror}") from error

        try:
            yield lock
        finally:
            lock.release()

    def make(
        self, step: Step, work: Callable[[Step, Path], Outcome], run_info: Mapping[str, Any]
    ) -> Record:
        """Runs `work` in the step's folder, then writes the record that completes the artifact.
        Call under `lock`.

        `run_info` is the caller's information about this run (commit, run ids). Returns the record.
        Raises InputError if the step's input files change during the run.
        """
        folder = self.folder(step)
        make_folder(folder)
        started = time.monotonic()
        outcome = work(step, folder)
        seconds = round(time.monotonic() - started, 1)

        # The fingerprint has the digests of the files as they were before.
        if step.unchanged and not step.unchanged():
            # Results from the changed files must not be reused if the files are restored.
            for name in UNFINISHED:
                shutil.rmtree(folder / name, ignore_errors=True)
            files = " or ".join(map(str, (step.sources or step.paths).values()))
            raise InputError(
                f"{step.name}: its input files changed during the run ({files}); run again"
            )
        return write_record(folder, step.description, outcome, {"seconds": seconds, **run_info})

    def lineage(self, record: Record) -> list[Artifact]:
        """The artifact and all that it was built from and that was not removed since, inputs before
        their users."""
        present = {other.fingerprint: (folder, other) for folder, other in self.all()}
        ordered: dict[str, Artifact] = {}

        def visit(fingerprint: str) -> None:
            # A removed artifact has no record: what it was built from is not known.
            if fingerprint in present and fingerprint not in ordered:
                _, built = present[fingerprint]
                for source in built.inputs.values():
                    visit(source.fingerprint)
                ordered[fingerprint] = present[fingerprint]

        visit(record.fingerprint)
        return list(ordered.values())

    def unreachable(self, kept: Iterable[str] = ()) -> list[Artifact]:
        """The artifacts that no kept one was built from, newest first, so that users come before
        their inputs.

        kept: fingerprints; by default the newest artifact of each name.
        """
        present = self.all()
        # Oldest first: of a name, the newest record wins.
        newest = {record.name: record.fingerprint for _, record in present}
        inputs = {record.fingerprint: record.inputs.values() for _, record in present}

        reached: set[str] = set()
        pending = [*kept] or [*newest.values()]
        while pending:
            fingerprint = pending.pop()
            if fingerprint not in reached:
                reached.add(fingerprint)
                pending += [source.fingerprint for source in inputs.get(fingerprint, ())]

        return [
            (folder, record)
            for folder, record in reversed(present)
            if record.fingerprint not in reached
        ]

    def unfinished(self) -> list[Path]:
        """The folders of interrupted stages: they have no record, and the same stage continues in
        them."""
        finished = {folder for folder, _ in self.all()}

        return [
            folder
            for folder in sorted(self.root.glob("*/*"))
            if folder.is_dir() and folder not in finished
        ]

    def is_elsewhere(self, folder: Path) -> bool:
        """Whether a folder is a link to another place, or in one. Such a folder is never
        removed."""
        return not folder.resolve().is_relative_to(self.root.resolve())

    def remove(self, folders: Iterable[Path]) -> None:
        """Removes folders, in this order.

        Raises InputError, before it removes a folder, if that is outside of the store, or if a
        stage is being built: it reads artifacts that only its own record, which is written last,
        will name. Also if the store cannot be written.
        """
        for folder in folders:
            try:
                self._remove(folder)
            except OSError as error:
                raise InputError(f"{folder}: cannot be removed: {error.strerror}") from error

    def _remove(self, folder: Path) -> None:
        if self.is_elsewhere(folder):
            raise InputError(
                f"{folder}: is outside of {self.root}, at {folder.resolve()}; remove it there"
            )

        for path in self.root.glob("*/*.lock"):
            lock = FileLock(path)
            if not acquire(lock, blocking=False):
                raise InputError(
                    f"{path.parent.name}/{path.stem} is being built; run this command when it is "
                    f"done"
                )
            lock.release()

        # A run that needs the artifact now waits, and builds it again.
        with FileLock(folder.with_suffix(".lock")):
            # First, so that no record describes an incomplete folder.
            (folder / RECORD).unlink(missing_ok=True)
            # Also after a power failure.
            sync(folder)
            shutil.rmtree(folder)


def check_inputs(locations: Iterable[Location | str]) -> None:
    """Raises InputError if a file of an artifact that a stage is about to read is not as
    recorded."""
    for location in locations:
        folder = located(str(location))
        if isinstance(folder, Path):
            check_artifact(folder)


def write_record(
    folder: Path, description: Record, outcome: Outcome, run_info: Mapping[str, Any]
) -> Record:
    """Writes the record that completes an artifact, and deletes files that only a resumed run
    needs.

    Returns the record. It has the sizes and SHA-256 of all files, of which only those are read that
    the stage has not hashed.
    """
    record = replace(
        description,
        counts=outcome.counts,
        metrics=outcome.metrics,
        warnings=outcome.warnings,
        precision=outcome.precision,
        contents=describe_contents(folder, outcome.sha256),
        versions=versions() | hub_commits(description),
        run={"at": time_after(folder.parent.parent), **run_info},
    )

    values = record.to_json()
    # The files are on the disk before the record that says so.
    sync_tree(folder)
    write_json(folder / RECORD, values)

    # Only now: without the record, the stage would continue from these.
    for name in UNFINISHED:
        shutil.rmtree(folder / name, ignore_errors=True)
    for stale in folder.rglob(".*.part"):  # of killed processes
        stale.unlink(missing_ok=True)
    return Record.of(values)


def time_after(root: Path) -> str:
    """The time of a new record: now, but after all others of the store. Their order is that in
    which artifacts were built, also if the clock was set back between two of them."""
    now = datetime.now(UTC).replace(microsecond=0)
    times = [record.run["at"] for _, record in artifacts(root) if "at" in record.run]
    newest = datetime.fromisoformat(max(times)) if times else now
    if newest.tzinfo is None:
        newest = newest.replace(tzinfo=UTC)

    return (newest + timedelta(seconds=1) if now < newest else now).isoformat()


def versions() -> dict[str, str]:
    """Versions of Python, of the installed packages that affect results, and of ffmpeg."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)

    # Optional: PyAV has its own libraries; the binary decodes the files that they cannot.
    with suppress(InputError):
        installed["ffmpeg"] = ffmpeg_version()
    return installed


def hub_commits(description: Record) -> dict[str, str]:
    """By STAGE.KEY, the commits of the hub's models that a stage names without a revision, as its
    cache has them."""
    commits: dict[str, str] = {}
    for stage, key in FILES_OR_NAMES:
        setting = f"{stage}.{key}"
        if stage != description.stage or setting in description.files:
            continue

        model = description.config.get(key, "")
        # A timm model is named without its organisation.
        for name in (model, f"timm/{model}"):
            repository = f"models--{name.replace('/', '--')}"
            # The commit that a name without a revision stands for.
            head = Path(constants.HF_HUB_CACHE, repository, "refs", "main")
            if head.is_file():
                commits[setting] = head.read_text()

    return commits
