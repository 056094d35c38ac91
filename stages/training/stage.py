"""What the four training stages share: seed, model, data, objective, validation, training, model folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from alpro.files import read_json
from alpro.log import log
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import ModelFolder, Preprocessing, start_from
from alpro.models.precision import name_of
from alpro.stages.execution.interface import Outcome, Resources, require
from alpro.stages.training.config import EncoderConfig, TrainingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.loop import Run, Validate, training_precision
from alpro.stages.training.metrics import losses_at_chance, read_metrics
from alpro.stages.training.objective import Objective

Inputs = dict[str, Path]

# Mean and std of each channel of pixels in [0, 1].
CONSTANTS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


@dataclass
class Training:
    """What a training stage defines; `train` does the rest.

    folder: the model to train with its tokenizer, preprocessing and labels; it is saved as the result. validate: the
    validation function, if any; select: the metric for model selection (empty: the last weights are the result). draw:
    called by rank 0 with the data set after every step, and with step 0 after training. An objective without losses
    skips training and validates the initial weights.
    """

    folder: ModelFolder
    objective: Objective
    validate: Validate | None
    select: str = ""
    draw: Callable[[TrainingDataset, int], None] | None = None


@dataclass
class Trained:
    """The result of `train`: the model folder, the data set, the number of steps, the final metrics, warnings, and the
    type of the matrix products."""

    folder: ModelFolder
    data: TrainingDataset
    steps: int
    metrics: dict[str, float]
    warnings: list[str]
    dtype: torch.dtype

    def outcome(self, counts: dict[str, int]) -> Outcome:
        return Outcome({"steps": self.steps} | counts, self.metrics, self.warnings, name_of(self.dtype))


def train(
    build: Callable[[torch.device], Training], config: TrainingConfig, inputs: Inputs, out: Path, resources: Resources
) -> Trained:
    """Runs a training stage: seeds the generators, builds its model and objective on this rank's device, loads the
    data, trains, and writes `out`/model. Raises InputError as `TrainingDataset`, the validation and `Run` do."""
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        training = build(world.device)
        folder, objective, draw = training.folder, training.objective, training.draw
        # Texts have one length where ranks use those of each other, and where a new one compiles the layers again.
        local = config.batch_size // (world.size * config.accumulation_steps)
        one_length = resources.compile or objective.shares_texts(local)
        ranks = world.rank, world.size
        data = TrainingDataset(config, inputs, folder.tokenizer, objective.examples, *ranks, one_length)
        warnings, metrics, steps, dtype = list[str](), dict[str, float](), len(data), torch.float32
        if objective.losses:
            dtype = training_precision(objective, config, world)
        if world.main:
            for line in folder.model.sizes(config.max_text_tokens):
                log.info(line)
            log.info(f"matrix products in {name_of(dtype)}, on {world.device.type}")
            warnings += data.cut_texts()
            for warning in warnings:
                log.warning(f"warning: {warning}")
        if objective.losses:
            on_step = (lambda step: draw(data, step)) if draw else None
            metrics = Run(objective, data, config, out, world, resources).train(
                training.validate, training.select, on_step
            )
        else:
            steps = 0
            objective.eval()
            with torch.no_grad():
                metrics = training.validate() if training.validate else {}
        if world.main:
            if "pem_head" in objective.unused_parameters:  # nothing is named by a head that this training did not train
                model = cast(Alpro, folder.model)
                model.pem_head, model.mlm_head, folder.entities = None, None, []
            folder.preprocessing = folder.preprocessing.model_copy(update={"max_text_tokens": config.max_text_tokens})
            if metrics.get("validation/mean_recall", 0) > metrics.get("validation/vtc/mean_recall", np.inf):
                folder.ranking = "matching"
            folder.save_pretrained(out / "model")
            if draw:
                draw(data, 0)
            for warning in losses_at_chance(read_metrics(out / "metrics.jsonl"), config, len(folder.answers)):
                log.warning(f"warning: {warning}")
                warnings.append(warning)
        return Trained(folder, data, steps, metrics, warnings, dtype)


def with_vocab_size(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration with the vocabulary size of the tokenizer."""
    text = config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    return config.model_copy(update={"text": text})


def measure_preprocessing(config: EncoderConfig, inputs: Inputs) -> Preprocessing:
    """The frame normalization: constants, or the statistics of the corpora, averaged. Raises InputError."""
    if config.normalization == "clip":
        return Preprocessing(max_text_tokens=config.max_text_tokens)
    if config.normalization in CONSTANTS:
        mean, std = CONSTANTS[config.normalization]
        return Preprocessing(mean=mean, std=std, max_text_tokens=config.max_text_tokens)
    corpora = [read_json(require(inputs[name], "statistics.json")) for name in sorted(config.corpora)]
    mean, std = (
        np.mean([statistics[key] for statistics in corpora], axis=0).round(5).tolist() for key in ("mean", "std")
    )
    return Preprocessing(mean=mean, std=std, max_text_tokens=config.max_text_tokens)


def fine_tuned(start: ModelFolder, frames: int, device: torch.device, entities: int = 0, answers: int = 0) -> Alpro:
    """A model for fine-tuning with the weights of `start`, `frames` frames and new heads (paper, section 4.1)."""
    config = start.model.config
    config = config.model_copy(update={"video": config.video.model_copy(update={"frames": frames})})
    model, _ = start_from(Alpro(config, entities, answers).to(device), cast(Alpro, start.model))
    return model
