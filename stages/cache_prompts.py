"""Embeds the prompts of every entity once: 12 video and 12 image templates, averaged (paper, section 3.2.2)."""

from pathlib import Path

import pyarrow.parquet as pq
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.alpro import DualEncoder
from models.templates import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from stages.artifacts import Outcome, Resources, StageConfig, require, write_json
from stages.evaluation.encode import encode_texts, load_model
from stages.training.distributed import pick_device

VERSION = 2


class Config(StageConfig):
    """The prompts; the defaults are the official code's."""

    video_templates: tuple[str, ...] = Field(
        tuple(VIDEO_TEMPLATES), min_length=1, description="prompts for videos, {} is the entity"
    )
    image_templates: tuple[str, ...] = Field(
        tuple(IMAGE_TEMPLATES), min_length=1, description="prompts for images, {} is the entity"
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `prompter`, `vocabulary`. Writes prompts.safetensors: `video` and `image`, each (M, E); entities.json."""
    device = pick_device(resources)
    prompter = load_model(inputs["prompter"], device)
    entities = read_entities(inputs["vocabulary"])
    prompts = {
        kind: embed(prompter.model, prompter.tokenizer, entities, templates, device)
        for kind, templates in (("video", config.video_templates), ("image", config.image_templates))
    }
    save_file({kind: value.cpu() for kind, value in prompts.items()}, out / "prompts.safetensors")
    write_json(out / "entities.json", entities)
    similar = prompts["video"] @ prompts["video"].T
    similar.fill_diagonal_(-1)
    return Outcome(
        {"entities": len(entities)}, {"prompts/nearest_other_cosine": similar.max(dim=1).values.mean().item()}
    )


def embed(
    model: DualEncoder, tokenizer: Tokenizer, entities: list[str], templates: tuple[str, ...], device: torch.device
) -> Tensor:
    """The mean embedding (M, E) of each entity's prompts; not normalised again, as in the official code."""
    texts = [template.format(entity) for entity in entities for template in templates]
    features = encode_texts(model, tokenizer, texts, 64, device).features
    return features.view(len(entities), len(templates), -1).mean(dim=1)


def read_entities(vocabulary: Path) -> list[str]:
    return pq.read_table(require(vocabulary, "entities.parquet"))["entity"].to_pylist()


def read_prompts(folder: Path) -> dict[str, Tensor]:
    """The prompt embeddings of a cache_prompts artifact: `video` and `image`, each (M, E)."""
    return load_file(require(folder, "prompts.safetensors"))
