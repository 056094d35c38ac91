"""Finds the model that a person names: a folder, or an artifact of a workspace by its fingerprint or its stage."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpro.artifact import check_artifact, read_record
from alpro.errors import InputError
from alpro.log import log
from alpro.stages import STAGES
from alpro.stages.evaluation.encode import model_folder

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def artifacts(workspace: Path, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The complete artifacts `<stage>/<fingerprint>` of a workspace that match, with their records, newest first."""
    files = workspace.glob(f"artifacts/{pattern}/artifact.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        if record := read_record(file.parent):
            yield file.parent, record


def find_model(name: str | Path, workspace: Path) -> Path:
    """The folder of a model: `name` itself, the newest artifact of the stage of that name, or the one artifact with a
    model whose fingerprint starts with it.

    Raises InputError if there is none, or more than one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not has_model(folder):
            raise InputError(f"{folder}: not a model folder: it has no config.json")
        check_artifact(folder)
        return folder
    stage = str(name).replace("-", "_")
    found = newest_artifact(stage, workspace) if stage in STAGES else find_artifact(str(name), workspace)
    if not has_model(found):
        raise InputError(f"{name}: the artifact of {found.parent.name} has no model")
    check_artifact(found)
    return found


def has_model(folder: Path) -> bool:
    """Whether a folder has a model, or the prompts of one."""
    return (model_folder(folder) / "config.json").is_file() or (folder / "prompts.safetensors").is_file()


def newest_artifact(stage: str, workspace: Path) -> Path:
    """The newest artifact of a stage. Raises InputError if there is none."""
    found = [folder for folder, _ in artifacts(workspace, f"{stage}/*")]
    if not found:
        raise InputError(
            f"{stage}: no artifact of this stage in {workspace / 'artifacts'}; `alpro artifacts ls` lists all"
        )
    if len(found) > 1:
        log.info(f"{stage}: {found[0].name}, the newest of its {len(found)} artifacts")
    return found[0]


def find_artifact(name: str, workspace: Path) -> Path:
    """The one artifact whose fingerprint starts with `name`. Raises InputError if there is none, or more than one."""
    short = name[:16]  # an artifact's folder has the first 16 characters of its fingerprint
    found = [
        path
        for path, record in (artifacts(workspace, f"*/{short}*") if short.isalnum() else ())
        if str(record.get("fingerprint", "")).startswith(name)
    ]
    if len(found) != 1:
        what = "no artifact starts" if not found else f"{len(found)} artifacts start"
        raise InputError(
            f"{name}: no such folder, and {what} with it in {workspace / 'artifacts'}; `alpro artifacts ls` lists them"
        )
    return found[0]


def find_prompter(folder: Path, follow: bool = False) -> tuple[Path, Path | str]:
    """The folder of a prompter and that of its prompts, from a folder of either; ("", if there are no prompts).

    An artifact of cache_prompts names its prompter, and that of a prompter is named by the newest cache_prompts of the
    workspace that embedded entities with it. follow: a model that was trained with a prompter also stands for it.
    """
    found = _find_prompter(folder, follow)
    for other in {Path(place) for place in found if place} - {folder}:
        check_artifact(other)
    return found


def _find_prompter(folder: Path, follow: bool = False) -> tuple[Path, Path | str]:
    if (folder / "prompts.safetensors").is_file() and (model_folder(folder) / "config.json").is_file():
        return folder, ""
    if follow and (folder / "prompter" / "config.json").is_file():  # of an imported checkpoint
        return _find_prompter(folder / "prompter")
    record = read_record(folder)
    if record is None:
        return folder, ""
    stage, workspace = record["stage"], folder.parents[2]
    if stage == "cache_prompts":
        source = record["inputs"].get("prompter")
        if source is None:
            return folder, ""
        prompter = workspace / "artifacts" / source["stage"] / source["fingerprint"][:16]
        if not prompter.is_dir():
            raise InputError(f"{folder}: its prompter {source['fingerprint'][:16]} is not in {workspace}")
        return prompter, folder
    if stage == "train_prompter":
        for prompts, other in artifacts(workspace, "cache_prompts/*"):
            if other["inputs"].get("prompter", {}).get("fingerprint") == record["fingerprint"]:
                return folder, prompts
        return folder, ""
    for source in record["inputs"].values() if follow else ():
        if source["stage"] in ("cache_prompts", "pretrain"):
            found = _find_prompter(workspace / "artifacts" / source["stage"] / source["fingerprint"][:16], follow)
            if found[1] or (found[0] / "prompts.safetensors").is_file():
                return found
    return folder, ""


def model_digest(folder: Path) -> str:
    """SHA-256 of the files that determine what a model computes, wherever they are. Raises InputError if one is
    missing."""
    inside, total = model_folder(folder), hashlib.sha256()
    for name in MODEL_FILES:
        try:
            with open(inside / name, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(
                f"{inside}: {name} cannot be read: {error.strerror}; this is not a model folder"
            ) from error
    return total.hexdigest()
