"""BERT split in two: text encoder and multimodal encoder (paper, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from alpro.models.attention import Attention, Mlp, TransformerLayer, compute_layer
from alpro.models.precision import as_residual
from alpro.models.timesformer import HEADS, MAX_DEPTH, MLP_RATIO, WIDTH, check_multiple


class TextConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of BERT; the defaults are BERT-base's, split after layer 6 as in the paper."""

    vocab_size: int = Field(
        default=30522,
        ge=5,
        le=2_000_000,
        description="vocabulary size, tokens",
    )
    width: int = WIDTH
    depth: int = Field(
        default=12,
        ge=2,
        le=MAX_DEPTH,
        description="layers of both encoders together",
    )
    fusion_layer: int = Field(
        default=6,
        ge=1,
        description="layers of the text encoder; the others fuse text and video",
    )
    heads: int = HEADS
    mlp_ratio: float = MLP_RATIO
    max_length: int = Field(
        default=512, ge=8, le=65_536, description="position embeddings"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout probability")

    @model_validator(mode="after")
    def _check_layers(self) -> "TextConfig":
        if self.fusion_layer >= self.depth:
            raise ValueError(
                f"fusion_layer {self.fusion_layer} leaves no fusion layer of depth {self.depth}"
            )
        check_multiple(self, "width", "heads")
        return self


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings. All tokens have type 0.

    Shape:
        ids (B, L) -> (B, L, D).

    Raises:
        ValueError: If the text is longer than the position embeddings.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_length, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        limit = self.position_embeddings.num_embeddings
        if length > limit:
            raise ValueError(f"text of {length} tokens; the encoder takes {limit}")

        x = (
            self.word_embeddings(ids)
            + self.token_type_embeddings.weight[0]
            + self.position_embeddings.weight[:length]
        )
        return as_residual(self.dropout(self.norm(x)))


class Layer(TransformerLayer):
    """A post-norm transformer layer as in BERT.

    Args:
        x: Tokens (B, L, D).
        mask: As in `Attention`.
        outputs: Number of leading tokens to compute; by default all.
        qkv: Projected queries, keys and values (B, L, 3D) of x, if the caller has them.

    Shape:
        (B, L, D) -> (B, L, D), or (B, outputs, D).
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        outputs: int | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        attended = self.attention(x, mask, outputs, qkv)
        x = as_residual(self.norm1(x[:, :outputs] + self.dropout(attended)))
        y = self.dropout(self.mlp(x))
        return as_residual(self.norm2(x + y))


class Layers(nn.ModuleList):
    """A stack of layers, for consecutive groups of a batch, which share all layers but the last.

    Args:
        x: Tokens (B, L, D).
        mask: (B, L), 1 for tokens and 0 for padding.
        groups: Size of each group, and the number of leading tokens that the last layer computes
            of it; None: all.

    Returns:
        The tokens (size, L, D) or (size, outputs, D) of each group.
    """

    def __init__(self, config: TextConfig, count: int):
        super().__init__(Layer(config) for _ in range(count))

    def forward(
        self, x: Tensor, mask: Tensor, groups: Sequence[tuple[int, int | None]]
    ) -> list[Tensor]:
        mask = mask.bool()[:, None, None, :]  # for all heads and queries
        *layers, last = self
        for layer in layers:
            x = compute_layer(layer, x, mask)

        sizes = [size for size, _ in groups]
        parts = zip(groups, x.split(sizes), mask.split(sizes), strict=True)
        return [
            compute_layer(last, tokens, part_mask, outputs)
            for (_, outputs), tokens, part_mask in parts
        ]


class TextEncoder(nn.Module):
    """The first layers of a BERT.

    Shape:
        Token ids (B, L) and attention mask (B, L) -> text tokens (B, L, D), [CLS] first.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.layers = Layers(config, config.fusion_layer)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        (tokens,) = self.layers(self.embeddings(ids), mask, [(len(ids), None)])
        return tokens


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts and videos to fuse.

    Attributes:
        text: text tokens (B, L, D).
        mask: (B, L), 1 = token, 0 = padding.
        video: video tokens (B, V, D).
        outputs: number of leading fused tokens that are read; None: all.
    """

    text: Tensor
    mask: Tensor
    video: Tensor
    outputs: int | None = None


class MultimodalEncoder(nn.Module):
    """Self-attention over text tokens and video tokens (paper, section 3.1, "Multimodal Encoder").

    No position embedding is added, because both encoders add their own.

    Args:
        groups: Groups of pairs, whose texts have one length. They are fused in one pass.

    Returns:
        The fused tokens (B, L + V, D) of each group, text first, or the leading (B, outputs, D).
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layers = Layers(config, config.depth - config.fusion_layer)

    def forward(self, groups: Sequence[Pairs]) -> list[Tensor]:
        tokens = [
            torch.cat([as_residual(pairs.text), as_residual(pairs.video)], dim=1)
            for pairs in groups
        ]
        # All video tokens are attended to.
        masks = [
            F.pad(pairs.mask, (0, pairs.video.shape[1]), value=1) for pairs in groups
        ]

        sizes = [(len(pairs.text), pairs.outputs) for pairs in groups]
        return self.layers(torch.cat(tokens), torch.cat(masks), sizes)

    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens (B, L, D) to queries, keys and values (B, L, 3D) of the first layer.

        They depend on no other token, so all pairs of a text or a video share them.
        """
        first_layer = cast(Layer, self.layers[0])
        return first_layer.attention.qkv(tokens)

    def fuse_pairs(
        self,
        text: Tensor,
        text_indices: Tensor,
        video: Tensor,
        video_qkv: Tensor,
        video_indices: Tensor,
    ) -> Tensor:
        """Return the fused [CLS] (P, D) of pairs, as `forward` in evaluation mode.

        Args:
            text: Tokens (T, L, D) of texts without padding.
            text_indices: Text (P,) of each pair.
            video: Tokens (V, N, D) of videos.
            video_qkv: Projected videos (V, N, 3D).
            video_indices: Video (P,) of each pair.
        """
        x = torch.cat([text[text_indices], video[video_indices]], dim=1)
        *layers, last = self.layers

        qkv = None
        if layers:
            # Pairs share the queries, keys and values of their texts and videos.
            text_qkv = self.project(text)
            qkv = torch.cat([text_qkv[text_indices], video_qkv[video_indices]], dim=1)
        for layer in layers:
            x = layer(x, None, qkv=qkv)
            qkv = None  # later layers project their own input
        # Texts have no padding, so no mask is needed. Only [CLS] of the last layer is read.
        cls = last(x, None, outputs=1)
        return cls[:, 0]


class MlmHead(nn.Module):
    """BERT's prediction head, whose decoder is tied to the word embeddings.

    Args:
        tokens: (..., D).
        words: Weight (vocab, D) of the word embeddings.

    Shape:
        (..., D) -> logits (..., vocab).
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, tokens: Tensor, words: Tensor) -> Tensor:
        hidden = F.gelu(self.dense(tokens))
        return F.linear(self.norm(hidden), words, self.bias)
