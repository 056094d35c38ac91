"""An artifact: a folder with a record, artifact.json, which is written last, and has the checksums of the other files
and of itself; and which artifact of a workspace a name stands for."""

import os
import re
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
SUM = "sum"  # the digest of the record's other values
THREADS = min(8, os.cpu_count() or 1)  # hashlib releases the GIL

Record = dict[str, Any]

# Keys that say what is logged, drawn or accepted: no sample and no weight depends on them. The last weights of a
# prompter and of pre-training are the result: how often they are validated selects none.
WITHOUT_EFFECT: tuple[str, ...] = ("*.log_every", "*.max_reject_share")
WITHOUT_EFFECT += ("train_prompter.validation.times", "pretrain.validation.times")


def digest_of(record: Record) -> str:
    """The fingerprint of an artifact: SHA-256 of the stage, its version, its configuration, the fingerprints of its
    inputs and the contents of outside files, as its record has them. The path of a file whose contents count does not
    count itself; such a file has the name of its key, STAGE.KEY."""
    stage, files = record["stage"], record["files"]
    config = flatten(record["config"], f"{stage}.")
    counted = {
        key: value for key, value in config.items() if key not in files and not has_no_effect(key)
    }
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
    return any(fnmatchcase(key, pattern) for pattern in WITHOUT_EFFECT)


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


def sum_of(record: Record) -> str:
    return digest({key: value for key, value in record.items() if key != SUM})


def check_record(folder: Path, record: Record) -> None:
    """Raises InputError if a record was changed after it was written. Records of earlier versions have no sum."""
    if SUM in record and record[SUM] != sum_of(record):
        raise InputError(
            f"{folder / RECORD} was changed after it was written; {what_to_do(folder)}"
        )


def check_artifact(folder: Path, names: Iterable[str] = ()) -> None:
    """Compares files of an artifact with its record: those named, or all but the shards, whose samples have checksums
    of their own. A folder without a record has nothing to compare.

    Raises InputError if one is damaged or missing.
    """
    folder = (
        folder.parent if folder.name == "model" and (folder.parent / RECORD).is_file() else folder
    )
    record = read_record(folder)
    if record is None:
        return
    check_record(folder, record)
    contents = record.get("contents", {})
    small = [name for name in (names or contents) if name in contents and not name.endswith(".tar")]
    with ThreadPoolExecutor(THREADS) as threads:
        for name, sha256 in zip(
            small, threads.map(lambda name: readable_checksum(folder / name), small), strict=True
        ):
            if sha256 != contents[name]["sha256"]:
                raise InputError(f"{folder / name} is damaged or missing; {what_to_do(folder)}")


def readable_checksum(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        return checksum(path)
    except OSError:
        return ""


def what_to_do(folder: Path) -> str:
    return f"restore it, or delete {folder} to rebuild the artifact"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation's results.json. Raises InputError if the file is damaged."""
    check_artifact(folder, ["results.json"])
    return read_json(folder / "results.json")


def artifacts(root: Path, pattern: str = "*/*") -> list[tuple[Path, Record]]:
    """The artifacts STAGE/FINGERPRINT in a folder of artifacts that match, with their records, oldest first."""
    found = [
        (folder, record)
        for folder in root.glob(pattern)
        if folder.is_dir() and (record := read_record(folder))
    ]
    return sorted(found, key=lambda pair: pair[1].get("run", {}).get("at", ""))


def find_artifact(name: str | Path, workspace: Path) -> tuple[Path, Record]:
    """The artifact that a person names, with its record: its folder, its fingerprint or the first characters of it, its
    stage, or STAGE@FINGERPRINT.

    A stage stands for its newest artifact, and a line names it. Raises InputError if there is none
    or more than one, and if the newest is not that of the workspace's last whole run: a trial is not taken by accident.
    """
    folder, root = Path(name).expanduser(), workspace / "artifacts"
    if record := read_record(folder):
        return folder, record
    stage, _, mark = str(name).partition("@")
    if not mark and re.fullmatch(r"[0-9a-f]+", stage):
        stage, mark = "*", stage
    stage = stage.replace("-", "_")
    known = re.fullmatch(r"\*|\w+", stage) and re.fullmatch(r"[0-9a-f]*", mark)
    found = (
        artifacts(root, f"{stage}/{mark[:16]}*") if known else []
    )  # a folder has 16 characters of the fingerprint
    found = [(folder, record) for folder, record in found if record["fingerprint"].startswith(mark)]
    if mark and len(found) != 1:
        what = (
            f"{len(found)} artifacts start" if found else "no such folder, and no artifact starts"
        )
        raise InputError(f"{name}: {what} with it in {root}; `alpro artifacts ls` lists them")
    if not found:
        raise InputError(
            f"{name}: no such folder, and no artifact of this stage in {root}; `alpro artifacts ls` lists all"
        )
    if not mark:
        check_newest(str(name), found, last_run(workspace))
        log.info(f"{name}: {described(found[-1][1])}")
    return found[-1]


def check_newest(name: str, found: list[tuple[Path, Record]], run: Record | None) -> None:
    """Raises InputError if the newest artifact of a stage is not the one that the last whole run used, or if the stage
    has artifacts of several names, such as corpora."""
    newest = found[-1][1]
    used = (
        [step["fingerprint"] for step in run["steps"] if step["stage"] == newest["stage"]]
        if run
        else []
    )
    choices = {newest["fingerprint"]: newest}
    if used and newest["fingerprint"] not in used:
        choices |= {
            record["fingerprint"]: record for _, record in found if record["fingerprint"] in used
        }
        what = "its newest artifact is not that of the last `alpro run`"
    else:
        choices |= {
            record["fingerprint"]: record for _, record in found if record["name"] != newest["name"]
        }
        what = "several artifacts" if len(choices) > 1 else ""
    if what:
        listed = " or ".join(f"{name}@{described(record)}" for record in choices.values())
        raise InputError(f"{name}: {what}; name one: {listed}")


def described(record: Record) -> str:
    """An artifact in a line: the start of its fingerprint, the configuration of its run with its changes, and when."""
    run = record.get("run", {})
    arguments = run.get("arguments") or {}
    made_by = " ".join([arguments.get("config", ""), *arguments.get("changes", [])]).strip()
    details = ", ".join(
        part for part in (made_by, run.get("at", "")[:16].replace("T", " ")) if part
    )
    return record["fingerprint"][:8] + (f" ({details})" if details else "")


def last_run(workspace: Path) -> Record | None:
    """The summary of the last `alpro run` of a workspace that finished, beside its report, or None."""
    runs = []
    for path in (workspace / "reports").glob("*.json"):
        try:
            summary = read_json(path)
            if (summary["state"], summary["stage"]) == ("finished", ""):
                runs.append((summary["started"], summary))
        except (OSError, ValueError, TypeError, KeyError):  # something else
            continue
    return max(runs, key=lambda pair: pair[0])[1] if runs else None
