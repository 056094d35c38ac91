"""Fine-tune for text-video retrieval: VTC + VTM, with model selection on the validation split
(paper, section 4.1)."""

from pathlib import Path

import torch

from alpro.models.folder import ModelBundle
from alpro.stages.evaluation.evaluate_model import Asked
from alpro.stages.execution.interface import (
    Corpora,
    Count,
    Outcome,
    Resources,
    StageInputs,
)
from alpro.stages.training.config import MatchingConfig, MatchingValidation
from alpro.stages.training.objective import MatchingObjective
from alpro.stages.training.stage import (
    Training,
    build_fine_tuned,
    train,
)

VERSION = 6


class Config(MatchingConfig, frozen=True):
    """Fine-tuning for retrieval; `msrvtt_retrieval` has the official values."""

    validation: MatchingValidation = MatchingValidation()
    frames: Count = 8
    """frames of a clip; the time embedding is resized"""


class Inputs(StageInputs):
    """The pre-trained model, and the corpora of the phases."""

    model: Path
    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write model/ with the best weights on validation, and the ranking that was better there: by
    similarity or by matching."""

    def build(device: torch.device) -> Training:
        start = ModelBundle.from_pretrained(inputs.model, device)
        bundle = build_fine_tuned("retrieval", start, config.frames, device)
        objective = MatchingObjective.of(
            bundle, negative_pool_size=config.negative_pool_size
        )
        asked = Asked(top_k=config.validation.top_k)
        # The metric is by matching, as in the paper.
        return Training(bundle, objective, asked, select="validation/mean_recall")

    return train(build, config, inputs.corpora, out, resources)
