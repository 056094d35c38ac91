"""Names of artifacts: what STAGE, CONFIG/STAGE and fingerprints stand for in a workspace.

As in git, a name is a file below `refs/` with the fingerprints that it stands for, a line each. A
run writes `refs/STAGE`, and `refs/CONFIG.toml/STAGE` if it changes no value of the configuration.
With several corpora, `refs/decode_videos` has a line for each, and `refs/decode_videos CORPUS` one.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from alpro.artifact import Artifact, artifacts, read_record
from alpro.errors import InputError
from alpro.files import atomic_write, expand_home, make_folder, read_text
from alpro.log import log

REFS = "refs"
FINGERPRINT = re.compile("[0-9a-f]+")  # or the first characters of one


def write_refs(
    workspace: Path,
    config: str,
    changes: Sequence[str],
    fingerprints: Mapping[str, str],
) -> None:
    """Let STAGE, and CONFIG/STAGE, stand for the artifacts that a run built or found.

    Args:
        config: Name of its configuration.
        changes: Changes that make a variant of it. With any, CONFIG/STAGE stays what it was.
        fingerprints: Fingerprints of the artifacts, by the names of the steps.
    """
    refs = defaultdict(list)
    for step, fingerprint in fingerprints.items():
        stage, _, corpus = step.partition(" ")
        refs[stage].append(fingerprint)
        if corpus:
            refs[step].append(fingerprint)

    folders = [workspace / REFS]
    if not changes:
        folders.append(config_folder(workspace, config))
    for folder in folders:
        make_folder(folder)
        for name, values in refs.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text("\n".join(values))


def config_folder(workspace: Path, config: str) -> Path:
    """Return the folder of CONFIG/STAGE. Its suffix is no part of the name of a stage."""
    return workspace / REFS / f"{config}.toml"


def read_ref(file: Path) -> list[str]:
    return read_text(file).split() if file.is_file() else []


def referenced_fingerprints(workspace: Path) -> set[str]:
    """Return the fingerprints of all artifacts that a name stands for."""
    files = (workspace / REFS).rglob("[!.]*")
    return set(chain.from_iterable(map(read_ref, files)))


def is_of_workspace(name: str, workspace: Path) -> bool:
    """Return whether STAGE or CONFIG/STAGE has a stage or a configuration that ran in a workspace:
    one that is mistyped is no model of the hub, where anybody may have a model of this name."""
    config, _, stage = name.rpartition("/")
    is_stage = (workspace / REFS / stage).is_file()
    return is_stage or config_folder(workspace, config).is_dir()


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
            without changes.

    Raises:
        InputError: If there is no such artifact, or more than one.
    """
    folder = expand_home(name)
    record = read_record(folder)
    if record:
        return folder, record

    matches = matching_artifacts(str(name), workspace)
    if len(matches) != 1:
        listed = [f"{one.name} ({one.fingerprint[:8]})" for _, one in matches]
        raise InputError(
            f"{name}: no such folder, and {' and '.join(listed) or 'no artifact'} of this name in "
            f"{workspace / 'artifacts'}; `alpro artifacts ls` lists all, which have their "
            "fingerprints as names (STAGE is of the last run, CONFIG/STAGE of one without --set)"
        )

    folder, record = matches[0]
    if not FINGERPRINT.fullmatch(str(name)):
        log.info(f"{name}: {folder} of {record.run.get('at', '')[:16]}")
    return folder, record


def matching_artifacts(name: str, workspace: Path) -> list[Artifact]:
    """Return all artifacts that a name may stand for: several if it is not clear."""
    config, _, step = name.rpartition("/")
    folder = config_folder(workspace, config) if config else workspace / REFS
    starts = [name] if FINGERPRINT.fullmatch(name) else read_ref(folder / step)

    matches: list[Artifact] = []
    for start in starts:
        # Folders have 16 characters of a fingerprint.
        found = artifacts(workspace / "artifacts", f"*/{start[:16]}*")
        matches += [one for one in found if one[1].fingerprint.startswith(start)]
    return matches
