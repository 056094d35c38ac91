"""An artifact: a folder with a record, artifact.json, which is written last, and has the checksums
of the other files and of itself."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.files import checksum, digest, read_json
from alpro.log import log

RECORD = "artifact.json"
RECORD_VERSION = 2
RECORD_DIGEST = "sum"  # the key of the digest of the record's other values
THREADS = min(8, os.cpu_count() or 1)  # hashlib releases the GIL

# Keys that say what is logged, drawn or accepted: no sample and no weight depends on them.
NOT_FINGERPRINTED = ("*.log_every", "*.max_reject_share")
# How often a training is validated whose last weights are the result, which is a selection if it
# starts from a CLIP.
TIMES = ("train_prompter.validation.times", "pretrain.validation.times")


@dataclass(frozen=True)
class Source:
    """An artifact that another one was built from."""

    stage: str
    fingerprint: str

    def folder(self, root: Path) -> Path:
        """Its folder in a folder of artifacts."""
        return root / self.stage / self.fingerprint[:16]


@dataclass(frozen=True)
class Record:
    """What artifact.json says: what an artifact was built from, what the stage reported, and the
    run.

    A stage that has not run has no outcome: `counts` and all fields below are empty.
    """

    name: str = ""  # for users: the stage, and the corpus if there are several
    fingerprint: str = ""
    stage: str = ""
    stage_version: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Source] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # digests of outside files, by name
    paths: Mapping[str, str] = field(default_factory=dict)  # of inputs that no step builds
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    precision: str = ""
    contents: Mapping[str, Any] = field(default_factory=dict)  # size and sha256 of each file
    versions: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)  # when, how long, by which command
    # The JSON object of the file, which may have more: its digest covers that, too.
    values: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Record":
        """The record of a JSON object. What it lacks is empty: a record may be older than a
        field."""
        # A name that only a newer version knows stays in `values`, which the digest covers.
        names = {one.name for one in fields(cls)} - {"inputs", "values"}
        known = {name: value for name, value in values.items() if name in names}

        inputs = {}
        for name, source in values.get("inputs", {}).items():
            inputs[name] = Source(source["stage"], source["fingerprint"])
        return cls(**known, inputs=inputs, values=values)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of a new record, with its digest."""
        values: dict[str, Any] = {"version": RECORD_VERSION}
        for one in fields(self):
            if one.name != "values":
                values[one.name] = getattr(self, one.name)

        values["inputs"] = {name: asdict(source) for name, source in self.inputs.items()}
        # Last, because it covers all other values.
        values[RECORD_DIGEST] = record_digest(values)
        return values


def digest_of(record: Record) -> str:
    """The fingerprint of an artifact: SHA-256 of the stage, its version, its configuration, the
    fingerprints of its inputs and the contents of outside files, as its record has them. The path
    of a file whose contents count does not count itself; such a file has the name of its key,
    STAGE.KEY."""
    return digest(
        {
            "stage": record.stage,
            "version": record.stage_version,
            "config": deciding(record),
            "inputs": {name: source.fingerprint for name, source in record.inputs.items()},
            "files": record.files,
        }
    )


def deciding(record: Record) -> dict[str, Any]:
    """The values of a configuration on which the result depends, by STAGE.KEY.

    Without the paths of files whose contents count.
    """
    without_effect: tuple[str, ...] = NOT_FINGERPRINTED
    if not record.config.get("clip"):
        without_effect += TIMES

    values = {}
    for key, value in flatten(record.config, f"{record.stage}.").items():
        has_effect = not any(fnmatchcase(key, pattern) for pattern in without_effect)
        if has_effect and key not in record.files:
            values[key] = value
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted keys; lists of tables are numbered.

    >>> flatten({"a": {"b": 1}, "c": [{"d": 2}]})
    {'a.b': 1, 'c.0.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        # A list of plain values stays one value.
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_record(folder: Path) -> Record | None:
    """The record of an artifact folder; None if there is no readable record, and so no artifact."""
    path = folder / RECORD
    if not path.is_file():
        return None

    try:
        values = read_json(path)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        log.warning(f"{path} is corrupt: its artifact is rebuilt")
        return None
    if values.get("version") != RECORD_VERSION:  # of an earlier version of this project
        return None
    return Record.of(values)


def record_digest(values: Mapping[str, Any]) -> str:
    """The digest of a record's JSON object without its own."""
    return digest({key: value for key, value in values.items() if key != RECORD_DIGEST})


def check_record(folder: Path, record: Record) -> None:
    """Raises InputError if a record was changed after it was written. Records of earlier versions
    have no digest."""
    values = record.values
    if RECORD_DIGEST in values and values[RECORD_DIGEST] != record_digest(values):
        raise InputError(
            f"{folder / RECORD} was changed after it was written; {repair_hint(folder)}"
        )


def check_artifact(folder: Path, names: Iterable[str] = ()) -> dict[Path, str]:
    """Compares files of an artifact with its record: those named, or all but the shards, whose
    samples have checksums of their own. A folder without a record has nothing to compare. Returns
    the SHA-256 of each file that was read.

    Raises InputError if one is damaged or missing.
    """
    # A model folder is described by the record of the artifact that it is in.
    if folder.name == "model" and (folder.parent / RECORD).is_file():
        folder = folder.parent

    record = read_record(folder)
    if record is None:
        return {}
    check_record(folder, record)

    contents = record.contents
    small = []
    for name in names or contents:
        if name in contents and not name.endswith(".tar"):
            small.append(name)
    paths = [folder / name for name in small]

    with ThreadPoolExecutor(THREADS) as threads:
        checksums = threads.map(readable_checksum, paths)
        for name, path, sha256 in zip(small, paths, checksums, strict=True):
            if sha256 != contents[name]["sha256"]:
                raise InputError(f"{path} is damaged or missing; {repair_hint(folder)}")
    return {folder / name: contents[name]["sha256"] for name in small}


def readable_checksum(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        return checksum(path)
    except OSError:
        return ""


def require(folder: Path, name: str) -> Path:
    """The path of a required file of an artifact. Raises InputError if it is missing."""
    path = folder / name
    if not path.exists():
        raise InputError(
            f"{folder}: {name} is missing; delete this folder and run again to rebuild it"
        )
    return path


def repair_hint(folder: Path) -> str:
    return f"restore it, or delete {folder} to rebuild the artifact"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation's results.json. Raises InputError if the file is damaged."""
    check_artifact(folder, ["results.json"])
    return read_json(folder / "results.json")


def artifacts(root: Path, pattern: str = "*/*") -> list[tuple[Path, Record]]:
    """The artifacts STAGE/FINGERPRINT in a folder of artifacts that match, with their records,
    oldest first."""
    matches = []
    for folder in root.glob(pattern):
        record = read_record(folder) if folder.is_dir() else None
        if record:
            matches.append((folder, record))

    def built_at(match: tuple[Path, Record]) -> str:
        _, record = match
        # A record without a time counts as the oldest.
        return record.run.get("at", "")

    return sorted(matches, key=built_at)
