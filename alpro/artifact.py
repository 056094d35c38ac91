"""Artifacts: folders with a record, artifact.json.

The record is written last. It has the checksums of the other files, and of itself.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.files import checksum, digest, read_json
from alpro.log import warn_once

RECORD = "artifact.json"
RECORD_VERSION = 2
RECORD_DIGEST = "sum"  # key of the digest of the record's other values


@dataclass(frozen=True)
class Source:
    """An artifact that another one was built from."""

    stage: str
    fingerprint: str

    def folder(self, root: Path) -> Path:
        """Return its folder in a folder of artifacts."""
        return root / self.stage / self.fingerprint[:16]


@dataclass(frozen=True)
class Record:
    """The contents of artifact.json: inputs and configuration of a stage, its outcome, and the run.

    A stage that has not run has no outcome: `counts` and all fields below are empty.

    Attributes:
        name: The stage, and the corpus if there are several.
        files: Digests of outside files, by name.
        paths: Paths of inputs that no step builds.
        contents: Size and sha256 of each file.
        run: When and how long the stage ran, and by which command.
        values: The JSON object of the file. It may have more keys, which its digest covers.
    """

    name: str = ""
    fingerprint: str = ""
    stage: str = ""
    stage_version: int | str = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Source] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    precision: str = ""
    contents: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """Return the record of a JSON object. Fields that an older record lacks are empty."""
        return record_type().validate_python({**values, "values": values})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of a new record, with its digest."""
        values = {"version": RECORD_VERSION, **asdict(self)}
        del values["values"]
        # Last, because it covers all other values.
        values[RECORD_DIGEST] = digest_record(values)
        return values


Artifact = tuple[Path, Record]  # its folder and its record


@cache
def record_type() -> Any:
    # Slow to import: no help needs it.
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


def compute_fingerprint(record: Record, without_effect: Collection[str] = ()) -> str:
    """Return the fingerprint of an artifact, a SHA-256.

    It covers the stage, its version, its configuration, the fingerprints of its inputs and the
    contents of outside files, as the record has them.

    Args:
        without_effect: As in `fingerprinted_config`.
    """
    return digest(
        {
            "stage": record.stage,
            "version": record.stage_version,
            "config": fingerprinted_config(record, without_effect),
            "inputs": {
                name: source.fingerprint for name, source in record.inputs.items()
            },
            "files": record.files,
        }
    )


def fingerprinted_config(
    record: Record, without_effect: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of a configuration that affect the result, by STAGE.KEY.

    The path of a file whose contents count is left out. Such a file has the name of its key.

    Args:
        without_effect: Keys of the stage that no result depends on, such as `log_every`.
    """
    ignored = {f"{record.stage}.{key}" for key in without_effect} | record.files.keys()
    values = flatten(record.config, f"{record.stage}.")
    return {key: value for key, value in values.items() if key not in ignored}


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to one level with dotted keys. Lists of tables are numbered.

    >>> flatten({"a": {"b": 1}, "c": [{"d": 2}]})
    {'a.b': 1, 'c.0.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        # A list of plain values stays one value.
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_record(folder: Path) -> Record | None:
    """Read the record of an artifact. Return None if the folder has no readable record."""
    path = folder / RECORD
    if not path.is_file():
        return None

    try:
        values = read_json(path)
        # An artifact of an earlier version is built again.
        if values.get("version") != RECORD_VERSION:
            return None
        # A record without it is not one that a stage wrote.
        _ = values["fingerprint"]
        return Record.from_json(values)
    except (ValueError, AttributeError, KeyError):
        warn_once(
            f"{path} is corrupt: it counts as missing, and its artifact is built again if a stage needs it"
        )
        return None


def digest_record(values: Mapping[str, Any]) -> str:
    """Return the digest of a record's JSON object without the digest in it."""
    return digest({key: value for key, value in values.items() if key != RECORD_DIGEST})


def check_record(folder: Path, record: Record) -> None:
    """Raise InputError if a record was changed after it was written.

    Records of earlier versions have no digest.
    """
    expected = digest_record(record.values)
    if record.values.get(RECORD_DIGEST, expected) != expected:
        raise InputError(
            f"{folder / RECORD} was changed after it was written; {repair_hint(folder)}"
        )


def check_artifact(folder: Path) -> Record | None:
    """Compare the files of an artifact with its record.

    Args:
        folder: An artifact, or the model folder in it. Without a record, nothing is compared.

    Returns:
        The record.

    Raises:
        InputError: If a file is damaged or missing.
    """
    if folder.name == "model" and (folder.parent / RECORD).is_file():
        folder = folder.parent
    record = read_record(folder)
    if record is None:
        return None
    check_record(folder, record)

    # A shard may have gigabytes, and its samples have checksums: the size is enough.
    files = {
        folder / name: content["size" if name.endswith(".tar") else "sha256"]
        for name, content in record.contents.items()
    }
    for path in find_damaged(files):
        raise InputError(f"{path} is damaged or missing; {repair_hint(folder)}")
    return record


def find_damaged(files: Mapping[Path, str | int]) -> list[Path]:
    """Return the files that have another SHA-256 or size than the one given, or that are missing."""
    with ThreadPoolExecutor() as threads:  # hashlib releases the GIL
        damaged = threads.map(is_damaged, files, files.values())
    return [*compress(files, damaged)]


def is_damaged(path: Path, expected: str | int) -> bool:
    """Return whether a file is missing, or has another SHA-256 or size than expected. Raises OSError
    for one that cannot be read: it may be intact."""
    try:
        is_size = isinstance(expected, int)
        return expected != (path.stat().st_size if is_size else checksum(path))
    except (FileNotFoundError, NotADirectoryError):
        return True


def repair_hint(folder: Path) -> str:
    return f"restore it, or delete {folder} to rebuild the artifact"


def artifacts(root: Path, pattern: str = "*/*") -> list[Artifact]:
    """Return the artifacts STAGE/FINGERPRINT in a folder of artifacts, with records, oldest first.

    Args:
        pattern: Glob pattern of their folders.
    """
    records = {folder: read_record(folder) for folder in root.glob(pattern)}
    matches = [(folder, record) for folder, record in records.items() if record]
    # A record without a time counts as the oldest.
    return sorted(matches, key=lambda match: match[1].run.get("at", ""))
