"""Stages, fingerprints and the store of artifacts.

A stage is a module of `alpro.stages` with VERSION, a frozen `Config`, and `run(config, inputs, out, resources) ->
Outcome`. Its result is a folder, `<root>/<stage>/<fingerprint>`, which becomes an artifact when its record,
artifact.json, is written last. Until then the folder contains unfinished work, which the next run with the same
fingerprint resumes.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from alpro.artifact import RECORD, RECORD_VERSION, SUM, check_artifact, check_record, read_record, sum_of
from alpro.artifact_names import artifacts
from alpro.errors import InputError
from alpro.files import digest, make_folder, publish, read_json, sync_tree, temporary_name, write_json
from alpro.pipeline.store.checksums import UNFINISHED, describe_contents, files_of
from alpro.pipeline.store.hardware import hardware
from alpro.pipeline.store.sharing import fetch, is_shared, send, shared_records
from alpro.shards.decoding.ffmpeg_binary import ffmpeg_version
from alpro.shards.storage import DISK_FULL, Location, absolute, join, located
from alpro.stages import STAGES
from alpro.stages.execution.interface import CHANGED, Outcome, StageConfig
from alpro.stages.execution.stop import STOP

SESSIONS = "sessions.json"  # the time that unfinished sessions took; of this machine
NOT_READ = {"units.parquet", "metrics.jsonl"}  # files of an artifact that no other stage reads
LOCK_SECONDS = 0.2  # between two looks at a lock
PACKAGES = ["alpro-pipeline", "torch", "transformers", "tokenizers", "webdataset"]
PACKAGES += ["av", "spacy", "numpy", "pillow", "pyarrow"]


@dataclass(frozen=True)
class Step:
    """A stage with everything that determines its result, and so its fingerprint."""

    stage: str
    name: str  # name for users: the stage, and the corpus if there are several
    config: StageConfig
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # external files: name to SHA-256
    paths: Mapping[str, Location] = field(default_factory=dict)  # their locations; not part of the fingerprint
    unchanged: Callable[[], bool] | None = None  # whether the local external files are unchanged
    source: str = ""  # SHA-256 of a corpus's manifest or annotation files; not part of the fingerprint
    missing: str = ""  # why the external files cannot be read on this machine; the step cannot run then

    @property
    def blocked(self) -> str:
        """Why this step cannot run on this machine: external files of it, or of an input, cannot be read."""
        return self.missing or next((f"needs {s.name}" for s in self.inputs.values() if s.blocked), "")

    @property
    def module(self) -> ModuleType:
        return import_module(f"alpro.stages.{self.stage}")

    @cached_property
    def fingerprint(self) -> str:
        return self.fingerprint_of("")

    def fingerprint_of(self, file: str) -> str:
        """SHA-256 of what determines one file of the result, "" for all files."""
        inputs = {name: step.fingerprint_of(self.reads(name)) for name, step in self.inputs.items()}
        return fingerprint(self.stage, self.config, inputs, self.files, file)

    def reads(self, name: str) -> str:
        """The only file that the stage reads of an input; empty: it may read all of them."""
        return STAGES[self.stage].reads.get(name, "") if self.stage in STAGES else ""

    @property
    def description(self) -> dict[str, Any]:
        """The part of the artifact record that is known before the stage runs."""
        return {
            "version": RECORD_VERSION,
            "stage": self.stage,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "stage_version": self.module.VERSION,
            "config": self.config.recorded(),
            "inputs": {name: self._input(name, step) for name, step in self.inputs.items()},
            "files": dict(self.files),
            "paths": {name: str(absolute(path)) for name, path in self.paths.items()},
            "source": self.source,
        }

    def _input(self, name: str, step: "Step") -> dict[str, str]:
        part = {"part": step.fingerprint_of(file)} if (file := self.reads(name)) else {}
        return {"stage": step.stage, "fingerprint": step.fingerprint, **part}


def fingerprint(
    stage: str, config: StageConfig, inputs: Mapping[str, str], files: Mapping[str, str], file: str = ""
) -> str:
    """SHA-256 of everything that determines a result, or one file of it; inputs and files map names to fingerprints or
    SHA-256."""
    version, values = import_module(f"alpro.stages.{stage}").VERSION, config.determining(files)
    if (keys := config.keys_of(file)) is not None:
        values, files = ({key: found[key] for key in keys & found.keys()} for found in (values, files))
    return digest({"stage": stage, "version": version, "config": values, "inputs": dict(inputs), "files": dict(files)})


def inputs_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What the fingerprint of a record depends on: the fingerprint of each input, or of the file that is read of it."""
    return {name: source.get("part", source["fingerprint"]) for name, source in record["inputs"].items()}


def output_of(record: dict[str, Any] | None, file: str = "") -> str:
    """The digest of the files of an artifact that other stages read, or of one of them; empty if there is none."""
    contents = (record or {}).get("contents", {})
    read = {name: about["sha256"] for name, about in contents.items() if is_read(name) and file in ("", name)}
    return digest(read) if read else ""


def is_read(name: str) -> bool:
    """Whether another stage may read this file of an artifact."""
    return name not in NOT_READ and "pictures/" not in name


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted keys; lists of tables are numbered.

    >>> flatten({"a": {"b": 1}, "c": [{"d": 2}]})
    {'a.b': 1, 'c.0.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Store:
    """The folder of all artifacts, and optionally a place that machines share."""

    def __init__(self, root: Path, shared: str = ""):
        self.root = root
        self.shared = located(shared) if shared else None

    def folder(self, step: Step) -> Path:
        return self.root / step.stage / step.fingerprint[:16]

    def find(self, step: Step) -> dict[str, Any] | None:
        """The record of a step's artifact, None if there is none. Raises InputError if the record was changed."""
        record = read_record(self.folder(step))
        if record is not None:
            check_record(self.folder(step), record)
        return record

    def place(self, step: Step) -> Location | None:
        """The location of a step's artifact in the shared place; None without a shared place."""
        return join(self.shared, f"{step.stage}/{step.fingerprint[:16]}") if self.shared else None

    def is_shared(self, step: Step) -> bool:
        """Whether a step's artifact is in the shared place."""
        place = self.place(step)
        with self._store_errors():
            return place is not None and is_shared(place)

    def fetch(self, step: Step) -> dict[str, Any] | None:
        """Downloads a step's artifact from the shared place and returns its record; None if it is not there. Call under
        `lock`."""
        place, folder = self.place(step), self.folder(step)
        with self._store_errors():
            if place is None or not fetch(place, folder, self.root / ".fetched" / step.stage):
                return None
        record = read_record(folder)
        if record is None or record["fingerprint"] != step.fingerprint or record.get(SUM) != sum_of(record):
            shutil.rmtree(folder)
            raise InputError(f"{place}: not the artifact of {step.name}; delete it to rebuild the artifact")
        return record

    def share(self, step: Step) -> str:
        """Uploads a step's artifact to the shared place, unless it is there. Returns an error message or an empty
        string; after an error the artifact remains here, and the next run uploads it."""
        place = self.place(step)
        if place is not None:
            try:
                send(self.folder(step), place)
            except (OSError, InputError) as error:
                return f"upload to {self.shared} failed, the next run retries it: {error}"
        return ""

    def records(self, stage: str) -> Iterator[dict[str, Any]]:
        """The records of a stage's artifacts, here and in the shared place."""
        yield from (record for _, record in artifacts(self.root, f"{stage}/*"))
        if self.shared:
            with self._store_errors():
                shared = list(shared_records(join(self.shared, stage)))
            yield from (record for record in shared if record.get("version") == RECORD_VERSION)

    def adopt(self, step: Step) -> dict[str, Any] | None:
        """Makes a step's artifact from one of the same stage that differs only in which inputs it had, if their files
        are equal byte for byte: the files are linked. Returns the record; None if there is no such artifact.

        So if a stage runs again and its output is the same, the stages after it do not run. Call under `lock`.
        """
        outputs = {name: output_of(self.find(other), step.reads(name)) for name, other in step.inputs.items()}
        if not outputs or not all(outputs.values()):
            return None
        description, decisive = step.description, step.config.determining(step.files)
        for folder, record in self.all():
            if any(record[key] != description[key] for key in ("stage", "stage_version", "files")):
                continue
            try:
                config = type(step.config).model_validate(record["config"])
            except ValidationError:  # it has keys of another version
                continue
            if config.determining(step.files) != decisive:
                continue
            before = {
                name: output_of(read_record(self.root / source["stage"] / source["fingerprint"][:16]), step.reads(name))
                for name, source in record["inputs"].items()
            }
            if before == outputs:
                check_artifact(folder)
                return self._link(folder, record | description, self.folder(step))
        return None

    def _link(self, source: Path, record: dict[str, Any], folder: Path) -> dict[str, Any]:
        temporary = temporary_name(folder)
        for name, file in files_of(source).items():
            make_folder((temporary / name).parent)
            try:
                os.link(file, temporary / name)
            except OSError:  # links are not supported, or the file has too many
                shutil.copyfile(file, temporary / name)
        record[SUM] = sum_of(record)
        write_json(temporary / RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)  # unfinished work
        publish(temporary, folder)
        return record

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise InputError(f"resources.artifacts = {self.shared}: {error}") from error

    def all(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every artifact with its record, oldest first."""
        return artifacts(self.root)

    @contextmanager
    def lock(self, step: Step, announce: Callable[[str], None] | None = None) -> Iterator[FileLock]:
        """Locks a step's folder for writing. Of two runs with the same fingerprint, the second announces that it waits,
        and reads the artifact of the first. Raises InputError if the store's folder is not writable, and Stopped."""
        folder = self.folder(step)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            make_folder(folder.parent)
            while not acquired(lock):
                if announce:
                    announce(f"{step.name}: waits for another run that makes it")
                announce = None
                STOP.get().wait(LOCK_SECONDS)
        except OSError as error:
            raise InputError(f"{folder.parent}: {error.strerror}") from error
        try:
            yield lock
        finally:
            lock.release()

    def make(self, step: Step, work: Callable[[Step, Path], Outcome], run_info: dict[str, Any]) -> dict[str, Any]:
        """Runs `work` in the step's folder, then writes the record that completes the artifact. Call under `lock`.

        `run_info` is the caller's information about this run (commit, run ids). Returns the record. Raises InputError
        if the step's input files change during the run.
        """
        folder = self.folder(step)
        make_folder(folder)
        with stopwatch(folder) as seconds:
            outcome = work(step, folder)
        if step.unchanged and not step.unchanged():
            for name in UNFINISHED:  # results from the changed files must not be reused if the files are restored
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(folder / CHANGED, {})
            where = " or ".join(str(path) for path in step.paths.values())
            raise InputError(f"{step.name}: its input files changed during the run ({where}); run again")
        (folder / CHANGED).unlink(missing_ok=True)
        return write_record(folder, step.description, outcome, {"seconds": seconds(), **run_info})


def check_inputs(locations: Iterable[Location | str]) -> None:
    """Raises InputError if a file of an artifact that a stage is about to read is not as recorded."""
    for location in locations:
        if isinstance(folder := located(str(location)), Path):
            check_artifact(folder)


@contextmanager
def stopwatch(folder: Path) -> Iterator[Callable[[], float]]:
    """Yields what gives the seconds since the start, and those of earlier sessions that did not finish the artifact. A
    session that was killed ended when it last wrote a file."""
    file, started, earlier = folder / SESSIONS, time.time(), 0.0
    with suppress(OSError, ValueError, KeyError, TypeError):
        last = read_json(file)
        earlier = float(last["seconds"])
        if since := last["running_since"]:  # it was killed
            wrote = max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=since)
            earlier += max(0.0, min(wrote, started) - since)

    def note(running_since: float | None) -> None:
        with suppress(OSError):  # a full disk: the stage itself reports it
            write_json(file, {"seconds": seconds(), "running_since": running_since})

    def seconds() -> float:
        return round(earlier + time.time() - started, 1)

    note(started)
    try:
        yield seconds
    finally:
        note(None)


def acquired(lock: FileLock) -> bool:
    """Acquires a lock if it is free."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def lock_number(lock: FileLock) -> int:
    """The open file of a lock that is held, for child processes to inherit: it is free when all of them have ended."""
    number = lock._context.lock_file_fd
    assert number is not None
    return number


def write_record(
    folder: Path, description: dict[str, Any], outcome: Outcome, run_info: dict[str, Any]
) -> dict[str, Any]:
    """Writes the record that completes an artifact, and deletes files that only a resumed run needs. Returns the
    record. It has the sizes and SHA-256 of all files, of which only those are read that the stage has not hashed."""
    record = {
        **description,
        "counts": outcome.counts,
        "metrics": outcome.metrics,
        "warnings": outcome.warnings,
        "precision": outcome.precision,
        "contents": describe_contents(folder, outcome.sha256),
        "versions": versions(),
        "run": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "hardware": hardware(), **run_info},
    }
    sync_tree(folder)
    record[SUM] = sum_of(record)
    write_json(folder / RECORD, record)
    (folder / SESSIONS).unlink(missing_ok=True)
    for name in UNFINISHED:
        shutil.rmtree(folder / name, ignore_errors=True)
    for stale in folder.rglob(".*.part"):  # of killed processes
        stale.unlink(missing_ok=True)
    return record


def versions() -> dict[str, str]:
    """Versions of Python, of the installed packages that affect results, and of ffmpeg."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    with suppress(InputError):  # optional: PyAV has its own libraries; the binary decodes the files that they cannot
        installed["ffmpeg"] = ffmpeg_version()
    return installed
