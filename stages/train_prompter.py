"""Trains the prompter: a video and a text encoder, with the VTC loss only (paper, section 3.2.2)."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from alpro.models.alpro import Prompter
from alpro.models.folder import ModelFolder
from alpro.stages.evaluation.validation import validate_contrast
from alpro.stages.execution.interface import Outcome, Resources, require
from alpro.stages.training.config import EncoderConfig
from alpro.stages.training.objective import PrompterObjective
from alpro.stages.training.stage import Training, measure_preprocessing, train, with_vocab_size

VERSION = 3


class Config(EncoderConfig):
    """Training of the prompter."""


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `vocabulary`, and the decoded corpora of the phases by name. Writes model/."""

    def build(device: torch.device) -> Training:
        tokenizer = Tokenizer.from_file(str(require(inputs["vocabulary"], "tokenizer.json")))
        model = Prompter(with_vocab_size(config.model, tokenizer)).to(device)
        config.load_initial(model)
        preprocessing = measure_preprocessing(config, inputs)
        objective = PrompterObjective(model, preprocessing.mean, preprocessing.std)
        return Training(
            ModelFolder("prompter", model, tokenizer, preprocessing),
            "sample",
            objective,
            lambda: (validate_contrast(objective, inputs, tokenizer, config), ""),
        )

    trained = train(build, config, inputs, out, resources)
    return trained.outcome({"samples_without_caption": trained.data.skipped})
