"""Pre-trains ALPRO: VTC + VTM + MLM + PEM with the frozen prompter (paper, sections 3.2 and 3.4)."""

from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import Field

from models.alpro import Alpro, ModelConfig, Prompter
from models.folder import ModelFolder, start_from
from stages.artifacts import Outcome, Resources, StageConfig
from stages.cache_prompts import read_entities, read_prompts
from stages.evaluation.contrast import validate_contrast
from stages.evaluation.encode import load_model
from stages.pictures import pseudo_label_pictures
from stages.train_prompter import sized_for
from stages.training.config import TrainingConfig
from stages.training.distributed import world
from stages.training.examples import Steps
from stages.training.loop import fit
from stages.training.objective import PretrainObjective

VERSION = 1


class Weights(StageConfig):
    """The weight of each loss (equation 6: all 1). 0 leaves the loss and its work out."""

    vtc: float = Field(1.0, ge=0, description="video-text contrast")
    vtm: float = Field(1.0, ge=0, description="video-text matching")
    mlm: float = Field(1.0, ge=0, description="masked language modelling")
    pem: float = Field(1.0, ge=0, description="prompting entity modelling")


class Config(TrainingConfig):
    """Pre-training of ALPRO."""

    model: ModelConfig = ModelConfig()
    weights: Weights = Weights()
    start: Literal["prompter", "scratch"] = Field("scratch", description="where the encoders' weights come from")
    mask_rate: float = Field(0.15, ge=0, le=1, description="share of the words that MLM masks")
    threshold: float = Field(
        0.2, ge=0, le=1, description="a pseudo-label whose best entity has a lower probability is dropped"
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `vocabulary`, `prompter`, `prompts` and the corpora of the phases. Writes model/ and pictures/."""
    with world(resources) as here:
        torch.manual_seed(config.seed)
        teacher = load_model(inputs["prompter"] / "model", here.device)
        prompter, tokenizer, preprocessing = cast(Prompter, teacher.model), teacher.tokenizer, teacher.preprocessing
        entities = read_entities(inputs["vocabulary"])
        prompts = {kind: value.to(here.device) for kind, value in read_prompts(inputs["prompts"]).items()}
        model = Alpro(sized_for(config.model, tokenizer), entities=len(entities)).to(here.device)
        if config.start == "prompter":
            start_from(model, prompter)
        video = model.config.video
        data = Steps(
            config,
            inputs,
            tokenizer,
            "sample",
            video.frames,
            video.image_size,
            video.grid,
            config.mask_rate,
            rank=here.rank,
            ranks=here.size,
        )
        objective = PretrainObjective(
            model,
            list(preprocessing.mean),
            list(preprocessing.std),
            prompter,
            prompts,
            config.weights.model_dump(),
            config.threshold,
        ).to(here.device)
        validate = validate_contrast(objective, inputs, tokenizer, config.text_length)
        metrics = fit(objective, data, config, out, here, resources, validate)
        if here.main:
            preprocessing = preprocessing.model_copy(update={"text_length": config.text_length})
            ModelFolder("pretrain", model, tokenizer, preprocessing, entities).save(out / "model")
            pseudo_label_pictures(objective, data, entities, out / "pictures")
        return Outcome(
            {"steps": len(data), "samples_without_caption": data.skipped, "entities": len(entities)}, metrics
        )
