"""Read the entities of a vocabulary, and a prompter with the embedded prompts of its entities."""

from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alpro.artifact import require
from alpro.errors import InputError, one_line
from alpro.inference.encoding import load_prompter
from alpro.inference.find import Found
from alpro.models.folder import ModelBundle, load_labels

Prompts = dict[str, Tensor]  # (M, E) embeddings by the kind of a sample


def read_entities(vocabulary: Path) -> list[str]:
    """Read the entities of a build_vocabulary artifact, in order."""
    return pq.read_table(require(vocabulary, "entities.parquet"))["entity"].to_pylist()


def load_with_prompts(
    found: Found, device: torch.device
) -> tuple[ModelBundle, Prompts]:
    """Load a model, and the embedded prompts of its entities, if it has any.

    Raises:
        InputError: If a file is missing or invalid.
    """
    bundle = load_prompter(found.model, device)
    if found.prompts is None:
        return bundle, {}
    prompts = read_prompts(found.prompts)
    try:
        bundle.entities = load_labels(require(found.prompts, "entities.json"))
    except ValueError as error:
        raise InputError(str(error)) from error
    return bundle, {kind: value.to(device) for kind, value in prompts.items()}


def read_prompts(folder: Path) -> Prompts:
    """Read the prompt embeddings of a cache_prompts artifact: `video` and `image`, each (M, E).
    Raise InputError if they are missing or invalid."""
    file = require(folder, "prompts.safetensors")
    try:
        prompts = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not readable: {one_line(error)}") from error

    is_valid = all(
        value.dim() == 2 and value.isfinite().all() for value in prompts.values()
    )
    if not is_valid or "video" not in prompts:
        raise InputError(f"{file}: not the prompts of entities, or not finite numbers")
    return prompts
