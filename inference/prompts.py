"""What build_vocabulary and cache_prompts leave for a prompter: its entities, and the embeddings of
their prompts."""

from pathlib import Path

import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alpro.artifact import require
from alpro.errors import InputError, one_line


def read_entities(vocabulary: Path) -> list[str]:
    """The entities of a build_vocabulary artifact, in order."""
    return pq.read_table(require(vocabulary, "entities.parquet"))["entity"].to_pylist()


def read_prompts(folder: Path) -> dict[str, Tensor]:
    """The prompt embeddings of a cache_prompts artifact: `video` and `image`, each (M, E). Raises
    InputError if they are missing, or not readable as such."""
    file = require(folder, "prompts.safetensors")
    try:
        prompts = load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise InputError(f"{file}: not readable: {one_line(error)}") from error

    is_valid = "video" in prompts
    for value in prompts.values():
        is_matrix = value.dim() == 2 and value.is_floating_point()
        is_valid = is_valid and is_matrix and bool(value.isfinite().all())
    if not is_valid:
        raise InputError(f"{file}: not the prompts of entities, or not finite numbers")
    return prompts
