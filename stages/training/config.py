"""The configuration of all training stages: data, schedule and optimizer."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from alpro.errors import InputError
from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.initial import Encoder, load_bert, load_vit, read_encoder
from alpro.stages.evaluation.protocol import TOP_K
from alpro.stages.execution.interface import (
    NO_EFFECT,
    Count,
    FileOrName,
    Share,
    StageConfig,
)


class Phase(StageConfig, frozen=True):
    """A phase of training on a set of corpora. A batch has samples of one corpus and one kind, video
    or image."""

    corpora: tuple[str, ...] = Field(min_length=1)
    """names of decoded corpora"""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """relative number of steps per corpus; empty: by number of examples"""
    steps: NonNegativeInt = 0
    """optimizer steps; set either steps or epochs"""
    epochs: NonNegativeFloat = 0
    """passes over the examples"""
    group_batches: bool = False
    """put samples of a group into one batch, as negatives of each other"""

    @model_validator(mode="after")
    def _one_length(self) -> "Phase":
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("give either steps or epochs")
        if self.weights and len(self.weights) != len(self.corpora):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.corpora)} corpora"
            )
        return self


class Validation(StageConfig, frozen=True):
    """Frequency of validation, and the part of each corpus's validation split that it uses."""

    times: Count = 1
    """validations, equally spaced; the last at the end"""
    videos: NonNegativeInt = 0
    """validation videos per corpus, the first ones; 0: all"""


class ContrastValidation(Validation, frozen=True):
    """Validation of retrieval by similarity (VTC)."""

    videos: NonNegativeInt = 500
    """validation videos per corpus, the first ones; 0: all"""
    captions: NonNegativeInt = 1
    """captions per video that are queries, the first ones; 0: all"""


class MatchingValidation(Validation, frozen=True):
    """Validation of retrieval by matching (VTM). The default is the test protocol."""

    captions: NonNegativeInt = 0
    """captions per video that are queries, the first ones; 0: all"""
    top_k: NonNegativeInt = Field(default=0, description=TOP_K)


class TrainingConfig(StageConfig, frozen=True):
    """Settings of every training stage; the defaults are the paper's pre-training."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    """phases of training, in order"""
    seed: NonNegativeInt = 0
    """random seed"""
    batch_size: Count = 256
    """examples per optimizer step, over all processes"""
    accumulation_steps: Count = 1
    """micro-batches per step (gradient accumulation)"""
    contrast: Literal["micro_batch", "batch"] = "micro_batch"
    """pairs that VTC compares: of a micro_batch, or of the whole batch (which encodes twice, and
    needs negative_pool_size where it exists)"""
    lr: PositiveFloat = 1e-4
    """peak learning rate"""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """fraction of the steps with linear warm-up"""
    min_lr_ratio: Share = 0.0
    """final learning rate of the linear decay, as a fraction of lr"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices of transformer layers; AdamW trains the rest"""
    weight_decay: NonNegativeFloat = 1e-3
    """weight decay, except of biases, norms and position embeddings"""
    max_grad_norm: PositiveFloat = 20.0
    """maximum L2 norm of the gradient"""
    max_text_tokens: int = Field(default=30, ge=4)
    """maximum tokens of a text, with [CLS] and [SEP]"""
    sampling: Literal["halves", "random"] = "halves"
    """random frames in order, as many from each half of the clip (halves) or from all of it
    (random)"""
    random_crop: float = Field(default=0.875, gt=0, le=1)
    """side of the random crop as a fraction of the frame; 1: no crop"""
    repeat_images: bool = True
    """an image is a clip of equal frames; false: one frame"""
    augmentation: Literal["none", "official"] = "none"
    """official: RandAugment; for images also a random resized crop, and a flip unless the text says
    left or right"""
    max_unreadable_share: Share = 0.01
    """maximum fraction of unreadable examples, which are replaced"""
    validation: Validation = Validation()
    log_every: Count = Field(default=10, json_schema_extra=NO_EFFECT)
    """steps between logged metrics (means)"""
    mixed_precision: bool = True
    """bfloat16 on hardware that computes it; on a CPU from width 96"""

    @property
    def new_lr_scale(self) -> float:
        """Learning rate of the modules that the initial weights lack, as a multiple of `lr`."""
        return 1.0

    @property
    def compares_pairs(self) -> bool:
        """Whether a loss compares each pair of a batch with others."""
        return True

    @property
    def contrasts_whole_batch(self) -> bool:
        """Whether contrast goes beyond a micro-batch."""
        return self.contrast == "batch" and self.accumulation_steps > 1

    @property
    def corpora(self) -> list[str]:
        """Distinct names of the training corpora, in the order of the phases."""
        return list(
            dict.fromkeys(name for phase in self.phases for name in phase.corpora)
        )

    @model_validator(mode="after")
    def _has_negatives(self) -> "TrainingConfig":
        whole = self.contrast == "batch"
        parts = 1 if whole else self.accumulation_steps
        if whole and not self.compares_pairs:
            raise ValueError("contrast = batch: no loss compares pairs; remove the key")
        if self.compares_pairs and self.batch_size <= parts:
            raise ValueError(
                f"batch_size {self.batch_size} in {parts} micro-batches: a pair alone has no "
                "negatives, so nothing would be learned; raise batch_size or lower accumulation_steps"
            )
        return self

    def check_division(self, ranks: int) -> None:
        """Check that a batch can be divided equally among processes.

        Args:
            ranks: Number of processes on all machines.

        Raises:
            InputError: If it cannot.
        """
        parts = ranks * self.accumulation_steps
        if self.batch_size % parts:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of {parts} = {ranks} processes x "
                f"{self.accumulation_steps} accumulation_steps"
            )


class MatchingConfig(TrainingConfig, frozen=True):
    """Settings of the stages that train video-text matching."""

    negative_pool_size: NonNegativeInt = 0
    """consecutive pairs of the batch among which hard negatives are drawn; 0: all. The paper uses
    16, the per-GPU batch size"""

    @model_validator(mode="after")
    def _whole_pools(self) -> "MatchingConfig":
        pairs = self.batch_size // self.accumulation_steps
        if self.compares_pairs and 1 in (pairs, self.negative_pool_size):
            raise ValueError(
                f"negative_pool_size {self.negative_pool_size} and batch_size / accumulation_steps = "
                f"{pairs}: a pair alone has no negatives; raise the one that is 1"
            )
        if self.contrasts_whole_batch and not self.negative_pool_size:
            raise ValueError(
                "contrast = batch with accumulation_steps needs negative_pool_size: hard negatives "
                "from the whole batch would need the tokens of all micro-batches; set it to a "
                f"divisor of {pairs}, such as {pairs}"
            )
        if self.negative_pool_size and pairs % self.negative_pool_size:
            raise ValueError(
                f"negative_pool_size {self.negative_pool_size} does not divide "
                f"batch_size / accumulation_steps = {pairs}"
            )
        return self

    def check_division(self, ranks: int) -> None:
        super().check_division(ranks)
        pairs = self.batch_size // self.accumulation_steps // ranks
        pool = self.negative_pool_size

        # Ranks have whole pools, or pools have whole ranks: no pool spans parts of two ranks.
        if pool and pairs % pool and pool % pairs:
            raise InputError(
                f"negative_pool_size {pool} and the {pairs} pairs per process and micro-batch "
                f"({ranks} processes): one must be a multiple of the other"
            )


class EncoderConfig(TrainingConfig, frozen=True):
    """Settings of the stages that create a model: its sizes and its initial weights."""

    validation: ContrastValidation = ContrastValidation()
    model: ModelConfig = ModelConfig()
    vit: FileOrName = ""
    """pre-trained ViT: a name of timm with its tag, a state-dict file, or a CLIP of transformers"""
    bert: FileOrName = ""
    """pre-trained BERT of the text and multimodal encoders: a hub name or a folder"""
    normalization: Literal["clip", "corpus", "imagenet", "half"] = "clip"
    """mean and std of pixels: of CLIP, the corpora, ImageNet (DINOv2), or 0.5 (SigLIP).
    Pre-training uses the values of a trained prompter"""

    def check_encoders(self) -> None:
        """Check the sizes of a ViT and a BERT in folders, as far as their config.json tells.

        Raises:
            InputError: If `model` has others, or if they are other kinds of models.
        """
        encoders: list[tuple[Encoder, str]] = [("vit", self.vit), ("bert", self.bert)]
        try:
            for key, name in encoders:
                if name and Path(name).is_dir():
                    read_encoder(key, name, self.model)
        except ValueError as error:
            raise InputError(str(error)) from error

    def load_initial(self, model: Prompter) -> None:
        """Load the ViT and BERT weights into a model.

        Raises:
            InputError: If they are not available or do not match.
        """
        try:
            if self.vit:
                load_vit(model, self.vit)
            if self.bert:
                load_bert(model, self.bert)
        except ValueError as error:
            raise InputError(str(error)) from error
