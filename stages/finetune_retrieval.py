"""Fine-tunes for text-video retrieval: VTC + VTM, with model selection on the validation split (paper, section 4.1)."""

from pathlib import Path
from typing import cast

import torch
from pydantic import Field

from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, start_from
from alpro.stages.artifacts.store import Outcome, Resources
from alpro.stages.evaluation.encode import load_model
from alpro.stages.evaluation.validation import validate_retrieval
from alpro.stages.training.config import MatchingConfig, MatchingValidation
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import fit
from alpro.stages.training.objective import MatchingObjective

VERSION = 3


class Config(MatchingConfig):
    """Fine-tuning for retrieval."""

    validation: MatchingValidation = MatchingValidation()
    frames: int = Field(8, ge=1, description="number of frames of a clip; the time embedding is resized")


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `model`, and the corpora of the phases by name. Writes model/ with the best weights on validation."""
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        start = load_model(inputs["model"], world.device)
        shape = start.model.config
        shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": config.frames})})
        model, _ = start_from(Alpro(shape, entities=len(start.entities)).to(world.device), cast(Alpro, start.model))
        data = TrainingDataset(
            config,
            inputs,
            start.tokenizer,
            "caption",
            config.frames,
            shape.video.image_size,
            rank=world.rank,
            ranks=world.size,
        )
        mean, std = list(start.preprocessing.mean), list(start.preprocessing.std)
        objective = MatchingObjective(model, mean, std, config.negative_pool_size).to(world.device)
        validate, select = validate_retrieval(objective, inputs, start.tokenizer, config)
        metrics = fit(objective, data, config, out, world, resources, validate, select)
        if world.main:
            preprocessing = start.preprocessing.model_copy(update={"max_text_tokens": config.max_text_tokens})
            ModelFolder("retrieval", model, start.tokenizer, preprocessing, start.entities).save_pretrained(
                out / "model"
            )
        return Outcome(
            {"steps": len(data), "pairs": sum(len(s) for s in data.sources), "samples_without_caption": data.skipped},
            metrics,
        )
