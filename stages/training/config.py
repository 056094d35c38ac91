"""The configuration that every training stage shares: what is shown when, and how the weights are moved."""

from typing import Literal

from pydantic import Field, model_validator

from alpro.errors import InputError
from alpro.models.alpro import DualEncoder, ModelConfig
from alpro.models.initial import load_initial
from alpro.stages.artifacts.store import FILE_OR_NAME, StageConfig

Protocol = Literal["all", "top_k"]


class Phase(StageConfig):
    """A stretch of training on certain corpora. Every batch is of one corpus and one kind (video or image)."""

    corpora: tuple[str, ...] = Field(min_length=1, description="names of decoded corpora")
    weights: tuple[float, ...] = Field(
        (), description="share of the steps for each corpus; empty: by number of examples"
    )
    steps: int = Field(0, ge=0, description="steps; or give epochs")
    epochs: float = Field(0, ge=0, description="passes over the examples of its corpora; or give steps")

    @model_validator(mode="after")
    def _one_length(self) -> "Phase":
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("give either steps or epochs")
        if self.weights and len(self.weights) != len(self.corpora):
            raise ValueError(f"{len(self.weights)} weights for {len(self.corpora)} corpora")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be above 0; leave out a corpus that is not wanted")
        return self


class Validation(StageConfig):
    """How often a training stage validates, and on how much of the validation split of its corpora."""

    times: int = Field(1, ge=1, description="validations in a run, at equal distances; the last is at the end")
    videos: int = Field(0, ge=0, description="validate on the first videos of each corpus; 0: on all")


class ContrastValidation(Validation):
    """Validation of retrieval by similarity."""

    videos: int = Field(500, ge=0, description="validate on the first videos of each corpus; 0: on all")
    captions: int = Field(1, ge=0, description="first captions of a video that are queries; 0: all")


class MatchingValidation(Validation):
    """Validation of retrieval by matching; the default is the protocol of the test."""

    captions: int = Field(0, ge=0, description="first captions of a video that are queries; 0: all")
    protocol: Protocol = Field(
        "all", description="all: the matching head on every pair; top_k: on the k most similar pairs of a query"
    )
    k: int = Field(128, ge=1, description="pairs a query that top_k matches")


class TrainingConfig(StageConfig):
    """What every training stage has; the defaults are the paper's pre-training."""

    phases: tuple[Phase, ...] = Field(min_length=1, description="what is trained on, in order")
    seed: int = Field(0, ge=0, description="seed of weights, order, sampling, masking and dropout")
    batch_size: int = Field(256, ge=1, description="examples of an optimiser step, over all processes")
    accumulation_steps: int = Field(
        1,
        ge=1,
        description="parts that a step's batch is worked in; contrast is within a part, so this changes the result",
    )
    lr: float = Field(1e-4, gt=0, description="highest learning rate")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="share of the highest rate that the linear decay ends at")
    weight_decay: float = Field(1e-3, ge=0, description="AdamW's, not on biases, norms and position embeddings")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's")
    eps: float = Field(1e-6, gt=0, description="AdamW's")
    max_grad_norm: float = Field(20.0, gt=0, description="largest norm of the gradient")
    max_text_tokens: int = Field(30, ge=4, description="most word pieces of a text")
    sampling: Literal["halves", "random"] = Field(
        "halves", description="frames: half from each half of the clip, or any"
    )
    random_crop: float = Field(
        0.875, gt=0, le=1, description="side of the random crop, share of the frame; 1 = whole frame"
    )
    augmentation: Literal["none", "official"] = Field(
        "none",
        description="official: RandAugment, and for images a random resized crop and flip; nothing that is flipped "
        "has left or right in its text",
    )
    group_batches: bool = Field(False, description="put samples of one group into one batch, as each other's negatives")
    max_unreadable_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the examples that may turn out damaged in their shards before training ends; each is "
        "told, and the next one shown in its place",
    )
    validation: Validation = Validation()
    log_every: int = Field(10, ge=1, description="steps between logged metrics, each the mean since the last")
    mixed_precision: bool = Field(True, description="bfloat16 autocast, on a GPU")

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora that it trains on, each once, in the order of the phases."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase.corpora))

    def check_division(self, ranks: int) -> None:
        """Raises InputError if a batch cannot be divided equally among so many processes."""
        if self.batch_size % (ranks * self.accumulation_steps):
            raise InputError(
                f"batch_size {self.batch_size} does not divide among {ranks} processes x {self.accumulation_steps} "
                "parts"
            )


class MatchingConfig(TrainingConfig):
    """What the stages share that train video-text matching."""

    negative_pool_size: int = Field(
        0,
        ge=0,
        description="hard negatives of a pair are drawn among this many consecutive pairs of the batch, however many "
        "processes share it; 0: among all of them. The paper: as many as a GPU had, 16 in pre-training",
    )

    @model_validator(mode="after")
    def _whole_pools(self) -> "MatchingConfig":
        part = self.batch_size // self.accumulation_steps
        if self.negative_pool_size and part % self.negative_pool_size:
            raise ValueError(
                f"negative_pool_size {self.negative_pool_size} does not divide batch_size / accumulation_steps = {part}"
            )
        return self

    def check_division(self, ranks: int) -> None:
        super().check_division(ranks)
        local, pool = self.batch_size // self.accumulation_steps // ranks, self.negative_pool_size
        if pool and local % pool and pool % local:
            raise InputError(
                f"negative_pool_size {pool}: with {ranks} processes each has {local} pairs at a time; one must be a "
                "multiple of the other"
            )


class EncoderConfig(TrainingConfig):
    """What the stages share that make a model: its sizes, and where its weights come from."""

    validation: ContrastValidation = ContrastValidation()
    model: ModelConfig = ModelConfig()
    vit: str = Field(
        "",
        description="ViT that the video encoder starts from: a timm name with its tag, such as "
        "vit_base_patch16_224.orig_in21k_ft_in1k, or a file of weights; empty: none",
        json_schema_extra=FILE_OR_NAME,
    )
    bert: str = Field(
        "",
        description="BERT that the text layers start from: a hub name, in the cache or not, or a folder; empty: none",
        json_schema_extra=FILE_OR_NAME,
    )

    normalization: Literal["clip", "corpus"] = Field(
        "clip",
        description="mean and std of the pixels: CLIP's, which the paper uses, or those of the corpora; a pre-training "
        "with a prompter takes the prompter's",
    )

    def load_initial(self, model: DualEncoder) -> None:
        """Gives a new model the weights that are named. Raises InputError where they cannot be had or do not fit."""
        try:
            load_initial(model, self.vit, self.bert)
        except ValueError as error:
            raise InputError(str(error)) from error
