"""The common steps of the four training stages: seed, model, data, objective, validation, training,
model folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from alpro.files import read_json
from alpro.log import log
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import (
    ModelBundle,
    Preprocessing,
    Task,
    build_model,
    start_from,
)
from alpro.models.precision import dtype_name
from alpro.shards.reader import REPAIR
from alpro.stages.evaluation.evaluate_model import Asked
from alpro.stages.execution.interface import (
    Corpora,
    Outcome,
    Resources,
)
from alpro.stages.training.checkpoint import copy_trainable
from alpro.stages.training.config import EncoderConfig, TrainingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.interpolation import interpolate_
from alpro.stages.training.layers import are_layers_compiled, training_precision
from alpro.stages.training.loop import Trainer
from alpro.stages.training.metrics import Metrics
from alpro.stages.training.objective import Objective
from alpro.stages.training.validation import build_validation

# Mean and standard deviation of pixels, by the value of `normalization`; CLIP's are the defaults.
NORMALIZATIONS = {
    "clip": Preprocessing(),
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}


@dataclass
class Training:
    """The parts of a training that its stage defines.

    If the objective has no losses, `train` validates the initial weights instead of training.

    Attributes:
        bundle: Model to train with its tokenizer, preprocessing and labels; it is saved as the
            result.
        asked: What validation scores.
        select: Metric for model selection. Empty: the last weights are the result.
        draw: Called by rank 0 with the data set before training; returns warnings.
        interpolates: Whether the result is the best interpolation between the initial and the
            trained weights on validation (needs `select`).

    Without validation videos, the last weights are the result.
    """

    bundle: ModelBundle
    objective: Objective
    asked: Asked
    select: str = ""
    draw: Callable[[TrainingDataset], list[str]] | None = None
    interpolates: bool = False


def train(
    build: Callable[[torch.device], Training],
    config: TrainingConfig,
    corpora: Corpora,
    out: Path,
    resources: Resources,
) -> Outcome:
    """Run a training stage, and write `out`/model.

    Args:
        build: Builds the model and the objective on this rank's device, after the generators have
            been seeded.

    Raises:
        InputError: As `TrainingDataset`, the validation and `Trainer`.
    """
    with init_distributed(resources) as world:
        # New weights are the same on every rank. `Trainer` then seeds dropout by rank.
        torch.manual_seed(config.seed)
        training = build(world.device)
        bundle = training.bundle
        objective = training.objective.to(world.device)
        validate = build_validation(objective, corpora, bundle, config, training.asked)

        # Texts have one length if ranks use texts of each other, and if layers are compiled, which
        # another length would compile again.
        pairs_per_rank = config.batch_size // (world.size * config.accumulation_steps)
        compiled = are_layers_compiled(objective, resources, world)
        data = TrainingDataset(
            config,
            corpora,
            bundle.words,
            objective.examples,
            rank=world.rank,
            ranks=world.size,
            one_length=compiled or objective.shares_texts(pairs_per_rank),
        )
        dtype = (
            training_precision(objective, config, world)
            if objective.losses
            else torch.float32
        )

        warnings: list[str] = []
        if world.main:
            log.info(f"training in {dtype_name(dtype)} on {world.device.type}")
            warnings += warn_before_training(training, data, bool(validate))
            for warning in warnings:
                log.warning(warning)

        metrics: Metrics = {}
        if objective.losses:
            initial = copy_trainable(objective) if training.interpolates else {}
            trainer = Trainer(objective, data, config, out, world, resources)
            metrics = trainer.train(validate, training.select if validate else "")
            warnings += warn_after_training(trainer)
            if training.interpolates and validate:
                measure = partial(trainer.measure, validate)
                metrics |= interpolate_(objective, initial, measure, training.select)
        elif validate:
            objective.eval()
            with torch.no_grad():
                metrics = validate()

        if world.main:
            save_model(training, config, metrics, out / "model")

        counts = {
            "steps": len(data) if objective.losses else 0,
            "examples": sum(map(len, data.sources)),
            "samples_without_text": data.skipped,
        }
        return Outcome(counts, metrics, warnings, dtype_name(dtype))


def warn_before_training(
    training: Training, data: TrainingDataset, can_validate: bool
) -> Iterator[str]:
    """Yield what a user may want to change before the training."""
    yield from data.find_truncated_texts()
    if training.interpolates and not can_validate:
        yield (
            "interpolate = true chooses weights on validation, and no corpus has a "
            "validation split: the last weights are kept"
        )
    if training.draw:
        yield from training.draw(data)


def warn_after_training(trainer: Trainer) -> Iterator[str]:
    """Yield the steps and the examples that the training did without."""
    state = trainer.state
    if state.skipped:
        yield (
            f"{state.skipped} of {state.step} steps were skipped, because a loss or the gradient was "
            "not finite; lower lr"
        )
    if state.unreadable:
        yield (
            f"{state.unreadable} of the examples could not be read, and others took their place; "
            f"{REPAIR}"
        )


def save_model(
    training: Training,
    config: TrainingConfig,
    metrics: Metrics,
    folder: Path,
) -> None:
    """Write the trained model with its text length and its better ranking on validation."""
    bundle = training.bundle
    # A PEM head without training cannot label entities. An Alpro has both heads or neither: its
    # folder tells by the entities.
    if "pem_head" in training.objective.unused_parameters:
        model = cast(Alpro, bundle.model)
        model.pem_head = None
        model.mlm_head = None
        bundle.entities = []

    bundle.preprocessing = bundle.preprocessing.model_copy(
        update={"max_text_tokens": config.max_text_tokens}
    )

    # Without both scores, the model ranks by similarity.
    by_matching = metrics.get("validation/mean_recall", 0)
    by_similarity = metrics.get("validation/vtc/mean_recall", np.inf)
    if by_matching > by_similarity:
        bundle.ranking = "matching"
    bundle.save_pretrained(folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a train_tokenizer artifact."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def with_vocab_size(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the configuration with the vocabulary size of the tokenizer."""
    text = config.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    return config.model_copy(update={"text": text})


def measure_preprocessing(config: EncoderConfig, corpora: Corpora) -> Preprocessing:
    """Return the normalization of frames: constants, or the averaged statistics of the corpora."""
    if config.normalization != "corpus":
        return NORMALIZATIONS[config.normalization]

    statistics = []
    for name in sorted(config.corpora):
        values = read_json(corpora[name] / "statistics.json")
        statistics.append([values["mean"], values["std"]])
    mean, std = np.mean(statistics, axis=0).round(5).tolist()
    return Preprocessing(mean=mean, std=std)


def advance_generator(loaded: ModelBundle) -> None:
    """Draw the random numbers that initialize a model which was loaded.

    Loading once initialized a model before it read the weights. The new weights of a training are
    drawn after that, so without these numbers the results of all configurations would change.
    """
    build_model(
        loaded.task,
        loaded.model.config,
        entities=len(loaded.entities),
        answers=len(loaded.answers),
    )


def build_fine_tuned(
    task: Task,
    start: ModelBundle,
    frames: int,
    device: torch.device,
    answers: Sequence[str] = (),
) -> ModelBundle:
    """Build a model for fine-tuning with the weights of `start`, `frames` frames and a head for the
    answers, if there are any (paper, section 4.1)."""
    advance_generator(start)
    config = start.model.config.with_frames(frames)
    # Question answering trains neither MLM nor PEM, so the model has no such heads.
    entities = [] if answers else start.entities
    model = build_model(task, config, len(entities), len(answers)).to(device)

    # The rows of the head's last layer belong to the answers, and are not used for other answers.
    excluded = () if start.answers == answers else ("qa_head.2",)
    start_from(model, start.model, excluded)
    return ModelBundle(
        task, model, start.tokenizer, start.preprocessing, entities, [*answers]
    )
