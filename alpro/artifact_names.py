"""Which artifact of a workspace a name stands for."""

import re
from pathlib import Path
from typing import Any

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import read_json
from alpro.log import log

Record = dict[str, Any]


def artifacts(root: Path, pattern: str = "*/*") -> list[tuple[Path, Record]]:
    """The artifacts STAGE/FINGERPRINT in a folder of artifacts that match, with their records, oldest first."""
    found = [(folder, record) for folder in root.glob(pattern) if folder.is_dir() and (record := read_record(folder))]
    return sorted(found, key=lambda pair: pair[1].get("run", {}).get("at", ""))


def find_artifact(name: str | Path, workspace: Path) -> tuple[Path, Record]:
    """The artifact that a person names, with its record: its folder, its fingerprint or the first characters of it, its
    stage, or STAGE@FINGERPRINT.

    A stage stands for its newest artifact, and a line says which one that is. Raises InputError if there is none
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
    found = artifacts(root, f"{stage}/{mark[:16]}*") if known else []  # a folder has 16 characters of the fingerprint
    found = [(folder, record) for folder, record in found if record["fingerprint"].startswith(mark)]
    if mark and len(found) != 1:
        what = f"{len(found)} artifacts start" if found else "no such folder, and no artifact starts"
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
    used = [step["fingerprint"] for step in run["steps"] if step["stage"] == newest["stage"]] if run else []
    choices = {newest["fingerprint"]: newest}
    if used and newest["fingerprint"] not in used:
        choices |= {record["fingerprint"]: record for _, record in found if record["fingerprint"] in used}
        what = "its newest artifact is not that of the last `alpro run`"
    else:
        choices |= {record["fingerprint"]: record for _, record in found if record["name"] != newest["name"]}
        what = "several artifacts" if len(choices) > 1 else ""
    if what:
        listed = " or ".join(f"{name}@{described(record)}" for record in choices.values())
        raise InputError(f"{name}: {what}; name one: {listed}")


def described(record: Record) -> str:
    """An artifact in a line: the start of its fingerprint, the configuration of its run with its changes, and when."""
    run = record.get("run", {})
    arguments = run.get("arguments") or {}
    made_by = " ".join([arguments.get("config", ""), *arguments.get("changes", [])]).strip()
    details = ", ".join(part for part in (made_by, run.get("at", "")[:16].replace("T", " ")) if part)
    return record["fingerprint"][:8] + (f" ({details})" if details else "")


def last_run(workspace: Path) -> Record | None:
    """The summary of the last `alpro run` of a workspace that finished, beside its report; None if there is none."""
    runs = []
    for path in (workspace / "reports").glob("*.json"):
        try:
            summary = read_json(path)
            if (summary["state"], summary["stage"]) == ("finished", ""):
                runs.append((summary["started"], summary))
        except (OSError, ValueError, TypeError, KeyError):  # something else
            continue
    return max(runs, key=lambda pair: pair[0])[1] if runs else None
