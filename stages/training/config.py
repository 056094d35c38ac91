"""The configuration that all training stages share: data, schedule and optimizer."""

from typing import Literal

from pydantic import Field, model_validator

from alpro.errors import InputError
from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.initial import load_bert, load_vit
from alpro.stages.execution.interface import FILE_OR_NAME, StageConfig

TOP_K = "the matching head scores only this many most similar pairs of each query; 0: every pair"


class Phase(StageConfig):
    """A phase of training on a set of corpora. Every batch has samples of one corpus and one kind (video or image)."""

    corpora: tuple[str, ...] = Field(min_length=1, description="names of decoded corpora")
    weights: tuple[float, ...] = Field(
        (), description="relative number of steps per corpus; empty: by number of examples"
    )
    steps: int = Field(0, ge=0, description="number of optimizer steps; set either steps or epochs")
    epochs: float = Field(0, ge=0, description="number of passes over the examples of its corpora")

    group_batches: bool = Field(
        False, description="put samples of the same group into the same batch, as negatives of each other"
    )
    patch_dropping: float = Field(
        0,
        ge=0,
        lt=1,
        description="fraction of the patches that training drops at random, the same in all frames of a clip (FLIP); "
        "not with PEM",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "Phase":
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("give either steps or epochs")
        if self.weights and len(self.weights) != len(self.corpora):
            raise ValueError(f"{len(self.weights)} weights for {len(self.corpora)} corpora")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be above 0; remove a corpus from `corpora` to skip it")
        return self


class Validation(StageConfig):
    """Validation frequency, and how much of the validation split of each corpus is used."""

    times: int = Field(1, ge=1, description="number of validations, equally spaced; the last at the end")
    videos: int = Field(0, ge=0, description="number of validation videos per corpus, the first ones; 0: all")


class ContrastValidation(Validation):
    """Validation of retrieval by similarity (VTC)."""

    videos: int = Field(500, ge=0, description="number of validation videos per corpus, the first ones; 0: all")
    captions: int = Field(1, ge=0, description="number of captions per video used as queries, the first ones; 0: all")


class MatchingValidation(Validation):
    """Validation of retrieval by matching (VTM); the default is the test protocol."""

    captions: int = Field(0, ge=0, description="number of captions per video used as queries, the first ones; 0: all")
    top_k: int = Field(0, ge=0, description=TOP_K)


class TrainingConfig(StageConfig):
    """Settings of every training stage; the defaults are the paper's pre-training."""

    phases: tuple[Phase, ...] = Field(min_length=1, description="phases of training, in order")
    seed: int = Field(
        0, ge=0, description="random seed of initialization, data order, frame sampling, masking and dropout"
    )
    batch_size: int = Field(256, ge=1, description="examples per optimizer step, over all processes")
    accumulation_steps: int = Field(
        1, ge=1, description="gradient accumulation: micro-batches per step; see `contrast`"
    )
    contrast: Literal["micro_batch", "batch"] = Field(
        "micro_batch",
        description="pairs that the contrastive loss compares. micro_batch: those of a micro-batch; batch: those of "
        "the step: micro-batches are then encoded twice, and negative_pool_size must be set where it exists",
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="fraction of the steps with linear warm-up")
    min_lr_ratio: float = Field(
        0.0, ge=0, le=1, description="final learning rate of the linear decay, as a fraction of lr"
    )
    weight_decay: float = Field(
        1e-3, ge=0, description="weight decay of AdamW; not applied to biases, norms and position embeddings"
    )
    max_grad_norm: float = Field(20.0, gt=0, description="gradient clipping: maximum L2 norm")
    max_text_tokens: int = Field(30, ge=4, description="maximum length of a text in tokens, with [CLS] and [SEP]")
    sampling: Literal["halves", "random"] = Field(
        "halves",
        description="random frames in order. halves: half of them from each half of the clip; random: from all of it",
    )
    random_crop: float = Field(
        0.875, gt=0, le=1, description="side of the random crop as a fraction of the frame; 1: no crop"
    )
    repeat_images: bool = Field(
        True,
        description="an image is a clip of equal frames, as in the paper; false: one frame",
    )
    augmentation: Literal["none", "official"] = Field(
        "none",
        description="official: RandAugment, and for images a random resized crop and flip; samples with left or right "
        "in their text are never flipped",
    )
    max_unreadable_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="maximum fraction of unreadable examples, which are replaced; training stops above it",
    )
    validation: Validation = Validation()
    log_every: int = Field(10, ge=1, description="steps between logged metrics, which are means since the last log")
    mixed_precision: bool = Field(
        True,
        description="bfloat16 on GPUs, and from width 256 on processors with instructions for it",
    )

    @property
    def contrasts_whole_batch(self) -> bool:
        """Whether contrast goes beyond a micro-batch."""
        return self.contrast == "batch" and self.accumulation_steps > 1

    @property
    def corpora(self) -> list[str]:
        """The distinct names of the training corpora, in the order of the phases."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase.corpora))

    def check_division(self, ranks: int) -> None:
        """Raises InputError if a batch cannot be divided equally among `ranks` processes."""
        if self.batch_size % (ranks * self.accumulation_steps):
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of {ranks} processes x {self.accumulation_steps} "
                "accumulation_steps"
            )


class MatchingConfig(TrainingConfig):
    """Settings of the stages that train video-text matching."""

    negative_pool_size: int = Field(
        0,
        ge=0,
        description="hard negatives of a pair are sampled from this many consecutive pairs of the batch, for any "
        "number of processes; 0: from all. The paper: 16 in pre-training, the batch of one GPU",
    )

    @model_validator(mode="after")
    def _whole_pools(self) -> "MatchingConfig":
        part = self.batch_size // self.accumulation_steps
        if self.contrasts_whole_batch and not self.negative_pool_size:
            raise ValueError(
                "contrast = batch with accumulation_steps needs negative_pool_size: hard negatives from the whole "
                f"batch would need the tokens of all micro-batches; set it to a divisor of {part}, such as {part}"
            )
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
                f"negative_pool_size {pool} and the {local} pairs per process and micro-batch ({ranks} processes): one "
                "must be a multiple of the other"
            )


class EncoderConfig(TrainingConfig):
    """Settings of the stages that create a model: its sizes, its initial weights and its optimizer."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: orthogonalized momentum for the matrices of the transformer layers, at the learning rate of "
        "AdamW, which trains the rest",
    )
    validation: ContrastValidation = ContrastValidation()
    model: ModelConfig = ModelConfig()
    vit: str = Field(
        "",
        description="pre-trained ViT: a timm name with its tag, such as vit_base_patch16_224.orig_in21k_ft_in1k, a "
        "state-dict file, or a CLIP of transformers",
        json_schema_extra=FILE_OR_NAME,
    )
    bert: str = Field(
        "",
        description="pre-trained BERT of the text and multimodal encoders: a hub name or a folder",
        json_schema_extra=FILE_OR_NAME,
    )

    normalization: Literal["clip", "corpus", "imagenet", "half"] = Field(
        "clip",
        description="mean and std of the pixels: those of CLIP, of the corpora, of ImageNet (DINOv2), or 0.5 (SigLIP); "
        "pre-training with a trained prompter uses the prompter's",
    )

    def load_initial(self, model: Prompter) -> None:
        """Loads the ViT and BERT weights into a model. Raises InputError if they are not available or do not match."""
        try:
            if self.vit:
                load_vit(model, self.vit)
            if self.bert:
                load_bert(model, self.bert)
        except ValueError as error:
            raise InputError(str(error)) from error
