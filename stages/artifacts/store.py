"""What a stage is, what names its result, and where results lie.

A stage is a module of this package with NAME-free, plain parts: VERSION, a frozen `Config`, and
`run(config, inputs, out, resources) -> Outcome`. Its result is a folder, `<root>/<stage>/<fingerprint>`, which
becomes an artifact when artifact.json is written into it, last. Until then the folder holds unfinished work that
the next run of the same fingerprint goes on with.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.shards.ffmpeg_binary import ffmpeg_version
from alpro.shards.storage import FULL, Location, join, located
from alpro.stages.artifacts.sharing import fetch, is_shared, send

RECORD_VERSION = 1
EXIT_INPUT_ERROR = 2  # exit status of a mistake that a person can mend
EXIT_INTERRUPTED = 75  # exit status (EX_TEMPFAIL) of a run that was told to stop and left a checkpoint: start it again
UNFINISHED = ("checkpoints", "parts")  # what only a continued run reads; deleted from a finished artifact
CHANGED = "changed.json"  # in the place of the record: the stage ended, but files that it read are others now


class StageFailed(Exception):
    """A stage's process ended with an error of its own, which it has printed."""


class Interrupted(Exception):
    """A stage's process received SIGTERM and left a checkpoint. Running the stage again continues from it."""


# `json_schema_extra` of keys that name a file of the user's: one that must exist, or one that may be a name on the hub.
FILE: JsonDict = {"path": "file"}
FILE_OR_NAME: JsonDict = {"path": "file or name"}


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(StageConfig):
    """How work is divided and where it runs. Never part of a fingerprint: it does not change what is computed, except
    for the draws of dropout and stochastic depth, which each process makes for its own samples, and for rounding: the
    order of sums, compiled layers, a GPU."""

    workers: int = Field(0, ge=0, description="processes that decode and load data; 0 means one a core")
    processes: int = Field(1, ge=1, description="training processes on this machine; more than one starts torchrun")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models run; auto takes a GPU if there is one"
    )
    checkpoint_activations: bool = Field(
        False, description="training computes activations again instead of keeping them: less memory, a third more time"
    )
    compile: bool = Field(
        False, description="torch.compile of the encoders' layers for training: faster on a GPU after a minute or two"
    )
    nodes: int = Field(
        1,
        ge=1,
        description="machines that train together, each with `processes`, on shared folders; the command for the "
        "others is printed",
    )
    rendezvous: str = Field("", description="host:port of this machine, where several nodes meet")
    rank_timeout: float = Field(
        600.0, gt=0, description="seconds that training processes wait for a silent one before the job ends"
    )
    artifacts: str = Field(
        "",
        description="a folder or URL that machines share: what is made is sent there, and what is there is fetched "
        "instead of made",
    )
    profile: bool = Field(False, description="write a trace of a few training steps that Perfetto opens")
    dask: str = Field("", description="address of a Dask scheduler that decodes and tags; empty means this machine")
    checkpoint_interval: float = Field(60.0, gt=0, description="time between the checkpoints of a training run")

    @model_validator(mode="after")
    def _meeting(self) -> "Resources":
        if self.nodes > 1 and ":" not in self.rendezvous:
            raise ValueError(f"{self.nodes} nodes need a rendezvous, host:port")
        return self

    @property
    def worker_count(self) -> int:
        return self.workers or os.cpu_count() or 1


@dataclass
class Outcome:
    """What a stage found: counts of what it read and dropped, and its final metrics."""

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One stage with everything that decides its result, and so the fingerprint that names it."""

    stage: str
    name: str  # what people call it: the stage, and the corpus where there are several
    config: StageConfig
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # outside files: a name for each, and the SHA-256 of it
    paths: Mapping[str, Location] = field(default_factory=dict)  # where outside files lie; not part of the fingerprint
    unchanged: Callable[[], bool] | None = None  # whether the outside files of this machine still are what they were

    @property
    def module(self) -> ModuleType:
        return import_module(f"alpro.stages.{self.stage}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the stage, its version, its configuration, its inputs' fingerprints and its outside files."""
        if "fingerprint" not in self.__dict__:
            inputs = {name: step.fingerprint for name, step in self.inputs.items()}
            self.__dict__["fingerprint"] = fingerprint(self.stage, self.config, inputs, self.files)
        return self.__dict__["fingerprint"]

    @property
    def description(self) -> dict[str, Any]:
        """The part of the record that is known before the stage runs."""
        return {
            "version": RECORD_VERSION,
            "stage": self.stage,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "stage_version": self.module.VERSION,
            "config": self.config.model_dump(mode="json"),
            "inputs": {name: {"stage": s.stage, "fingerprint": s.fingerprint} for name, s in self.inputs.items()},
            "files": dict(self.files),
        }


def fingerprint(stage: str, config: StageConfig, inputs: Mapping[str, str], files: Mapping[str, str]) -> str:
    """SHA-256 of what decides a result; inputs and files by name, with the fingerprint or SHA-256 of each."""
    version = import_module(f"alpro.stages.{stage}").VERSION
    config_values = config.model_dump(mode="json")
    return digest(
        {"stage": stage, "version": version, "config": config_values, "inputs": dict(inputs), "files": dict(files)}
    )


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    """The folder of all artifacts, and the place that other machines share, if there is one."""

    def __init__(self, root: Path, shared: str = ""):
        self.root = root
        self.shared = located(shared) if shared else None

    def folder(self, step: Step) -> Path:
        return self.root / step.stage / step.fingerprint[:16]

    def find(self, step: Step) -> dict[str, Any] | None:
        """The record of a step's artifact, None while there is none."""
        return read_record(self.folder(step))

    def place(self, step: Step) -> Location | None:
        """Where a step's artifact lies for all machines; None where none is shared."""
        return join(self.shared, f"{step.stage}/{step.fingerprint[:16]}") if self.shared else None

    def is_shared(self, step: Step) -> bool:
        """Whether other machines' artifact of a step can be fetched."""
        place = self.place(step)
        with self._reached():
            return place is not None and is_shared(place)

    def fetch(self, step: Step) -> dict[str, Any] | None:
        """The record of a step's artifact, fetched from the shared place; None where it is not there. Call under
        `lock`."""
        place, folder = self.place(step), self.folder(step)
        with self._reached():
            if place is None or not fetch(place, folder, self.root / ".fetched" / step.stage):
                return None
        record = self.find(step)
        if record is None or record["fingerprint"] != step.fingerprint:
            shutil.rmtree(folder)
            raise InputError(f"{place}: not the artifact of {step.name}; delete it to have it made again")
        return record

    def share(self, step: Step) -> str:
        """Sends a step's artifact to the shared place, unless one is there. Returns why it could not; the artifact
        is here then all the same, and the next run sends it."""
        place = self.place(step)
        if place is not None:
            try:
                send(self.folder(step), place, but=UNFINISHED)
            except (OSError, InputError) as error:
                return f"not sent to {self.shared}, the next run tries again: {error}"
        return ""

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(f"resources.artifacts = {self.shared}: {error}") from error

    def all(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every artifact with its record, oldest first."""
        found = [(folder, read_record(folder)) for folder in self.root.glob("*/*") if folder.is_dir()]
        complete = [(folder, record) for folder, record in found if record]
        yield from sorted(complete, key=lambda pair: pair[1]["made"]["at"])

    @contextmanager
    def lock(self, step: Step) -> Iterator[FileLock]:
        """Held while a step's folder is written. Two runs of one fingerprint take turns, and the second reads the
        artifact of the first. Raises InputError if the folder of the store is not writable."""
        folder = self.folder(step)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise InputError(f"{folder.parent}: {error.strerror}") from error
        try:
            yield lock
        finally:
            lock.release()

    def make(self, step: Step, work: Callable[[Step, Path], Outcome], made: dict[str, Any]) -> dict[str, Any]:
        """Runs `work` in the step's folder, then writes the record that makes it an artifact. Call under `lock`.

        `made` is what the caller knows of this run (commit, run ids). Returns the record. Raises InputError if files
        that the fingerprint names changed meanwhile.
        """
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        outcome = work(step, folder)
        if step.unchanged and not step.unchanged():
            for name in UNFINISHED:  # what was made of a file may not be kept for when it is as it was
                shutil.rmtree(folder / name, ignore_errors=True)
            write_json(folder / CHANGED, {})
            where = " or ".join(str(path) for path in step.paths.values())
            raise InputError(f"{step.name}: files of {where} changed while it ran; run again")
        (folder / CHANGED).unlink(missing_ok=True)
        return write_record(folder, step.description, outcome, {"seconds": round(time.time() - started, 1), **made})


def write_record(folder: Path, description: dict[str, Any], outcome: Outcome, made: dict[str, Any]) -> dict[str, Any]:
    """Makes a folder with a stage's result an artifact, and deletes what only a continued run would read. Returns the
    record."""
    record = {
        **description,
        "counts": outcome.counts,
        "metrics": outcome.metrics,
        "versions": versions(),
        "made": {"at": datetime.now(UTC).isoformat(timespec="seconds"), **made},
    }
    write_json(folder / "artifact.json", record)
    for name in UNFINISHED:
        shutil.rmtree(folder / name, ignore_errors=True)
    for left in folder.rglob(".*.part"):  # of processes that were killed
        left.unlink(missing_ok=True)
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an artifact folder; None where there is none, and so no artifact."""
    path = folder / "artifact.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        print(f"{path} is damaged: its artifact is made anew", file=sys.stderr)
        return None
    return found


def versions() -> dict[str, str]:
    """Versions of what computes: Python and the packages that are installed of those that matter."""
    found = {"python": platform.python_version()}
    for package in (
        "alpro-pipeline",
        "torch",
        "transformers",
        "tokenizers",
        "webdataset",
        "av",
        "spacy",
        "numpy",
        "pyarrow",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    with suppress(InputError):  # PyAV brings libraries of its own; the binary decodes what they do not
        found["ffmpeg"] = ffmpeg_version()
    return found


def require(folder: Path, name: str) -> Path:
    """A file that an artifact must hold. Raises InputError where it is missing."""
    path = folder / name
    if not path.exists():
        raise InputError(f"{folder}: {name} is missing; delete this folder and run again to make it anew")
    return path
