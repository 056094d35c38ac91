"""What build_vocabulary and cache_prompts leave for a prompter: its entities, and the embeddings of their prompts."""

from pathlib import Path

import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alpro.artifact import require
from alpro.errors import InputError


def read_entities(vocabulary: Path) -> list[str]:
    """The entities of a build_vocabulary artifact, in order."""
    return pq.read_table(require(vocabulary, "entities.parquet"))["entity"].to_pylist()


def read_prompts(folder: Path) -> dict[str, Tensor]:
    """The prompt embeddings of a cache_prompts artifact: `video` and `image`, each (M, E). Raises InputError if they
    are missing, or not readable as such."""
    file = require(folder, "prompts.safetensors")
    try:
        prompts = load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise InputError(f"{file}: not readable: {error}") from error
    if "video" not in prompts or not all(
        value.dim() == 2 and value.is_floating_point() and value.isfinite().all()
        for value in prompts.values()
    ):
        raise InputError(f"{file}: not the prompts of entities, or not finite numbers")
    return prompts
