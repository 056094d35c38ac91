"""Trains the prompter: a video and a text encoder, with the VTC loss only (paper, section 3.2.2).

Or both towers of a CLIP or SigLIP, beyond the paper: its embedding of a clip is at first the mean of those of the
frames, so that this fine-tunes what is otherwise the baseline.
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from alpro.artifact import require
from alpro.errors import InputError
from alpro.models.alpro import Prompter
from alpro.models.clip_prompter import ClipFolder, check_clip, load_clip
from alpro.models.folder import ModelFolder
from alpro.stages.evaluation.validation import validate_contrast
from alpro.stages.execution.interface import FILE_OR_NAME, Outcome, Resources, StageConfig
from alpro.stages.training.batch import random_box
from alpro.stages.training.config import EncoderConfig
from alpro.stages.training.objective import PrompterObjective
from alpro.stages.training.stage import Training, measure_preprocessing, train, with_vocab_size

VERSION = 7


class Crops(StageConfig):
    """Training clips that show a crop of the frame, black outside, as PEM asks the prompter (section 3.2.2). Their
    captions are unchanged. Without them, the probabilities of a crop mean little: the prompter never saw one."""

    share: float = Field(
        default=0.0, ge=0, le=1, description="fraction of the examples that show a crop"
    )
    area: tuple[float, float] = Field(
        default=(0.3, 0.75), description="smallest and largest fraction of the frame in a crop"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Crops":
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area {self.area} must be two shares in order, above 0 and at most 1")
        return self

    def check(self, grid: int) -> None:
        """Raises InputError if no crop of whole patches has the area."""
        *_, width, height = random_box(grid, np.random.default_rng(0), self.area)
        if self.share and not self.area[0] <= width * height / grid**2 <= self.area[1]:
            raise InputError(
                f"train_prompter.crops.area = {list(self.area)}: no such crop of {grid} x {grid} patches"
            )


class Config(EncoderConfig):
    """Training of the prompter."""

    crops: Crops = Crops()

    clip: str = Field(
        default="",
        description="a CLIP or SigLIP to start from: a hub name or a folder; of `model`, only video.frames applies",
        json_schema_extra=FILE_OR_NAME,
    )

    @model_validator(mode="after")
    def _both_towers(self) -> "Config":
        if self.clip and (self.vit or self.bert):
            raise ValueError("clip has both towers; remove vit and bert")
        if self.clip and any(phase.patch_dropping for phase in self.phases):
            raise ValueError("patch_dropping is not for the towers of `clip`; set it to 0")
        if self.clip and self.optimizer == "muon":
            raise ValueError("optimizer = muon is not for the towers of `clip`; set it to adamw")
        if not self.clip:
            self.crops.check(self.model.video.grid)
        return self


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `tokenizer`, and the decoded corpora of the phases by name. Writes model/."""

    def build(device: torch.device) -> Training:
        folder: ModelFolder = (
            load_towers(config, device) if config.clip else untrained(config, inputs, device)
        )
        config.crops.check(folder.model.config.video.grid)  # that of a CLIP is not known before
        norm = folder.preprocessing.mean, folder.preprocessing.std
        objective = PrompterObjective(
            folder.model, *norm, config.crops.share, config.crops.area
        ).to(device)
        return Training(
            folder, objective, validate_contrast(objective, inputs, folder.tokenizer, config, out)
        )

    return train(build, config, inputs, out, resources)


def untrained(config: Config, inputs: dict[str, Path], device: torch.device) -> ModelFolder:
    """A prompter with the configured sizes, initial weights and normalization."""
    tokenizer = Tokenizer.from_file(str(require(inputs["tokenizer"], "tokenizer.json")))
    model = Prompter(with_vocab_size(config.model, tokenizer)).to(device)
    config.load_initial(model)
    return ModelFolder("prompter", model, tokenizer, measure_preprocessing(config, inputs))


def load_towers(config: Config, device: torch.device) -> ClipFolder:
    """The towers of `clip`, to be trained. Raises InputError if they are not available or too small for the texts."""
    folder = load_clip(config.clip, device, "train_prompter.clip")
    check_clip(
        config.clip, "train_prompter.clip", config.max_text_tokens
    )  # also of the hub: it was downloaded
    folder.model.unfreeze(config.model.video.frames)
    return folder
