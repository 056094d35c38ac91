"""ALPRO: two encoders and their projections, the multimodal encoder, and the heads (paper, section
3.1)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from alpro.models.losses import box_mask
from alpro.models.text import (
    MlmHead,
    MultimodalEncoder,
    Pairs,
    TextConfig,
    TextEncoder,
    are_groups_merged,
)
from alpro.models.timesformer import Block, TimeSformer, VideoConfig


class ModelConfig(BaseModel):
    """Sizes and initialization of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: VideoConfig = VideoConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = Field(default=256, ge=2, description="dimension of video and text embeddings")
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

    @model_validator(mode="after")
    def _one_width(self) -> "ModelConfig":
        # The multimodal encoder concatenates the tokens of both.
        if self.video.width != self.text.width:
            raise ValueError(
                f"video.width {self.video.width} and text.width {self.text.width} must be equal"
            )
        return self


# The range of the learnable temperature, that of the official code: near 0 the logits grow without
# bound, and a negative temperature would reverse them.
TEMPERATURES = (0.001, 0.5)


class DualEncoder(nn.Module, ABC):
    """A video and a text encoder with a shared embedding space: ALPRO's own (`Prompter`), or a
    CLIP's (`ClipPrompter`).

    config: its sizes, of which `video.image_size` and `video.frames` hold for every one.
    video_proj, text_proj: of [CLS] to the shared space.
    """

    config: ModelConfig
    video_proj: nn.Module
    text_proj: nn.Module

    @abstractmethod
    def encode_video(
        self,
        frames: Tensor,
        cls_only: bool = False,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Normalized frames (B, T, 3, S, S) -> video tokens (B, 1 + N, D), or [CLS] (B, 1, D) with
        `cls_only`.

        kept (B, K): indices of the patches to encode; None: all N.
        """

    @abstractmethod
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and attention mask (B, L) -> text tokens (B, L, D)."""

    def project_video(self, tokens: Tensor) -> Tensor:
        """Video tokens (B, 1 + N, D) -> L2-normalized embeddings (B, E) of [CLS]: g_v in equation
        1."""
        cls = tokens[:, 0]
        return F.normalize(self.video_proj(cls), dim=-1)

    def project_text(self, tokens: Tensor) -> Tensor:
        """Text tokens (B, L, D) -> L2-normalized embeddings (B, E) of [CLS]: g_t in equation 1."""
        cls = tokens[:, 0]
        return F.normalize(self.text_proj(cls), dim=-1)

    @abstractmethod
    def clamped_temperature(self) -> Tensor:
        """The learnable temperature (), clamped to TEMPERATURES."""

    @abstractmethod
    def clamp_temperature_(self) -> None:
        """Clamps the parameter in place after an optimizer step: outside the range it has no
        gradient."""

    @abstractmethod
    def set_frames(self, frames: int) -> None:
        """Changes the number of frames of a clip; time embeddings are resized (nearest
        neighbor)."""

    @abstractmethod
    def text_length(self, length: int) -> int:
        """The number of tokens of a text that is read: at most `length`, or as many as the model
        always takes."""

    def probabilities(self, frames: Tensor, prompts: Tensor) -> Tensor:
        """Probabilities (B, M) of the entities in normalized frames (B, T, 3, S, S) (equation 4).

        prompts (M, E): one embedding per entity.
        """
        with torch.inference_mode():
            tokens = self.encode_video(frames, cls_only=True)
            device_type = "cuda" if frames.is_cuda else "cpu"
            # In float32: after division by the temperature, bfloat16 keeps two digits of a
            # similarity.
            with torch.autocast(device_type, enabled=False):
                # The weights of an exported model may be half precision; a CLIP's projection has
                # none.
                weight = next(self.video_proj.parameters(), None)
                dtype = torch.float32 if weight is None else weight.dtype

                # Equation 4.
                features = self.project_video(tokens.to(dtype)).float()
                similarity = features @ prompts.float().T
                temperature = self.clamped_temperature().float()
                probabilities = (similarity / temperature).softmax(dim=-1)

        # A normal tensor: autograd cannot save inference tensors for backward.
        return probabilities.clone()

    def pseudo_labels(
        self,
        frames: Tensor,
        boxes: Tensor,
        prompts: Tensor,
        black: Tensor,
    ) -> Tensor:
        """Probabilities (B, M) of the entities in a crop of normalized frames (B, T, 3, S, S).

        boxes (B, 4) in patches (left, top, width, height): the crop stays in place in every frame
        and the rest is black; black (3, 1, 1): a black pixel after normalization. prompts (M, E) as
        of `probabilities`.
        """
        crops = crop(frames, boxes, self.config.video.patch_size, black)
        return self.probabilities(crops, prompts)


class Prompter(DualEncoder):
    """ALPRO's encoders, with their projections; the frozen teacher of prompting entity modeling has
    no other part (paper, section 3.2.2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.video_encoder = TimeSformer(config.video)
        self.text_encoder = TextEncoder(config.text)
        self.video_proj = nn.Linear(config.video.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        initialize(self, config.init)

    def encode_video(
        self,
        frames: Tensor,
        cls_only: bool = False,
        kept: Tensor | None = None,
    ) -> Tensor:
        return self.video_encoder(frames, cls_only, kept)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(ids, mask)

    def clamped_temperature(self) -> Tensor:
        return self.temperature.clamp(*TEMPERATURES)

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        self.temperature.clamp_(*TEMPERATURES)

    def set_frames(self, frames: int) -> None:
        self.video_encoder.set_frames(frames)
        self.config = self.config.model_copy(update={"video": self.video_encoder.config})

    def text_length(self, length: int) -> int:
        # Texts are padded to a multiple of 8 tokens, which must have position embeddings.
        max_padded = self.config.text.max_length // 8 * 8
        return min(length, max_padded)


def crop(frames: Tensor, boxes: Tensor, patch: int, black: Tensor) -> Tensor:
    """Fills frames (B, T, 3, S, S) with black (3, 1, 1) outside boxes (B, 4), given in patches of
    `patch` pixels."""
    grid = frames.shape[-1] // patch

    inside = box_mask(boxes, grid).view(-1, grid, grid)
    inside = inside.repeat_interleave(patch, dim=1)
    inside = inside.repeat_interleave(patch, dim=2)  # (B, S, S)
    inside = inside[:, None, None]  # the same in every frame and channel
    # In the frames' type: `where` would promote half precision to float32.
    fill = black.to(frames.dtype)
    return torch.where(inside, frames, fill)


class Alpro(Prompter):
    """The video-language model (paper, section 3.1): the encoders, the multimodal encoder and its
    heads.

    entities: outputs of the PEM head, which comes with an MLM head; 0: neither. answers: outputs of
    the question-answering head; 0: no such head.
    """

    def __init__(self, config: ModelConfig, entities: int = 0, answers: int = 0):
        super().__init__(config)
        self.entities = entities
        self.answers = answers

        width = config.text.width
        self.multimodal_encoder = MultimodalEncoder(config.text)
        self.vtm_head = nn.Linear(width, 2)
        self.mlm_head = MlmHead(config.text) if entities else None
        self.pem_head = classifier(width, entities) if entities else None
        self.qa_head = classifier(width, answers) if answers else None
        # Again, after `Prompter`: the modules above are new.
        initialize(self, config.init)

    def fuse(self, text: Tensor, mask: Tensor, video: Tensor, first: int | None = None) -> Tensor:
        """text (B, L, D), mask (B, L), video (B, V, D) -> fused tokens (B, L + V, D), text first.

        With `first`, the last layer computes the first tokens only: (B, first, D).
        """
        return self.multimodal_encoder(text, mask, video, first)

    def fuse_groups(self, groups: Iterable[tuple[str, Pairs]]) -> dict[str, Tensor]:
        """The fused tokens of groups of pairs by name, as of `fuse`."""
        if are_groups_merged(self.vtm_head.weight):
            pairs = dict(groups)
            fused = self.multimodal_encoder.forward_groups(list(pairs.values()))
            return dict(zip(pairs, fused, strict=True))

        # One by one: `groups` may be a generator, which gathers the tokens of a group only now.
        return {
            name: self.fuse(pairs.text, pairs.mask, pairs.video, pairs.first)
            for name, pairs in groups
        }

    def fuse_cls(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """The fused [CLS] token (B, D)."""
        cls = self.fuse(text, mask, video, first=1)
        return cls[:, 0]

    def match(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """The VTM head on the fused [CLS]: logits (B, 2), index 1 = match."""
        cls = self.fuse_cls(text, mask, video)
        return self.vtm_head(cls)

    def answer(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """The question-answering head on the fused [CLS]: logits (B, answers)."""
        if self.qa_head is None:
            raise ValueError(
                "this model has no question-answering head: fine-tune one, or load a QA model"
            )
        cls = self.fuse_cls(text, mask, video)
        return self.qa_head(cls)

    def mlm_scores(self, tokens: Tensor) -> Tensor:
        """The MLM head on fused text tokens (..., D) -> (..., vocab)."""
        assert self.mlm_head is not None
        words = self.text_encoder.embeddings.word_embeddings.weight
        return self.mlm_head(tokens, words)

    def fused_patches(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """The fused patch tokens (B, P, D), of which PEM averages those of a region. Arguments as
        of `fuse`."""
        tokens = self.fuse(text, mask, video)
        # Behind the text tokens comes the video's [CLS].
        first_patch = text.shape[1] + 1
        return tokens[:, first_patch:]

    def pem_logits(self, fused_patches: Tensor, inside: Tensor) -> Tensor:
        """Fused patch tokens (B, P, D), averaged where `inside` (B, P) is True -> entity logits (B,
        M)."""
        assert self.pem_head is not None
        region = mean_inside(fused_patches, inside)
        return self.pem_head(region)


def mean_inside(tokens: Tensor, inside: Tensor) -> Tensor:
    """The mean (B, D) of the tokens (B, P, D) where `inside` (B, P) is True."""
    # A product with the mask, not an index: the number of tokens inside differs between examples.
    weights = inside.to(tokens.dtype)
    sums = (weights[:, None] @ tokens).squeeze(1)
    counts = weights.sum(dim=1, keepdim=True)
    return sums / counts


def classifier(width: int, outputs: int) -> nn.Sequential:
    """Linear to twice the width, ReLU, linear to `outputs`: the PEM and question-answering
    heads."""
    hidden = 2 * width
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


@torch.no_grad()
def initialize(model: nn.Module, init: str) -> None:
    """Initializes every weight of `model`.

    "bert": normal(0.02), with temporal_fc at zero, so that a TimeSformer with ViT weights starts as
    that ViT applied to each frame. "scratch": lets a small model leave the plateau of the
    contrastive loss without pre-trained weights: fan-in scaling, word embeddings with standard
    deviation 1 / sqrt(D), and position and time embeddings of the same scale as the patches.
    """
    scratch = init == "scratch"

    def std(fan_in: int) -> float:
        return 1 / math.sqrt(fan_in) if scratch else 0.02

    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std(module.in_features))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=std(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std(module.embedding_dim))
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    # After the layers, which are initialized above: what a video encoder adds to them.
    for module in model.modules():
        if isinstance(module, TimeSformer):
            nn.init.normal_(module.cls_token, std=0.02)
            nn.init.normal_(module.pos_embed, std=0.5 if scratch else 0.02)
            nn.init.normal_(module.time_embed, std=1.0 if scratch else 0.02)
        elif isinstance(module, Block) and scratch:
            # Larger queries and keys: attention that is uniform at first learns no order of frames.
            queries_and_keys = 2 * module.temporal_fc.in_features
            module.temporal_attn.qkv.weight[:queries_and_keys] *= 2
            module.attn.qkv.weight[:queries_and_keys] *= 2
        elif isinstance(module, Block):
            nn.init.zeros_(module.temporal_fc.weight)
