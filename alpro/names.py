"""The names of artifacts: which artifact of a workspace STAGE, CONFIG/STAGE or a fingerprint stands
for.

runs.jsonl in the workspace has a line for each `alpro run` with the artifacts that it built or
found. An artifact that no line has, because its run was killed or because it was copied here,
counts as that of the command in its record.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any
from unicodedata import normalize

from alpro.artifact import Record, artifacts, read_record
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.log import log

RUNS = "runs.jsonl"
INDEXES = "indexes.txt"  # folders and addresses, a line each
SIMILAR = 0.8  # of two names, as difflib measures: sample/pretrai and sample/pretrain have 0.97
STAGE_NAME = re.compile(
    r"((?P<config>[^/@]+)/)?(?P<stage>[a-z][\w-]*)( (?P<corpus>[\w.-]+))?"
    r"(@(?P<fingerprint>[0-9a-f]+))?"
)

Artifact = tuple[Path, Record]  # its folder and its record


@dataclass(frozen=True)
class Use:
    """The artifacts of one stage that one command built or found."""

    at: str
    config: str
    changes: int
    artifacts: tuple[Artifact, ...]


def record_run(
    workspace: Path,
    arguments: Mapping[str, Any],
    fingerprints: Mapping[str, str],
) -> None:
    """Appends a command to the runs of a workspace.

    arguments: its config, data, changes and stage. fingerprints: of what it built or found, by the
    names of the steps.
    """
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": arguments["config"],
        "data": arguments["data"],
        "changes": arguments["changes"],
        "stage": arguments["stage"],
        "artifacts": dict(fingerprints),
    }
    text = json.dumps(line, ensure_ascii=False) + "\n"

    # A single write to a file that is open for appending: lines of two commands do not mix.
    with (workspace / RUNS).open("ab+") as file:
        # A line that was cut must not take this one with it.
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        is_cut = file.read(1) not in (b"", b"\n")  # by a power failure
        if is_cut:
            text = f"\n{text}"
        file.write(text.encode())


def record_index(workspace: Path, place: str) -> None:
    """Note an index, so that the model that embedded its videos is not removed as unused.

    Args:
        place: Its absolute path or its address.
    """
    file = workspace / INDEXES
    if workspace.is_dir() and place not in index_lines(file):
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"{place}\n")


def index_places(workspace: Path) -> list[str]:
    """Return the indexes that were noted, and those in the workspace, beside it and here."""
    root = workspace.resolve()
    places = set()
    for searched in {root, root.parent, Path.cwd()}:
        places |= {str(table.parent) for table in searched.glob("*/clips.lance")}

    for place in index_lines(workspace / INDEXES):
        if "://" in place or Path(place, "clips.lance").is_dir():
            places.add(place)
    return sorted(places)


def index_lines(file: Path) -> list[str]:
    if not file.is_file():
        return []
    return file.read_text("utf-8").splitlines()


def find_artifact(name: str | Path, workspace: Path) -> Artifact:
    """The artifact that a person names, with its record.

    name: its folder; its fingerprint or the first characters of it; STAGE, for the artifact that
    the last command built or found for the stage; CONFIG/STAGE, for that of the configuration with
    the fewest changed values, and of equal ones the last; `STAGE CORPUS`; STAGE@FINGERPRINT. A line
    names the artifact that a stage stands for. Raises InputError if there is none, or more than
    one.
    """
    refuse_credentials("model or artifact", str(name))
    if not Path(name).expanduser().is_dir():
        # As it was copied from a page or a terminal.
        name = normalize("NFC", str(name)).strip()
    folder = Path(name).expanduser()
    record = read_record(folder)
    if record:
        return folder, record

    root = workspace / "artifacts"
    names_fingerprint = "@" in str(name) or is_fingerprint(str(name))
    matches = named_artifacts(str(name), workspace)
    if len(matches) == 1:
        # What a stage stands for changes from run to run.
        _, record = matches[0]
        if not names_fingerprint:
            log.info(f"{name}: {summarize(record)}")
        return matches[0]

    if names_fingerprint:
        what = "no such folder, and no artifact starts"
        if matches:
            what = f"{len(matches)} artifacts start"
        raise InputError(f"{name}: {what} with it in {root}; `alpro artifacts ls` lists them")
    if not matches:
        similar = similar_name(str(name), workspace)
        meant = f"did you mean {similar}? " if similar else ""
        raise InputError(
            f"{name}: no such folder, and no artifact of this name in {root}; "
            f"{meant}`alpro artifacts ls` lists all"
        )
    listed = []
    for _, record in reversed(matches):  # the newest first
        listed.append(f"{record.stage}@{summarize(record, record.name)}")
    raise InputError(f"{name}: several artifacts; name one: {' or '.join(listed)}")


def named_artifacts(name: str, workspace: Path) -> list[Artifact]:
    """All artifacts that a name may stand for: none, or several if it is not clear."""
    root = workspace / "artifacts"
    if is_fingerprint(name):
        # Folders have 16 characters of a fingerprint; `starting_with` compares all of them.
        return starting_with(name, artifacts(root, f"*/{name[:16]}*"))
    match = STAGE_NAME.fullmatch(name)
    if not match:
        return []

    stage = match["stage"].replace("-", "_")
    present = artifacts(root, f"{stage}/*")
    if match["fingerprint"]:
        return starting_with(match["fingerprint"], present)

    if match["corpus"]:
        step = f"{stage} {match['corpus']}"
        present = [(folder, record) for folder, record in present if record.name == step]

    uses = uses_of(present, workspace)
    if match["config"]:
        uses = [use for use in uses if use.config == match["config"]]
        # CONFIG/STAGE is the configuration itself, rather than a variant of it.
        fewest = min((use.changes for use in uses), default=0)
        uses = [use for use in uses if use.changes == fewest]
    return list(uses[-1].artifacts) if uses else []


def stage_names(workspace: Path) -> list[str]:
    """Each STAGE and CONFIG/STAGE that stands for artifacts of a workspace."""
    by_stage: dict[str, list[Artifact]] = {}
    for folder, record in artifacts(workspace / "artifacts"):
        by_stage.setdefault(record.stage, []).append((folder, record))

    names = []
    for stage, present in by_stage.items():
        # A record of no command has no configuration.
        configs = {use.config for use in uses_of(present, workspace)} - {""}
        names += [stage, *(f"{config}/{stage}" for config in sorted(configs))]
    return names


def kept_by_name(workspace: Path) -> set[str]:
    """The fingerprints of all artifacts that a STAGE, with or without a configuration, stands
    for."""
    kept: set[str] = set()
    for name in stage_names(workspace):
        for _, record in named_artifacts(name, workspace):
            kept.add(record.fingerprint)
    return kept


def similar_name(name: str, workspace: Path) -> str:
    """The STAGE or CONFIG/STAGE of a workspace that a mistyped name may mean; empty if none is
    similar."""
    similar = get_close_matches(name, stage_names(workspace), 1, SIMILAR)
    return similar[0] if similar else ""


def uses_of(present: list[Artifact], workspace: Path) -> list[Use]:
    """Which commands built or found the artifacts of one stage, the last one at the end."""
    by_fingerprint = {record.fingerprint: (folder, record) for folder, record in present}
    logged: list[Use] = []
    latest = ""
    for run in logged_runs(workspace):
        used = []
        for fingerprint in run["artifacts"].values():
            if fingerprint in by_fingerprint:
                used.append(by_fingerprint[fingerprint])
        if not used:
            continue

        # Lines are in order, and no artifact is newer than its use, also where the clock went
        # back.
        latest = max(latest, run["at"], *(built_at(record) for _, record in used))
        use = Use(
            at=latest,
            config=config_name(run["config"]),
            changes=len(run["changes"]),
            artifacts=tuple(used),
        )
        logged.append(use)

    # By command, and in it by the name of the step: the newest counts.
    built: dict[str, dict[str, Artifact]] = {}
    for folder, record in present:
        arguments = record.run.get("arguments") or {}
        command = json.dumps(arguments, sort_keys=True)
        built.setdefault(command, {})[record.name] = folder, record

    recorded = [use_of_records(tuple(by_step.values())) for by_step in built.values()]
    # The sort is stable: within a second, a line of runs.jsonl is after a record, and wins.
    return sorted([*recorded, *logged], key=attrgetter("at"))


def use_of_records(used: tuple[Artifact, ...]) -> Use:
    """The use of artifacts by the command that their records name."""
    _, record = used[0]
    arguments = record.run.get("arguments") or {}
    return Use(
        at=max(built_at(record) for _, record in used),
        config=config_name(arguments.get("config", "")),
        changes=len(arguments.get("changes", ())),
        artifacts=used,
    )


def built_at(record: Record) -> str:
    return record.run.get("at", "")


def logged_runs(workspace: Path) -> list[dict[str, Any]]:
    """The lines of runs.jsonl. A line that a power failure has cut is left out."""
    try:
        text = (workspace / RUNS).read_text("utf-8", "replace")
    except OSError:  # no command has run here
        return []

    runs = []
    for line in text.splitlines():
        try:
            run = json.loads(line)
        except ValueError:
            continue
        if isinstance(run, dict) and isinstance(run.get("artifacts"), dict):
            runs.append({"at": "", "config": "", "changes": []} | run)
    return runs


def config_name(config: str) -> str:
    """The name of a configuration that a person gave by name, or by its file.

    >>> config_name("studies/mine.toml")
    'mine'
    """
    file_name = config.replace("\\", "/").rpartition("/")[2]
    return normalize("NFC", file_name.removesuffix(".toml"))


def is_fingerprint(name: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]+", name))


def starting_with(start: str, present: list[Artifact]) -> list[Artifact]:
    matches = []
    for folder, record in present:
        if record.fingerprint.startswith(start):
            matches.append((folder, record))
    return matches


def summarize(record: Record, name: str = "") -> str:
    """An artifact in a line: the start of its fingerprint, its name if it is given, the
    configuration of its run with its changes, and when."""
    run = record.run
    arguments = run.get("arguments") or {}
    words = [arguments.get("config", ""), *arguments.get("changes", [])]
    made_by = " ".join(words).strip()
    minute = run.get("at", "")[:16].replace("T", " ")

    start = record.fingerprint[:8]
    details = ", ".join(filter(None, (name, made_by, minute)))
    return f"{start} ({details})" if details else start
