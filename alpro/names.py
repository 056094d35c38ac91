"""Names of artifacts: what STAGE, CONFIG/STAGE and fingerprints stand for in a workspace.

As in git, a name is a file below `refs/` with the fingerprints that it stands for, a line each. A
run writes `refs/STAGE`, and `refs/CONFIG/STAGE` if it changes no value of the configuration. With
several corpora, `refs/decode_videos` has a line for each, and `refs/decode_videos CORPUS` one.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alpro.artifact import Record, artifacts, read_record
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import atomic_write, expand_home, make_folder
from alpro.log import log

REFS = "refs"
FINGERPRINT_NAME = re.compile(r"(?:(?P<stage>[a-z]\w*)@)?(?P<start>[0-9a-f]+)")
STAGE_NAME = re.compile(
    r"(?:(?P<config>(?!\.)[^/@]+)/)?(?P<step>(?P<stage>[a-z]\w*)(?: [\w.-]+)?)"
)

Artifact = tuple[Path, Record]  # its folder and its record


def write_refs(
    workspace: Path,
    config: str,
    changes: Sequence[str],
    fingerprints: Mapping[str, str],
) -> None:
    """Let STAGE, and CONFIG/STAGE, stand for the artifacts that a run built or found.

    Args:
        config: Name or file of its configuration.
        changes: Changes that make a variant of it. With any, CONFIG/STAGE stays what it was.
        fingerprints: Fingerprints of the artifacts, by the names of the steps.
    """
    refs: dict[str, list[str]] = {}
    for step, fingerprint in fingerprints.items():
        stage, _, corpus = step.partition(" ")
        refs.setdefault(stage, []).append(fingerprint)
        if corpus:
            refs[step] = [fingerprint]

    root = workspace / REFS
    for name, values in refs.items():
        file = root / name
        if file.is_dir():  # a configuration has the name of this stage
            file.rename(f"{file}.toml")
        write_ref(file, values)
    if not changes:
        folder = config_folder(root, config_name(config))
        for name, values in refs.items():
            write_ref(folder / name, values)


def config_folder(root: Path, config: str) -> Path:
    """Return the folder of CONFIG/STAGE. A stage may have the name of the configuration."""
    folder = root / config
    return root / f"{config}.toml" if folder.is_file() else folder


def write_ref(file: Path, fingerprints: list[str]) -> None:
    make_folder(file.parent)
    with atomic_write(file) as temporary:
        temporary.write_text("\n".join([*fingerprints, ""]))


def read_ref(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def referenced_fingerprints(workspace: Path) -> set[str]:
    """Return the fingerprints of all artifacts that a name stands for."""
    fingerprints: set[str] = set()
    for file in (workspace / REFS).rglob("[!.]*"):
        fingerprints.update(read_ref(file))
    return fingerprints


def is_of_workspace(name: str, workspace: Path) -> bool:
    """Return whether STAGE or CONFIG/STAGE has a stage or a configuration that ran in a workspace:
    one that is mistyped is no model of the hub, where anybody may have a model of this name."""
    config, slash, stage = name.rpartition("/")
    refs = workspace / REFS
    return (refs / stage).is_file() or bool(slash and (refs / config).is_dir())


def find_workspace(workspace: str | Path | None) -> Path:
    """Return the absolute path of a workspace; by default of $ALPRO_WORKSPACE or `workspace`."""
    folder = workspace or os.environ.get("ALPRO_WORKSPACE") or "workspace"
    return Path(folder).absolute()


def find_artifact(name: str | Path, workspace: Path) -> Artifact:
    """Return the artifact that a name stands for, with its record.

    The log gets a line with the artifact that a stage stands for, which changes from run to run.

    Args:
        name: Its folder; its fingerprint or the first characters of it; STAGE or STAGE CORPUS, for
            what the last run built or found; CONFIG/STAGE, for the last run of a configuration
            without changes; STAGE@FINGERPRINT.

    Raises:
        InputError: If there is no such artifact, or more than one.
    """
    refuse_credentials("model or artifact", str(name))
    folder = expand_home(name)
    record = read_record(folder)
    if record:
        return folder, record

    matches = matching_artifacts(str(name), workspace)
    if not matches:
        raise InputError(
            f"{name}: no such folder, and no artifact of this name in {workspace / 'artifacts'}; "
            "`alpro artifacts ls` lists all, which have their fingerprints as names"
        )
    if len(matches) > 1:
        records = [record for _, record in matches]
        listed = [f"{one.stage}@{one.fingerprint[:8]} ({one.name})" for one in records]
        raise InputError(f"{name}: several artifacts; name one: {' or '.join(listed)}")

    folder, record = matches[0]
    if not FINGERPRINT_NAME.fullmatch(str(name)):
        log.info(f"{name}: {folder} of {record.run.get('at', '')[:16]}")
    return folder, record


def matching_artifacts(name: str, workspace: Path) -> list[Artifact]:
    """Return all artifacts that a name may stand for: several if it is not clear."""
    root = workspace / "artifacts"
    by_fingerprint = FINGERPRINT_NAME.fullmatch(name)
    if by_fingerprint:
        start = by_fingerprint["start"]
        # Folders have 16 characters of a fingerprint.
        same_start = artifacts(root, f"{by_fingerprint['stage'] or '*'}/{start[:16]}*")
        return [one for one in same_start if one[1].fingerprint.startswith(start)]

    match = STAGE_NAME.fullmatch(name)
    if match is None:
        return []
    refs = workspace / REFS
    folder = config_folder(refs, match["config"]) if match["config"] else refs
    matches: list[Artifact] = []
    for fingerprint in read_ref(folder / match["step"]):
        matches += artifacts(root, f"{match['stage']}/{fingerprint[:16]}")
    return matches


def config_name(config: str) -> str:
    """Return the name of a configuration that is given by name, or by its file.

    >>> config_name("studies/mine.toml")
    'mine'
    """
    return config.replace("\\", "/").rpartition("/")[2].removesuffix(".toml")
