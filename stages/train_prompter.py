"""Train the prompter, a video and a text encoder, with the VTC loss only (paper, section 3.2.2).

Beyond the paper, it can be both towers of a CLIP or SigLIP. Its embedding of a clip is at first the
mean over the frames, so this fine-tunes what is otherwise the baseline.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, model_validator

from alpro.errors import InputError
from alpro.models.alpro import Prompter
from alpro.models.folder import ModelBundle, load_clip_model
from alpro.shards.transforms import random_box
from alpro.stages.execution.interface import (
    Corpora,
    FileOrName,
    Outcome,
    Resources,
    Share,
    StageConfig,
    StageInputs,
)
from alpro.stages.training.config import EncoderConfig
from alpro.stages.training.objective import PrompterObjective
from alpro.stages.training.stage import (
    Training,
    measure_preprocessing,
    read_tokenizer,
    train,
    with_vocab_size,
)
from alpro.stages.training.validation import BY_SIMILARITY

VERSION = 8  # a CLIP keeps the best weights on validation

SELECTED = "validation/vtc/mean_recall"


class Crops(StageConfig, frozen=True):
    """Training clips that are black outside of a crop, as PEM shows them to the prompter (section
    3.2.2). Their captions are unchanged. A prompter that was trained without crops has poor
    pseudo-labels."""

    share: Share = 0.0
    """fraction of the examples that show a crop"""
    area: tuple[float, float] = (0.3, 0.75)
    """smallest and largest fraction of the frame in a crop"""

    @model_validator(mode="after")
    def _in_order(self) -> "Crops":
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"area {self.area} must be two shares in order, above 0 and at most 1"
            )
        return self

    def check(self, grid: int) -> None:
        """Raise InputError if no crop of whole patches has the area."""
        # `random_box` returns a box of another area if none fits.
        _, _, width, height = random_box(grid, np.random.default_rng(0), self.area)
        smallest, largest = self.area
        if not smallest <= width * height / grid**2 <= largest:
            raise InputError(
                f"train_prompter.crops.area = {list(self.area)}: no such crop of {grid} x {grid} "
                "patches"
            )


class Config(EncoderConfig, frozen=True):
    """Training of the prompter."""

    crops: Crops = Crops()

    clip: FileOrName = ""
    """a CLIP or SigLIP to start from: a hub name or a folder; of `model`, only video.frames
    applies"""
    new_lr: NonNegativeFloat = 0.0
    """peak learning rate of the temporal attention that `clip` gets; 0: lr"""
    trained_layers: int = Field(default=-1, ge=-1)
    """last layers of each tower of `clip` that are trained, with all that follows them; -1:
    everything; 0: temporal attention, final norms and projections"""
    interpolate: bool = False
    """keep the best weights on validation between `clip` and the trained ones (WiSE-FT)"""

    @classmethod
    def without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        keys = super().without_effect(values)
        # Validation selects the weights of a CLIP, so its result depends on how often there is one.
        return keys if values.get("clip") else {*keys, "validation.times"}

    @property
    def new_lr_scale(self) -> float:
        return self.new_lr / self.lr if self.new_lr else 1.0

    @model_validator(mode="after")
    def _match_clip(self) -> "Config":
        if self.clip and (self.vit or self.bert):
            raise ValueError("clip has both towers; remove vit and bert")
        if self.clip and self.optimizer == "muon":
            raise ValueError(
                "optimizer = muon is not for the towers of `clip`; set it to adamw"
            )
        if not self.clip and (
            self.new_lr or self.trained_layers >= 0 or self.interpolate
        ):
            raise ValueError(
                "new_lr, trained_layers and interpolate are for the towers of `clip`"
            )
        if not self.clip and self.crops.share:
            self.crops.check(self.model.video.grid)
        return self


class Inputs(StageInputs):
    """The corpora of the phases, and the tokenizer, unless the prompter is a CLIP, which has its
    own."""

    tokenizer: Path | None = None
    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write model/."""

    def build(device: torch.device) -> Training:
        bundle: ModelBundle
        if config.clip:
            bundle = load_towers(config, device)
        else:
            bundle = build_prompter(config, inputs, device)
        # The grid of a CLIP is known only when it is loaded.
        if config.crops.share:
            config.crops.check(bundle.model.config.video.grid)

        objective = PrompterObjective.of(
            bundle, crop_share=config.crops.share, crop_area=config.crops.area
        )
        # The paper's prompter has the last weights. A short training may make a CLIP worse.
        return Training(
            bundle,
            objective,
            BY_SIMILARITY,
            select=SELECTED if config.clip else "",
            interpolates=config.interpolate,
        )

    return train(build, config, inputs.corpora, out, resources)


def build_prompter(config: Config, inputs: Inputs, device: torch.device) -> ModelBundle:
    """Build a prompter with the configured sizes, initial weights and normalization."""
    # `needs` omits the tokenizer only for `clip`.
    assert inputs.tokenizer is not None
    tokenizer = read_tokenizer(inputs.tokenizer)
    model = Prompter(with_vocab_size(config.model, tokenizer)).to(device)
    config.load_initial(model)
    return ModelBundle(
        "prompter", model, tokenizer, measure_preprocessing(config, inputs.corpora)
    )


def load_towers(config: Config, device: torch.device) -> ModelBundle:
    """Load the towers of `clip` for training.

    Raises:
        InputError: If they are not available or too small for the texts.
    """
    bundle = load_clip_model(config.clip, device, "clip")
    length = bundle.preprocessing.max_text_tokens
    if config.max_text_tokens > length:
        raise InputError(
            f"train_prompter.max_text_tokens = {config.max_text_tokens}: the texts of this CLIP "
            f"have at most {length} tokens"
        )
    bundle.model.unfreeze(config.model.video.frames, config.trained_layers)
    return bundle
