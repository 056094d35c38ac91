"""Names of artifacts: what STAGE, CONFIG/STAGE and fingerprints stand for in a workspace.

As in git, a name is a file below `refs/` with the fingerprints that it stands for, a line each. A
run writes `refs/STAGE`, and `refs/CONFIG/STAGE` if it changes no value of the configuration. With
several corpora, `refs/decode_videos` has a line for each, and `refs/decode_videos CORPUS` one.
"""

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

from alpro.artifact import Record, artifacts, read_record
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import atomic_write, expand_home, make_folder
from alpro.log import log

REFS = "refs"
# Similarity of two names in difflib's measure: sample/pretrai and sample/pretrain have 0.97.
SIMILAR = 0.8
STAGE_NAME = re.compile(
    r"(?:(?P<config>(?!\.)[^/@]+)/)?(?P<step>(?P<stage>[a-z][\w-]*)(?: [\w.-]+)?)"
    r"(?:@(?P<fingerprint>[0-9a-f]+))?"
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
            file.rename(config_folder(root, name, is_taken=True))
        write_ref(file, values)
    if not changes:
        folder = config_folder(root, config_name(config))
        for name, values in refs.items():
            write_ref(folder / name, values)


def config_folder(root: Path, config: str, is_taken: bool = False) -> Path:
    """Return the folder of CONFIG/STAGE. A stage may have the name of the configuration."""
    folder = root / config
    return root / f"{config}.toml" if is_taken or folder.is_file() else folder


def write_ref(file: Path, fingerprints: list[str]) -> None:
    if read_ref(file) != fingerprints:
        make_folder(file.parent)
        with atomic_write(file) as temporary:
            temporary.write_text(
                "".join(f"{fingerprint}\n" for fingerprint in fingerprints)
            )


def read_ref(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


def ref_names(workspace: Path) -> list[str]:
    """Return each name that stands for artifacts of a workspace."""
    root = workspace / REFS
    return [
        str(file.relative_to(root)) for file in root.rglob("[!.]*") if file.is_file()
    ]


def referenced_fingerprints(workspace: Path) -> set[str]:
    """Return the fingerprints of all artifacts that a name stands for."""
    fingerprints: set[str] = set()
    for name in ref_names(workspace):
        fingerprints.update(read_ref(workspace / REFS / name))
    return fingerprints


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
    if len(matches) == 1:
        folder, record = matches[0]
        if not is_by_fingerprint(str(name)):
            log.info(f"{name}: {summarize(record)}")
        return folder, record

    listed = []
    for _, record in matches:
        listed.append(f"{record.stage}@{summarize(record, record.name)}")
    if matches:
        raise InputError(f"{name}: several artifacts; name one: {' or '.join(listed)}")
    raise InputError(f"{name}: {explain_missing(str(name), workspace)}")


def matching_artifacts(name: str, workspace: Path) -> list[Artifact]:
    """Return all artifacts that a name may stand for: several if it is not clear."""
    # A name may be copied from a page or a terminal.
    name = normalize("NFC", name).strip()
    match = STAGE_NAME.fullmatch(name)
    root = workspace / "artifacts"
    if is_by_fingerprint(name):
        stage, _, start = name.rpartition("@")
        pattern = f"{stage.replace('-', '_') or '*'}/{start[:16]}*"
        # Folders have 16 characters of a fingerprint.
        same_start = artifacts(root, pattern)
        return [match for match in same_start if match[1].fingerprint.startswith(start)]
    if match is None:
        return []

    refs = workspace / REFS
    folder = config_folder(refs, match["config"]) if match["config"] else refs
    stage = match["stage"].replace("-", "_")
    step = match["step"].replace(match["stage"], stage, 1)
    matches: list[Artifact] = []
    for fingerprint in read_ref(folder / step):
        matches += artifacts(root, f"{stage}/{fingerprint[:16]}")
    return matches


def is_by_fingerprint(name: str) -> bool:
    return bool(re.fullmatch(r"([a-z][\w-]*@)?[0-9a-f]+", name))


def explain_missing(name: str, workspace: Path) -> str:
    """Say why a name stands for no artifact, and what to do."""
    root = workspace / "artifacts"
    place = str(root) if root.is_dir() else f"{root}, which does not exist"
    similar = similar_name(name, workspace)
    meant = f"did you mean {similar}? " if similar and similar != name else ""
    return (
        f"no such folder, and no artifact of this name in {place}; {meant}`alpro artifacts ls` lists "
        "all, which have their fingerprints as names"
    )


def similar_name(name: str, workspace: Path) -> str:
    """Return the STAGE or CONFIG/STAGE that a mistyped name may mean; empty if none is similar.

    A run with changes writes no CONFIG/STAGE, so that STAGE may be what is meant.
    """
    names = ref_names(workspace)
    stage = name.rpartition("/")[2].replace("-", "_")
    similar = [*get_close_matches(name, names, 1, SIMILAR), *({stage} & {*names})]
    return similar[0] if similar else ""


def config_name(config: str) -> str:
    """Return the name of a configuration that is given by name, or by its file.

    >>> config_name("studies/mine.toml")
    'mine'
    """
    file_name = config.replace("\\", "/").rpartition("/")[2]
    return normalize("NFC", file_name.removesuffix(".toml"))


def summarize(record: Record, name: str = "") -> str:
    """Summarize an artifact: start of its fingerprint, name, configuration, time."""
    run = record.run
    config = config_name((run.get("arguments") or {}).get("config", ""))
    minute = run.get("at", "")[:16].replace("T", " ")

    start = record.fingerprint[:8]
    details = ", ".join(filter(None, (name, config, minute)))
    return f"{start} ({details})" if details else start
