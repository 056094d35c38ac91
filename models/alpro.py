"""ALPRO: two encoders with projections, multimodal encoder, and heads (paper, section 3.1)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from alpro.models.losses import box_mask
from alpro.models.precision import is_on_gpu
from alpro.models.text import (
    MlmHead,
    MultimodalEncoder,
    Pairs,
    TextConfig,
    TextEncoder,
)
from alpro.models.timesformer import MAX_WIDTH, Block, TimeSformer, VideoConfig


class ModelConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and initialization of a model."""

    video: VideoConfig = VideoConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = Field(
        default=256,
        ge=2,
        le=MAX_WIDTH,
        description="dimension of video and text embeddings",
    )
    temperature: float = Field(
        default=0.07,
        ge=0.001,
        le=0.5,
        description="initial temperature of the contrastive loss",
    )
    init: Literal["bert", "scratch"] = Field(
        default="bert",
        description="bert: normal(0.02), for a start from a ViT and a BERT; scratch: for training "
        "from random weights",
    )

    def with_frames(self, frames: int) -> "ModelConfig":
        """Return the configuration with another number of frames of a clip."""
        video = self.video.model_copy(update={"frames": frames})
        return self.model_copy(update={"video": video})

    @model_validator(mode="after")
    def _check_width(self) -> "ModelConfig":
        # The multimodal encoder concatenates the tokens of both encoders.
        if self.video.width != self.text.width:
            raise ValueError(
                f"video.width {self.video.width} and text.width {self.text.width} must be equal"
            )
        return self


# Range of the learnable temperature in the official code. Near 0 the logits grow without bound, and
# a negative temperature would reverse them.
TEMPERATURES = (0.001, 0.5)


class DualEncoder(nn.Module, ABC):
    """A video and a text encoder with a shared embedding space: `Prompter` or `ClipPrompter`.

    Attributes:
        config: Sizes; for a CLIP, only `video.image_size` and `video.frames` apply.
        video_proj, text_proj: Projections of [CLS] to the shared space.
    """

    config: ModelConfig
    video_proj: nn.Module
    text_proj: nn.Module

    @abstractmethod
    def encode_video(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        """Encode normalized frames (B, T, 3, S, S) to video tokens (B, 1 + N, D).

        The arguments are as in `TimeSformer`.
        """

    @abstractmethod
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode token ids and their attention mask (B, L) to text tokens (B, L, D)."""

    def project_video(self, tokens: Tensor) -> Tensor:
        """Project [CLS] of video tokens (B, 1 + N, D) to L2-normalized embeddings (B, E).

        This is g_v in equation 1.
        """
        return F.normalize(self.video_proj(tokens[:, 0]), dim=-1)

    def project_text(self, tokens: Tensor) -> Tensor:
        """Project [CLS] of text tokens (B, L, D) to L2-normalized embeddings (B, E): g_t."""
        return F.normalize(self.text_proj(tokens[:, 0]), dim=-1)

    @abstractmethod
    def clamped_temperature(self) -> Tensor:
        """Return the learnable temperature (), clamped to TEMPERATURES."""

    @abstractmethod
    def clamp_temperature_(self) -> None:
        """Clamp the parameter in place. Outside of the range it would have no gradient."""

    @abstractmethod
    def set_frames(self, frames: int) -> None:
        """Change the number of frames of a clip, and resize time embeddings (nearest neighbor)."""

    @abstractmethod
    def text_length(self, length: int) -> int:
        """Return the number of tokens to which texts are truncated.

        It is at most `length`, or the fixed length of a CLIP.
        """

    def probabilities(self, frames: Tensor, prompts: Tensor) -> Tensor:
        """Return the probabilities (B, M) of entities (equation 4).

        Args:
            frames: Normalized frames (B, T, 3, S, S).
            prompts: One embedding per entity (M, E).
        """
        with torch.inference_mode():
            tokens = self.encode_video(frames, cls_only=True)
            # Computed in float32: bfloat16 would leave two digits of similarity / temperature.
            with torch.autocast("cuda" if frames.is_cuda else "cpu", enabled=False):
                # The weights of an exported model may be half precision. A CLIP has no projection.
                weight = getattr(self.video_proj, "weight", tokens)

                # Equation 4.
                features = self.project_video(tokens.to(weight.dtype)).float()
                similarity = features @ prompts.float().T
                temperature = self.clamped_temperature().float()
                probabilities = (similarity / temperature).softmax(dim=-1)

        # Autograd cannot save inference tensors for backward, so return a copy.
        return probabilities.clone()

    def pseudo_labels(
        self,
        frames: Tensor,
        boxes: Tensor,
        prompts: Tensor,
        black: Tensor,
    ) -> Tensor:
        """Return the probabilities (B, M) of entities in a crop of each clip.

        The crop stays in place in every frame, and the rest is black.

        Args:
            frames: Normalized frames (B, T, 3, S, S).
            boxes: Crops (B, 4) in patches: left, top, width, height.
            prompts: As in `probabilities`.
            black: Normalized black pixel (3, 1, 1).
        """
        crops = crop(frames, boxes, self.config.video.patch_size, black)
        return self.probabilities(crops, prompts)


class Prompter(DualEncoder):
    """ALPRO's encoders with their projections.

    Frozen, it is the teacher of prompting entity modeling (paper, section 3.2.2).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.video_encoder = TimeSformer(config.video)
        self.text_encoder = TextEncoder(config.text)
        self.video_proj = nn.Linear(config.video.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        initialize(self, config.init)

    def encode_video(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        return self.video_encoder(frames, cls_only)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(ids, mask)

    def clamped_temperature(self) -> Tensor:
        return self.temperature.clamp(*TEMPERATURES)

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        self.temperature.clamp_(*TEMPERATURES)

    def set_frames(self, frames: int) -> None:
        self.video_encoder.set_frames(frames)
        self.config = self.config.with_frames(frames)

    def text_length(self, length: int) -> int:
        # Texts are padded to a multiple of 8 tokens, which must have position embeddings.
        return min(length, self.config.text.max_length // 8 * 8)


def crop(frames: Tensor, boxes: Tensor, patch: int, black: Tensor) -> Tensor:
    """Fill frames (B, T, 3, S, S) with black (3, 1, 1) outside of boxes.

    Args:
        boxes: (B, 4), left, top, width, height in patches.
        patch: Size of a patch in pixels.
    """
    grid = frames.shape[-1] // patch

    # The same in every frame and channel.
    inside = box_mask(boxes, grid).view(-1, 1, 1, grid, grid)
    pixels = inside.repeat_interleave(patch, 3).repeat_interleave(patch, 4)
    # `where` would promote half precision to float32.
    return torch.where(pixels, frames, black.to(frames.dtype))


class Alpro(Prompter):
    """The video-language model (paper, section 3.1): encoders, multimodal encoder and heads.

    Args:
        entities: Outputs of the PEM head, which comes with an MLM head; 0: neither.
        answers: Outputs of the question-answering head; 0: no such head.
    """

    def __init__(self, config: ModelConfig, entities: int = 0, answers: int = 0):
        super().__init__(config)
        width = config.text.width
        self.multimodal_encoder = MultimodalEncoder(config.text)
        self.vtm_head = nn.Linear(width, 2)
        self.mlm_head = MlmHead(config.text) if entities else None
        self.pem_head = build_head(width, entities) if entities else None
        self.qa_head = build_head(width, answers) if answers else None
        # Reinitialize to cover modules added by this class.
        initialize(self, config.init)

    def fuse(
        self,
        text: Tensor,
        mask: Tensor,
        video: Tensor,
        outputs: int | None = None,
    ) -> Tensor:
        """Fuse text and video tokens (see `MultimodalEncoder`)."""
        (fused,) = self.multimodal_encoder([Pairs(text, mask, video, outputs)])
        return fused

    def fuse_groups(self, groups: Iterable[tuple[str, Pairs]]) -> dict[str, Tensor]:
        """Return the fused tokens of groups of pairs by name."""
        # On a GPU, a compiled step of pre-training has fewer kernels in one pass (docs/gpu.md). On a
        # CPU, one pass is not faster, and sums would be rounded differently.
        if is_on_gpu(self.vtm_head.weight):
            pairs = dict(groups)
            fused = self.multimodal_encoder(list(pairs.values()))
            return dict(zip(pairs, fused, strict=True))

        # One by one, because `groups` may be a generator that gathers the tokens of a group.
        return {name: self.multimodal_encoder([pairs])[0] for name, pairs in groups}

    def fuse_cls(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """Return the fused [CLS] token (B, D)."""
        return self.fuse(text, mask, video, outputs=1)[:, 0]

    def match(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """Apply the VTM head to the fused [CLS]: logits (B, 2), index 1 = match."""
        return self.vtm_head(self.fuse_cls(text, mask, video))

    def answer(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """Apply the question-answering head to the fused [CLS]: logits (B, answers)."""
        if self.qa_head is None:
            raise ValueError(
                "this model has no question-answering head: fine-tune one, or load a QA model"
            )
        return self.qa_head(self.fuse_cls(text, mask, video))

    def mlm_scores(self, tokens: Tensor) -> Tensor:
        """Apply the MLM head to fused text tokens (..., D): scores (..., vocab)."""
        assert self.mlm_head is not None
        words = self.text_encoder.embeddings.word_embeddings.weight
        return self.mlm_head(tokens, words)

    def pem_logits(self, fused_patches: Tensor, inside: Tensor) -> Tensor:
        """Apply the PEM head to the mean of the patches in a region: entity logits (B, M).

        Args:
            fused_patches: (B, P, D).
            inside: Boolean (B, P), True in the region.
        """
        assert self.pem_head is not None
        # Multiply by the mask, because the number of patches inside differs between examples.
        weights = inside.to(fused_patches.dtype)
        sums = (weights[:, None] @ fused_patches).squeeze(1)
        region = sums / weights.sum(dim=1, keepdim=True)
        return self.pem_head(region)


def build_head(width: int, outputs: int) -> nn.Sequential:
    """Build a PEM or question-answering head: linear to twice the width, ReLU, linear."""
    hidden = 2 * width
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


@torch.no_grad()
def initialize(model: nn.Module, init: str) -> None:
    """Initialize every weight of a model. Norms start as those of torch, at one and zero.

    Args:
        init: "bert": normal(0.02), with temporal_fc at zero, so a TimeSformer with ViT weights
            starts as that ViT applied to each frame. "scratch": fan-in scaling, word embeddings
            with standard deviation 1 / sqrt(D), and position and time embeddings of the same scale
            as the patches. A small model then leaves the plateau of the contrastive loss without
            pre-trained weights.
    """
    scratch = init == "scratch"
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            fan_in = module.weight[0].numel()
            nn.init.normal_(
                module.weight, std=1 / math.sqrt(fan_in) if scratch else 0.02
            )
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)

    # Parameters of the video encoder that belong to no layer above.
    for module in model.modules():
        if isinstance(module, TimeSformer):
            nn.init.normal_(module.cls_token, std=0.02)
            nn.init.normal_(module.pos_embed, std=0.5 if scratch else 0.02)
            nn.init.normal_(module.time_embed, std=1.0 if scratch else 0.02)
        elif isinstance(module, Block) and scratch:
            # Attention that starts uniform learns no order of frames.
            queries_and_keys = 2 * module.temporal_fc.in_features
            module.temporal_attn.qkv.weight[:queries_and_keys] *= 2
            module.attn.qkv.weight[:queries_and_keys] *= 2
        elif isinstance(module, Block):
            nn.init.zeros_(module.temporal_fc.weight)
