"""What the four training stages share: seed, model, data, objective, validation, training, model folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.artifact import require
from alpro.files import read_json
from alpro.log import log
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import ModelFolder, Preprocessing, start_from
from alpro.models.precision import name_of
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training.checkpoint import trainable
from alpro.stages.training.config import EncoderConfig, TrainingConfig
from alpro.stages.training.cost import MatchingCost
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.interpolation import interpolate_
from alpro.stages.training.loop import (
    Run,
    Validate,
    are_layers_compiled,
    training_precision,
)
from alpro.stages.training.metrics import losses_at_chance, read_metrics
from alpro.stages.training.objective import Objective

Inputs = dict[str, Path]

# Mean and std of each channel of pixels in [0, 1].
CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass
class Training:
    """What a training stage defines; `train` does the rest.

    An objective without losses skips training and validates the initial weights.

    Attributes:
        folder: the model to train with its tokenizer, preprocessing and labels; it is saved as the result.
        validate: the validation function, if any.
        select: the metric for model selection; empty: the last weights are the result.
        draw: called by rank 0 with the data set before training.
        interpolates: the result is the best on validation between the initial weights and the trained ones (needs
            `select`).
        pairs: those that a validation matches.
    """

    folder: ModelFolder
    objective: Objective
    validate: Validate | None
    select: str = ""
    draw: Callable[[TrainingDataset], None] | None = None
    interpolates: bool = False
    pairs: int = 0


def train(
    build: Callable[[torch.device], Training],
    config: TrainingConfig,
    inputs: Inputs,
    out: Path,
    resources: Resources,
) -> Outcome:
    """Runs a training stage: seeds the generators, builds its model and objective on this rank's device, loads the
    data, trains, and writes `out`/model. Raises InputError as `TrainingDataset`, the validation and `Run` do."""
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        training = build(world.device)
        folder, objective = training.folder, training.objective
        # Texts have one length where ranks use those of each other, and where a new one compiles the layers again.
        local = config.batch_size // (world.size * config.accumulation_steps)
        compiled = are_layers_compiled(objective, resources, world)
        one_length = compiled or objective.shares_texts(local)
        ranks = world.rank, world.size
        data = TrainingDataset(
            config, inputs, folder.tokenizer, objective.examples, *ranks, one_length
        )
        dtype = training_precision(objective, config, world) if objective.losses else torch.float32
        warnings, metrics = list[str](), dict[str, float]()
        if world.main:
            size = sum(parameter.numel() for parameter in folder.model.parameters())
            log.info(
                f"{size / 1e6:.3g} M parameters, matrix products in {name_of(dtype)} on {world.device.type}"
            )
            warnings += data.cut_texts()
            if training.pairs:
                cost = MatchingCost.of(cast(Alpro, folder.model), config.max_text_tokens)
                examples = len(data) * config.batch_size
                line = cost.warning(examples, training.pairs, config.validation.times)
                if line:
                    log.info(line)
            for warning in warnings:
                log.warning(f"warning: {warning}")
            if training.draw:
                training.draw(data)
        if objective.losses:
            initial = dict[str, Tensor]()
            if training.interpolates:
                initial = {k: v.to("cpu", copy=True) for k, v in trainable(objective).items()}
            run = Run(objective, data, config, out, world, resources)
            metrics = run.train(training.validate, training.select)
            if training.interpolates and training.validate:
                validate = partial(run.measure, training.validate)
                metrics |= interpolate_(objective, initial, validate, training.select)
        elif training.validate:
            objective.eval()
            with torch.no_grad():
                metrics = training.validate()
        if world.main:
            if (
                "pem_head" in objective.unused_parameters
            ):  # nothing is named by a head that this training did not train
                model = cast(Alpro, folder.model)
                model.pem_head, model.mlm_head, folder.entities = None, None, []
            folder.preprocessing = folder.preprocessing.model_copy(
                update={"max_text_tokens": config.max_text_tokens}
            )
            if metrics.get("validation/mean_recall", 0) > metrics.get(
                "validation/vtc/mean_recall", np.inf
            ):
                folder.ranking = "matching"
            folder.save_pretrained(out / "model")
            for warning in losses_at_chance(
                read_metrics(out / "metrics.jsonl"), config, len(folder.answers)
            ):
                log.warning(f"warning: {warning}")
                warnings.append(warning)
        counts = {
            "steps": len(data) if objective.losses else 0,
            "examples": sum(map(len, data.sources)),
        }
        counts["samples_without_text"] = data.skipped
        return Outcome(counts, metrics, warnings, name_of(dtype))


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
    corpora = [
        read_json(require(inputs[name], "statistics.json")) for name in sorted(config.corpora)
    ]
    mean, std = (
        np.mean([statistics[key] for statistics in corpora], axis=0).round(5).tolist()
        for key in ("mean", "std")
    )
    return Preprocessing(mean=mean, std=std, max_text_tokens=config.max_text_tokens)


def fine_tuned(
    start: ModelFolder, frames: int, device: torch.device, answers: Sequence[str] = ()
) -> Alpro:
    """A model for fine-tuning with the weights of `start`, `frames` frames and a head for answers, if there are any
    (paper, section 4.1)."""
    config = start.model.config
    config = config.model_copy(update={"video": config.video.model_copy(update={"frames": frames})})
    model = Alpro(config, 0 if answers else len(start.entities), len(answers)).to(device)
    start_from(model, start.model, () if start.answers == answers else ("qa_head.2",))
    return model
