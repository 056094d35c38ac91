"""Finds the model that a person names: a folder, an artifact of a workspace, or a CLIP of the
hub."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alpro.artifact import Source, artifacts, check_artifact, read_record
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import checksum, file_state, read_json
from alpro.inference.encoding import model_folder
from alpro.models.clip_prompter import hub_folder, is_hub_name
from alpro.names import find_artifact, named_artifacts, similar_name

# The first that exists; only a CLIP may have the second.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Also decide what a model computes, if they are there: the tokenizer, and the preprocessing of a
# CLIP.
OTHERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
PROMPTS = "prompts.safetensors"


@dataclass(frozen=True)
class FoundModel:
    """A model that was found and compared with its record: its folder, and the SHA-256 of the files
    that were read for that. Who has one need not read the weights again to know which model it
    is."""

    path: Path
    checksums: Mapping[Path, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """See `model_digest`."""
        return model_digest(self.path, self.checksums)


def find_model(name: str | Path, workspace: Path) -> Path:
    """The folder of a model, see `verified_model`."""
    return verified_model(name, workspace).path


def verified_model(name: str | Path | FoundModel, workspace: Path) -> FoundModel:
    """A model: the folder `name` itself, that of the artifact that it names, see `find_artifact`,
    or that of a CLIP or SigLIP of the hub, which is downloaded. Raises InputError unless exactly
    one is found, and if it is damaged."""
    if isinstance(name, FoundModel):
        return name
    refuse_credentials("model", str(name))

    folder = Path(name).expanduser()
    if not folder.is_dir():
        # CONFIG/STAGE looks like OWNER/MODEL: the workspace comes first.
        if is_hub_name(str(name)) and not named_artifacts(str(name), workspace):
            similar = similar_name(str(name), workspace)
            if similar:
                raise InputError(
                    f"{name}: no artifact of this name; did you mean {similar}? "
                    "`alpro artifacts ls` lists all"
                )
            # It has no record; loading it checks its files.
            return FoundModel(hub_folder(str(name)))
        folder, _ = find_artifact(name, workspace)

    if not has_model(folder) and not (folder / PROMPTS).is_file():
        raise InputError(f"{folder}: not a model folder: it has no config.json")
    return FoundModel(folder, check_artifact(folder))


def has_model(folder: Path) -> bool:
    """Whether a folder is a model folder, or an artifact with one."""
    return (model_folder(folder) / "config.json").is_file()


def input_folder(artifact: Path, source: Source) -> Path:
    """The folder of an input of an artifact, which its record names, in the same workspace."""
    return source.folder(artifact.parents[1])


def find_prompter(folder: Path, follow: bool = False) -> tuple[Path, Path | None]:
    """The folder of a prompter and that of its prompts (None: there are no prompts), from a folder
    of either.

    An artifact of cache_prompts names its prompter, and that of a prompter is named by the newest
    cache_prompts of the workspace that embedded entities with it. follow: a model that was trained
    with a prompter also stands for it.
    """
    prompter, prompts = _find_prompter(folder, follow)
    # Whoever names `folder` has compared it with its record.
    for other in {prompter, prompts} - {folder, None}:
        assert other is not None
        check_artifact(other)
    return prompter, prompts


def _find_prompter(folder: Path, follow: bool) -> tuple[Path, Path | None]:
    # cache_prompts of a CLIP, and an imported prompter.
    if (folder / PROMPTS).is_file() and has_model(folder):
        return folder, folder
    if follow and has_model(folder / "prompter"):  # of an imported checkpoint
        return _find_prompter(folder / "prompter", False)

    record = read_record(folder)
    if record is None:
        return folder, None

    inputs = record.inputs
    if record.stage == "cache_prompts" and "prompter" in inputs:
        return input_folder(folder, inputs["prompter"]), folder
    if record.stage == "train_prompter":
        # The newest first: other templates or vocabularies may have been tried before.
        for prompts, other in reversed(artifacts(folder.parents[1], "cache_prompts/*")):
            source = other.inputs.get("prompter")
            if source and source.fingerprint == record.fingerprint:
                return folder, prompts

    if follow:
        # The prompter of a fine-tuned model is that of the model that it started from.
        for start in inputs.values():
            if start.stage in ("cache_prompts", "pretrain"):
                found = _find_prompter(input_folder(folder, start), follow)
                if found[1]:
                    return found
    return folder, None


def is_pretrained(folder: Path) -> bool:
    """Whether a folder has a model of pre-training, which names entities itself."""
    if not has_model(folder):
        return False
    config = read_json(model_folder(folder) / "config.json")
    return config.get("task") == "pretrain"


def model_digest(folder: Path, checksums: Mapping[Path, str] | None = None) -> str:
    """SHA-256 of the files that determine what a model computes, wherever they are. checksums:
    those of files that were read already. Raises InputError if one is missing."""
    known = checksums or {}
    inside = model_folder(folder)
    weights = next((name for name in WEIGHTS if (inside / name).exists()), WEIGHTS[0])

    total = hashlib.sha256()
    for name in ("config.json", weights, *OTHERS):
        file = inside / name
        if file_state(file) is not None:
            sha256 = known.get(file) or checksum(file)
            total.update(f"{name} {sha256}\n".encode())
        elif name not in OTHERS:
            raise InputError(
                f"{inside}: {name} is missing, or not a regular file; this is not a model folder"
            )
    return total.hexdigest()


@dataclass(frozen=True)
class Found:
    """Temporary: as in the branch of the models."""

    model: Path
    prompts: Path | None = None
    checksums: Mapping[Path, str] = field(default_factory=dict, compare=False)

    @cached_property
    def digest(self) -> str:
        return model_digest(self.model, self.checksums)


def resolve(name: "str | Path | Found", workspace: Path) -> Found:
    if isinstance(name, Found):
        return name
    found = verified_model(name, workspace)
    model, prompts = find_prompter(found.path)
    return Found(model, prompts, found.checksums if model == found.path else {})
