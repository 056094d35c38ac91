"""Pre-train ALPRO: VTC + VTM + MLM + PEM with the frozen prompter (paper, sections 3.2 and 3.4)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.inference.loading import (
    Found,
    load_bundle,
    read_entities,
)
from alpro.log import log
from alpro.models.alpro import Alpro
from alpro.models.folder import ClipBundle, ModelBundle, Preprocessing, start_from
from alpro.models.losses import find_confident
from alpro.shards.pictures import draw_entities, sheet
from alpro.stages.execution.interface import (
    Corpora,
    Outcome,
    Resources,
    StageInputs,
    file_or_word,
)
from alpro.stages.training.config import EncoderConfig, MatchingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.pretrain_objective import PretrainObjective, PretrainSettings
from alpro.stages.training.stage import (
    Training,
    advance_generator,
    measure_preprocessing,
    read_tokenizer,
    train,
    with_vocab_size,
)
from alpro.stages.training.validation import BY_SIMILARITY

VERSION = 9
MAX_PICTURES = 12  # crops that a picture shows


class Config(PretrainSettings, EncoderConfig, MatchingConfig, frozen=True):
    """Pre-training of ALPRO."""

    start: str = Field(
        default="scratch", json_schema_extra=file_or_word("scratch", "prompter")
    )
    """initial weights. scratch: of vit and bert alone; prompter: its encoders; or the path of an
    ALPRO model"""

    @model_validator(mode="after")
    def _has_contrast(self) -> "Config":
        if self.contrasts_whole_batch and not self.weights.vtc:
            raise ValueError(
                "contrast = batch needs the contrastive loss, but weights.vtc is 0; remove one of "
                "the two"
            )
        return self

    @classmethod
    def without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        # The result has the last weights, however often they are validated.
        return {*super().without_effect(values), "validation.times"}

    @property
    def compares_pairs(self) -> bool:
        return self.weights.vtc + self.weights.vtm > 0

    @property
    def needs_prompter(self) -> bool:
        """Whether pseudo-labels or initial weights require a prompter."""
        return self.weights.pem > 0 or self.start == "prompter"


class Inputs(StageInputs):
    """The tokenizer, the entities and the corpora of the phases. If `Config.needs_prompter`, also a
    trained prompter and its prompts, or prompts with a CLIP or SigLIP beside them."""

    tokenizer: Path
    vocabulary: Path
    prompter: Path | None = None
    prompts: Path | None = None
    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write model/ and pictures/."""
    entities = read_entities(inputs.vocabulary)

    def build(device: torch.device) -> Training:
        prompter, tokenizer, preprocessing = load_teacher(config, inputs, device)

        # Weights of vit and bert are loaded first, because `start` replaces those that it has.
        model = Alpro(
            with_vocab_size(config.model, tokenizer), entities=len(entities)
        ).to(device)
        bundle = ModelBundle("pretrain", model, tokenizer, preprocessing, entities)
        config.load_initial(model)
        if prompter and config.start == "prompter":
            start_from(model, prompter.model)
        elif config.start != "scratch":
            copy_start(bundle, ModelBundle.from_pretrained(Path(config.start), device))

        objective = PretrainObjective.of(
            bundle,
            prompter=prompter.normalized(device) if prompter else None,
            prompts=prompter.prompts if prompter else {},
            settings=config,
            negative_pool_size=config.negative_pool_size,
        )

        draw = partial(
            draw_pseudo_labels,
            objective,
            entities=entities,
            file=out / "pictures" / "pseudo_labels.png",
        )
        return Training(
            bundle, objective, BY_SIMILARITY, draw=draw if config.weights.pem else None
        )

    return train(build, config, inputs.corpora, out, resources)


def load_teacher(
    config: Config, inputs: Inputs, device: torch.device
) -> tuple[ModelBundle | None, Tokenizer, Preprocessing]:
    """Load the prompter, if one is required, and the tokenizer and normalization of the model to
    train.

    The model uses the values of a trained prompter, but not of a CLIP or SigLIP.
    """
    source = inputs.prompter or inputs.prompts
    teacher = None
    if config.needs_prompter and source:
        teacher = load_bundle(Found(source, inputs.prompts), device)
    if teacher and not isinstance(teacher, ClipBundle):
        advance_generator(teacher)
        return teacher, teacher.tokenizer, teacher.preprocessing

    tokenizer = read_tokenizer(inputs.tokenizer)
    return teacher, tokenizer, measure_preprocessing(config, inputs.corpora)


def copy_start(target: ModelBundle, start: ModelBundle) -> None:
    """Copy the weights of another model, and its PEM head if it has the same entities.

    Raises:
        InputError: If its word pieces or its encoders differ.
    """
    if start.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise InputError(
            "pretrain.start: this model has other word pieces than the vocabulary of this run, so "
            "its word embeddings would stand for other words; set train_tokenizer.tokenizer to "
            "the tokenizer.json in its folder (a CLIP or SigLIP is no start)"
        )

    pixels = start.preprocessing
    if (pixels.mean, pixels.std) != (
        target.preprocessing.mean,
        target.preprocessing.std,
    ):
        log.warning(
            "pretrain.start: this model was trained with another normalization of the pixels"
        )

    # The rows of the PEM head's last layer belong to the entities, and are not used for others.
    excluded = () if start.entities == target.entities else ("pem_head.2",)
    try:
        start_from(target.model, start.model, excluded)
    except ValueError as error:
        raise InputError(f"pretrain.start: {error}") from error


@torch.no_grad()
def draw_pseudo_labels(
    objective: PretrainObjective,
    data: TrainingDataset,
    entities: list[str],
    file: Path,
) -> list[str]:
    """Draw the pseudo-labels of crops in the first batch. The frozen prompter gives the same labels
    throughout training.

    Returns:
        A warning if none of them is confident.
    """
    batch = objective.with_pseudo_labels(data[0].to(objective.mean.device))
    assert batch.boxes is not None
    assert batch.pseudo_labels is not None
    # One host-device sync instead of one for each picture.
    labels = batch.pseudo_labels.cpu()
    confident = find_confident(labels, objective.threshold).tolist()

    grid = objective.model.config.video.grid
    middle = batch.frames.shape[1] // 2
    pictures = []
    for i in range(min(MAX_PICTURES, len(labels))):
        top = labels[i].argsort(descending=True)[:3].tolist()
        box = batch.boxes[i].tolist()
        picture = draw_entities(
            batch.frames[i, middle].permute(1, 2, 0).cpu().numpy(),
            [side / grid for side in box],
            [(entities[index], float(labels[i, index])) for index in top],
            data.words.tokenizer.decode(batch.text[i].tolist()),
            confident[i],
        )
        pictures.append(picture)

    file.parent.mkdir(exist_ok=True)
    sheet(pictures, columns=min(6, len(pictures))).save(file)
    if any(confident):
        return []
    return [
        "PEM ignores all crops of the first batch: none has an entity of probability "
        f"{objective.threshold:g} (threshold), see {file.name}; train the prompter longer, or lower "
        "pretrain.threshold"
    ]
