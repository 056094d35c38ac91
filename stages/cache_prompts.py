"""Embed the prompts of every entity: 12 video and 12 image templates, averaged (paper, section
3.2.2)."""

from pathlib import Path

from torch import Tensor

from alpro.files import write_json
from alpro.inference.loading import Found, load_bundle, read_entities
from alpro.models.folder import ModelBundle, load_clip_model, write_tensors
from alpro.models.precision import pick_device
from alpro.models.words import Templates
from alpro.stages.execution.interface import (
    FileOrName,
    Outcome,
    Resources,
    StageConfig,
    StageInputs,
)

VERSION = 5
MAX_PROMPT_TOKENS = 64


class Config(StageConfig, frozen=True):
    """Prompts of the entities; their templates are set in `[templates]`."""

    templates: Templates = Templates()
    prompter: FileOrName = ""
    """a CLIP or SigLIP as the prompter instead of a trained one: a hub name or a folder"""


class Inputs(StageInputs):
    """The entities, and the trained prompter unless another one is configured."""

    vocabulary: Path
    prompter: Path | None = None


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write prompts.safetensors with `video` and `image`, each (M, E), and entities.json.

    A configured prompter is copied to model/, so that later stages use the same weights even if its
    folder or the hub changes.
    """
    device = pick_device(resources.device)
    if config.prompter:
        prompter: ModelBundle = load_clip_model(config.prompter, device)
        prompter.save_pretrained(out / "model")
    else:
        assert inputs.prompter is not None
        prompter = load_bundle(Found(inputs.prompter), device)

    entities = read_entities(inputs.vocabulary)
    prompts = {}
    for kind, templates in config.templates.model_dump().items():
        embeddings = embed(prompter, entities, templates)
        prompts[kind] = embeddings.cpu()

    # Row m of each tensor belongs to entity m. `load_bundle` compares their shapes.
    write_tensors(prompts, out / "prompts.safetensors")
    write_json(out / "entities.json", entities)
    return Outcome({"entities": len(entities)})


def embed(
    prompter: ModelBundle,
    words: list[str],
    templates: tuple[str, ...],
) -> Tensor:
    """Average the embeddings of the prompts of each word. As in the official code, the mean is not
    normalized again.

    Shape:
        returns: (M, E) for M words.
    """
    texts = [template.replace("{}", word) for word in words for template in templates]
    features = prompter.embed_texts(texts, MAX_PROMPT_TOKENS)
    # The prompts of a word are consecutive in `texts`.
    return features.view(len(words), len(templates), -1).mean(dim=1)
