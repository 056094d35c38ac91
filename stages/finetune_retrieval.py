"""Fine-tune for text-video retrieval: VTC + VTM, with model selection on the validation split
(paper, section 4.1)."""

from pathlib import Path

import torch
from pydantic import Field

from alpro.inference.encoding import load_model
from alpro.models.folder import ModelBundle
from alpro.stages.evaluation.evaluate_model import Asked
from alpro.stages.evaluation.validation import build_validation
from alpro.stages.execution.interface import (
    Needs,
    Outcome,
    Pipeline,
    Resources,
    StageInputs,
)
from alpro.stages.training.config import MatchingConfig, MatchingValidation
from alpro.stages.training.objective import MatchingObjective
from alpro.stages.training.stage import (
    Training,
    build_fine_tuned,
    needs_pretrained,
    train,
)

VERSION = 6


class Config(MatchingConfig, frozen=True):
    """Fine-tuning for retrieval; `msrvtt_retrieval` has the official values."""

    validation: MatchingValidation = MatchingValidation()
    frames: int = Field(
        default=8, ge=1, description="frames of a clip; the time embedding is resized"
    )


class Inputs(StageInputs):
    """The pre-trained model, and the corpora of the phases."""

    model: Path
    corpora: dict[str, Path]


def needs(pipeline: Pipeline) -> list[Needs]:
    """Fine-tune if it is configured."""
    return needs_pretrained(pipeline.finetune_retrieval, pipeline)


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write model/ with the best weights on validation, and the ranking that was better there: by
    similarity or by matching."""

    def build(device: torch.device) -> Training:
        start = load_model(inputs.model, device)
        model = build_fine_tuned(start, config.frames, device)
        objective = MatchingObjective(
            model,
            mean=start.preprocessing.mean,
            std=start.preprocessing.std,
            negative_pool_size=config.negative_pool_size,
        ).to(device)
        asked = Asked(tasks=("retrieval",), top_k=config.validation.top_k)
        validate = build_validation(
            objective, inputs.corpora, start.tokenizer, config, asked
        )
        return Training(
            ModelBundle(
                "retrieval", model, start.tokenizer, start.preprocessing, start.entities
            ),
            objective,
            validate,
            select="validation/mean_recall",  # by matching, as in the paper
        )

    return train(build, config, inputs.corpora, out, resources)
