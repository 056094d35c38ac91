"""Fine-tunes for text-video retrieval: VTC + VTM, selected on validation (paper, section 4.1)."""

from pathlib import Path
from typing import cast

import torch
from pydantic import Field

from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, start_from
from alpro.stages import Stage
from alpro.stages.artifacts.store import Outcome, Resources
from alpro.stages.evaluation.encode import load_model
from alpro.stages.evaluation.validation import validate_retrieval
from alpro.stages.training.config import MatchingConfig, MatchingValidation
from alpro.stages.training.distributed import world
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import fit
from alpro.stages.training.objective import MatchingObjective

VERSION = 3
STAGE = Stage(help="fine-tune for text-video retrieval", kind="training")


class Config(MatchingConfig):
    """Fine-tuning for retrieval."""

    validation: MatchingValidation = MatchingValidation()
    frames: int = Field(8, ge=1, description="frames of a clip; the time embedding is resized to it")


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `model` and, by their names, the corpora of the phases. Writes model/, the best on validation."""
    with world(resources) as here:
        torch.manual_seed(config.seed)
        start = load_model(inputs["model"], here.device)
        shape = start.model.config
        shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": config.frames})})
        model, _ = start_from(Alpro(shape, entities=len(start.entities)).to(here.device), cast(Alpro, start.model))
        data = TrainingDataset(
            config,
            inputs,
            start.tokenizer,
            "caption",
            config.frames,
            shape.video.image_size,
            rank=here.rank,
            ranks=here.size,
        )
        mean, std = list(start.preprocessing.mean), list(start.preprocessing.std)
        objective = MatchingObjective(model, mean, std, config.negative_pool_size).to(here.device)
        validate, select = validate_retrieval(objective, inputs, start.tokenizer, config)
        metrics = fit(objective, data, config, out, here, resources, validate, select)
        if here.main:
            preprocessing = start.preprocessing.model_copy(update={"max_text_tokens": config.max_text_tokens})
            ModelFolder("retrieval", model, start.tokenizer, preprocessing, start.entities).save_pretrained(
                out / "model"
            )
        return Outcome(
            {"steps": len(data), "pairs": sum(len(s) for s in data.sources), "samples_without_caption": data.skipped},
            metrics,
        )
