"""Find the model that a name stands for, and load it: a folder, an artifact of a workspace, or a CLIP
of the hub, with the embedded prompts of its entities."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from alpro.artifact import artifacts, check_artifact, read_record
from alpro.errors import InputError
from alpro.files import checksum, expand_home
from alpro.inference.names import find_artifact, find_workspace, is_of_workspace
from alpro.models.folder import (
    CLIP_TYPES,
    ModelBundle,
    is_clip,
    load_labels,
    model_folder,
)
from alpro.models.pretrained import HubName
from alpro.models.weights import check_finite, find_weights, read_weights
from alpro.shards.credentials import refuse_credentials

# Other files that decide what a model computes, if they exist: its tokenizer, and a CLIP's
# preprocessing.
OPTIONAL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
NOT_CLIP = f"it has no config.json of a {' or '.join(CLIP_TYPES)}"
PathLike = str | Path
PROMPTS = "prompts.safetensors"
Prompts = dict[str, Tensor]  # (M, E) embeddings by the kind of a sample


@dataclass(frozen=True)
class Found:
    """A model, compared with its record.

    Attributes:
        model: Folder of the model, or the artifact that has it.
        prompts: Folder with the embedded prompts of a prompter's entities; None if there are none.
    """

    model: Path
    prompts: Path | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files that determine what the model computes."""
        folder = model_folder(self.model)
        total = hashlib.sha256()
        for name in ("config.json", find_weights(folder).name, *OPTIONAL_FILES):
            file = folder / name
            if file.is_file():
                total.update(f"{name} {checksum(file)}\n".encode())
        return total.hexdigest()


def resolve(name: PathLike, workspace: PathLike | None = None) -> Found:
    """Return the model that a name stands for.

    Args:
        name: A folder; a name of an artifact, as in `find_artifact`; or a CLIP or SigLIP of the
            hub, which is downloaded. An artifact of cache_prompts stands for its prompter, and a
            prompter has the newest prompts of the workspace that were embedded with it.
        workspace: By default $ALPRO_WORKSPACE, or the folder `workspace`.

    Raises:
        InputError: If there is no such model, or more than one, or a file of it is damaged.
    """
    folder = find_folder(str(name), find_workspace(workspace))
    model, prompts = find_prompts(folder)
    if not has_model(model):
        raise InputError(f"{folder}: not a model folder: it has no config.json")
    for used in {model, prompts or model}:
        check_artifact(used)
    return Found(model, prompts)


def find_folder(name: str, workspace: Path) -> Path:
    """Return the folder that `resolve` looks at first."""
    refuse_credentials("model", name)
    folder = expand_home(name).absolute()
    if folder.is_dir():
        return folder

    # CONFIG/STAGE looks like OWNER/MODEL: the workspace comes first.
    hub_name = HubName.parse(name)
    if hub_name is None or is_of_workspace(name, workspace):
        folder, _ = find_artifact(name, workspace)
        return folder.absolute()

    folder = hub_name.folder()
    if not is_clip(folder):
        raise InputError(f"{name}: {NOT_CLIP}")
    return folder


def check_clip(name: str, key: str) -> None:
    """Check a CLIP or SigLIP as far as possible without a download.

    Args:
        name: A folder or a name on the hub.
        key: Configuration key of the name, for messages.

    Raises:
        InputError: If it is another kind of model.
    """
    hub_name = HubName.parse(name)
    folder = hub_name.cached() if hub_name else Path(name)
    if folder and not is_clip(folder):
        raise InputError(
            f"{key} = {name!r}: {NOT_CLIP}, or is no folder and no OWNER/MODEL"
        )


def find_prompts(folder: Path) -> tuple[Path, Path | None]:
    """Return the model and the prompts that a folder of either stands for."""
    # An artifact of cache_prompts with a CLIP, and an imported prompter.
    if (folder / PROMPTS).is_file() and has_model(folder):
        return folder, folder

    record = read_record(folder)
    if record and record.stage == "cache_prompts" and "prompter" in record.inputs:
        # Inputs of an artifact are in the same workspace.
        return record.inputs["prompter"].folder(folder.parents[1]), folder
    if record and record.stage == "train_prompter":
        # The newest first: other templates or vocabularies may have been tried before.
        for prompts, other in reversed(artifacts(folder.parents[1], "cache_prompts/*")):
            source = other.inputs.get("prompter")
            if source and source.fingerprint == record.fingerprint:
                return folder, prompts
    return folder, None


def has_model(folder: Path) -> bool:
    """Return True if a folder is a model folder, or an artifact with one."""
    return (model_folder(folder) / "config.json").is_file()


def load_bundle(found: Found, device: torch.device) -> ModelBundle:
    """Load a model, and the embedded prompts of its entities, if it has any.

    Raises:
        InputError: If a file is missing or invalid, or the prompts have another shape than the
            model's.
    """
    bundle = ModelBundle.from_pretrained(found.model, device)
    if found.prompts is None:
        return bundle

    bundle.entities, prompts = read_prompts(found.prompts)
    shape = (len(bundle.entities), bundle.model.config.embed_dim)
    for kind, value in prompts.items():
        if value.shape != shape:
            raise InputError(
                f"{found.prompts}: not the prompts of its entities by this model, but "
                f"{tuple(value.shape)} in place of {shape}; embed them again (cache_prompts)"
            )
        bundle.prompts[kind] = value.to(device)
    return bundle


def read_prompts(folder: Path) -> tuple[list[str], Prompts]:
    """Read the entities (M) of a cache_prompts artifact, and their embeddings: `video` and `image`,
    each (M, E). Raise InputError if a file is missing or invalid."""
    file = folder / PROMPTS
    try:
        entities = load_labels(folder / "entities.json")
        prompts = read_weights(file)
        check_finite(prompts, file)
    except ValueError as error:
        raise InputError(str(error)) from error
    if "video" not in prompts:
        raise InputError(f"{file}: not the prompts of entities")
    return entities, prompts


def read_entities(vocabulary: Path) -> list[str]:
    """Read the entities of a build_vocabulary artifact, in order."""
    return pq.read_table(vocabulary / "entities.parquet")["entity"].to_pylist()
