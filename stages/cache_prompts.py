"""Embeds the prompts of every entity: 12 video and 12 image templates, averaged (paper, section 3.2.2)."""

from pathlib import Path

import pyarrow.parquet as pq
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.files import write_json
from alpro.models.alpro import DualEncoder
from alpro.models.clip_prompter import load_clip
from alpro.models.folder import ModelFolder, write_tensors
from alpro.models.words import Templates
from alpro.stages.evaluation.encoding import embed_texts, load_prompter
from alpro.stages.execution.interface import FILE_OR_NAME, Outcome, Resources, StageConfig, require
from alpro.stages.training.distributed import pick_device

VERSION = 5
MAX_PROMPT_TOKENS = 64


class Config(StageConfig):
    """Prompts of the entities; their templates are set in `[templates]`."""

    templates: Templates = Templates()
    prompter: str = Field(
        default="",
        description="a CLIP or SigLIP as the prompter instead of a trained one: a hub name or a folder",
        json_schema_extra=FILE_OR_NAME,
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `vocabulary`, and `prompter` unless it is configured.

    Writes prompts.safetensors with `video` and `image`, each (M, E), and entities.json. A configured prompter is copied
    to model/: the later stages then use these weights, whatever becomes of the folder or the hub.
    """
    device = pick_device(resources)
    if config.prompter:
        prompter: ModelFolder = load_clip(config.prompter, device)
        prompter.save_pretrained(out / "model")
    else:
        prompter = load_prompter(inputs["prompter"], device)
    entities = read_entities(inputs["vocabulary"])
    prompts = {
        kind: embed(prompter.model, prompter.tokenizer, entities, templates)
        for kind, templates in config.templates.kinds.items()
    }
    write_tensors(
        {kind: value.cpu() for kind, value in prompts.items()}, out / "prompts.safetensors"
    )
    write_json(out / "entities.json", entities)
    return Outcome({"entities": len(entities)})


def embed(
    model: DualEncoder, tokenizer: Tokenizer, words: list[str], templates: tuple[str, ...]
) -> Tensor:
    """The mean embedding (M, E) of the prompts of each of M words, not normalized again, as in the official code."""
    texts = [template.replace("{}", word) for word in words for template in templates]
    features = embed_texts(model, tokenizer, texts, MAX_PROMPT_TOKENS)
    return features.view(len(words), len(templates), -1).mean(dim=1)


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
