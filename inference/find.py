"""Finds the model that a person names: a folder, or an artifact of a workspace by its fingerprint or its stage."""

import hashlib
from pathlib import Path

from alpro.artifact import check_artifact, read_record
from alpro.artifact_names import artifacts, find_artifact
from alpro.errors import InputError
from alpro.files import checksum, file_state, read_json
from alpro.stages.encoding.encode import model_folder

REQUIRED = ("config.json", "model.safetensors")
# Also decide what a model computes, if they are there: the tokenizer, and the preprocessing of a CLIP.
OTHERS = [f"{name}.json" for name in ("tokenizer", "tokenizer_config", "special_tokens_map", "preprocessor_config")]
OTHERS += ["vocab.json", "merges.txt", "vocab.txt", "spiece.model"]


def find_model(name: str | Path, workspace: Path) -> Path:
    """The folder of a model: `name` itself, or that of the artifact that it names, see `find_artifact`.

    Raises InputError if there is none, or more than one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not has_model(folder):
            raise InputError(f"{folder}: not a model folder: it has no config.json")
        check_artifact(folder)
        return folder
    found, _ = find_artifact(name, workspace)
    if not has_model(found):
        raise InputError(f"{name}: the artifact of {found.parent.name} has no model")
    check_artifact(found)
    return found


def has_model(folder: Path) -> bool:
    """Whether a folder has a model, or the prompts of one."""
    return (model_folder(folder) / "config.json").is_file() or (folder / "prompts.safetensors").is_file()


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
        for prompts, other in reversed(artifacts(workspace / "artifacts", "cache_prompts/*")):
            if other["inputs"].get("prompter", {}).get("fingerprint") == record["fingerprint"]:
                return folder, prompts
        return folder, ""
    for source in record["inputs"].values() if follow else ():
        if source["stage"] in ("cache_prompts", "pretrain"):
            found = _find_prompter(workspace / "artifacts" / source["stage"] / source["fingerprint"][:16], follow)
            if found[1] or (found[0] / "prompts.safetensors").is_file():
                return found
    return folder, ""


def is_pretrained(folder: Path) -> bool:
    """Whether a folder has a model of pre-training, which names entities itself."""
    config = model_folder(folder) / "config.json"
    return config.is_file() and read_json(config).get("task") == "pretrain"


def model_digest(folder: Path) -> str:
    """SHA-256 of the files that determine what a model computes, wherever they are. Raises InputError if one is
    missing."""
    inside, total = model_folder(folder), hashlib.sha256()
    for name in (*REQUIRED, *OTHERS):
        if file_state(inside / name) is not None:
            total.update(f"{name} {checksum(inside / name)}\n".encode())
        elif name in REQUIRED:
            raise InputError(f"{inside}: {name} is missing, or not a regular file; this is not a model folder")
    return total.hexdigest()
