"""Trains the prompter: a video and a text encoder, with the VTC loss only (paper, section 3.2.2)."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from alpro.files import read_json
from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.folder import ModelFolder, Preprocessing
from alpro.stages.artifacts.store import Outcome, Resources, require
from alpro.stages.evaluation.validation import validate_contrast
from alpro.stages.training.config import EncoderConfig
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import fit
from alpro.stages.training.objective import PrompterObjective

VERSION = 3


class Config(EncoderConfig):
    """Training of the prompter."""


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `vocabulary`, and the decoded corpora of the phases by name. Writes model/."""
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        tokenizer = Tokenizer.from_file(str(require(inputs["vocabulary"], "tokenizer.json")))
        model = Prompter(sized_for(config.model, tokenizer)).to(world.device)
        config.load_initial(model)
        preprocessing = measure(config, inputs)
        data = TrainingDataset(
            config,
            inputs,
            tokenizer,
            "sample",
            model.config.video.frames,
            model.config.video.image_size,
            rank=world.rank,
            ranks=world.size,
        )
        objective = PrompterObjective(model, list(preprocessing.mean), list(preprocessing.std)).to(world.device)
        validate = validate_contrast(objective, inputs, tokenizer, config)
        metrics = fit(objective, data, config, out, world, resources, validate)
        if world.main:
            ModelFolder("prompter", model, tokenizer, preprocessing).save_pretrained(out / "model")
        return Outcome({"steps": len(data), "samples_without_caption": data.skipped}, metrics)


def sized_for(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration with the vocabulary size of the tokenizer."""
    return model.model_copy(update={"text": model.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})})


def measure(config: EncoderConfig, inputs: dict[str, Path]) -> Preprocessing:
    """The frame normalization: CLIP's constants, or the statistics of the corpora, averaged."""
    if config.normalization == "clip":
        return Preprocessing(max_text_tokens=config.max_text_tokens)
    corpora = [read_json(require(inputs[name], "statistics.json")) for name in sorted(config.corpora)]
    mean, std = (
        np.mean([statistics[key] for statistics in corpora], axis=0).round(5).tolist() for key in ("mean", "std")
    )
    return Preprocessing(mean=mean, std=std, max_text_tokens=config.max_text_tokens)
