"""An artifact: a folder with a record, artifact.json, which is written last, and has the checksums
of the other files and of itself."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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

Record = dict[str, Any]

# Keys that say what is logged, drawn or accepted: no sample and no weight depends on them. The last
# weights of a prompter and of pre-training are the result: how often they are validated selects
# none.
NOT_FINGERPRINTED = (
    *("*.log_every", "*.max_reject_share"),
    *("train_prompter.validation.times", "pretrain.validation.times"),
)


def digest_of(record: Record) -> str:
    """The fingerprint of an artifact: SHA-256 of the stage, its version, its configuration, the
    fingerprints of its inputs and the contents of outside files, as its record has them. The path
    of a file whose contents count does not count itself; such a file has the name of its key,
    STAGE.KEY."""
    stage = record["stage"]
    files = record["files"]
    counted = {}
    for key, value in flatten(record["config"], f"{stage}.").items():
        if key not in files and not has_no_effect(key):
            counted[key] = value
    inputs = {name: source["fingerprint"] for name, source in record["inputs"].items()}
    return digest(
        {
            "stage": stage,
            "version": record["stage_version"],
            "config": counted,
            "inputs": inputs,
            "files": files,
        }
    )


def has_no_effect(key: str) -> bool:
    """Whether a result does not depend on a key of a configuration, STAGE.KEY."""
    return any(fnmatchcase(key, pattern) for pattern in NOT_FINGERPRINTED)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an artifact folder; None if there is no readable record, and so no artifact."""
    path = folder / RECORD
    if not path.is_file():
        return None

    try:
        record = read_json(path)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        log.warning(f"{path} is corrupt: its artifact is rebuilt")
        return None
    if record.get("version") != RECORD_VERSION:  # of an earlier version of this project
        return None
    return record


def record_digest(record: Record) -> str:
    """The digest of all values of a record but itself."""
    return digest({key: value for key, value in record.items() if key != RECORD_DIGEST})


def check_record(folder: Path, record: Record) -> None:
    """Raises InputError if a record was changed after it was written. Records of earlier versions
    have no digest."""
    if RECORD_DIGEST in record and record[RECORD_DIGEST] != record_digest(record):
        raise InputError(
            f"{folder / RECORD} was changed after it was written; {repair_hint(folder)}"
        )


def check_artifact(folder: Path, names: Iterable[str] = ()) -> dict[Path, str]:
    """Compares files of an artifact with its record: those named, or all but the shards, whose
    samples have checksums of their own. A folder without a record has nothing to compare. Returns
    the SHA-256 of each file that was read.

    Raises InputError if one is damaged or missing.
    """
    if folder.name == "model" and (folder.parent / RECORD).is_file():
        folder = folder.parent
    record = read_record(folder)
    if record is None:
        return {}
    check_record(folder, record)

    contents = record.get("contents", {})
    small = [name for name in (names or contents) if name in contents and not name.endswith(".tar")]
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
    return sorted(matches, key=lambda match: match[1].get("run", {}).get("at", ""))
