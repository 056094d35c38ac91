"""BERT, cut in two: its first layers encode the text, its last layers fuse text and video (paper, section 3.1)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alpro.models.attention import Attention, Mlp


class TextConfig(BaseModel):
    """Sizes of BERT; the defaults are BERT-base's, cut after layer 6 as in the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(30522, ge=5, description="word pieces")
    width: int = Field(768, ge=8, description="channels of a token")
    depth: int = Field(12, ge=2, description="layers in all")
    fusion_layer: int = Field(6, ge=1, description="layers that encode text alone; the rest fuse text and video")
    heads: int = Field(12, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden channels of the MLP, in widths")
    max_length: int = Field(512, ge=8, description="position embeddings")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of embeddings, attention and residuals")

    @model_validator(mode="after")
    def _cut(self) -> "TextConfig":
        if self.fusion_layer >= self.depth:
            raise ValueError(f"fusion_layer {self.fusion_layer} leaves no fusion layer of depth {self.depth}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TextEmbeddings(nn.Module):
    """Word, position and segment embeddings: ids (B, L) -> (B, L, D). The segment is always the first."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_length, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if length > self.position_embeddings.num_embeddings:
            raise ValueError(f"text of {length} tokens; the encoder takes {self.position_embeddings.num_embeddings}")
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + self.position_embeddings.weight[:length]
        return self.dropout(self.norm(x))


class Layer(nn.Module):
    """A post-norm transformer layer as in BERT: x (B, L, D), mask (B, 1, 1, L) -> (B, L, D).

    Where `read` (B, P) is given, only the tokens at these positions come out: (B, P, D). The others are attended to and
    no more.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, read: Tensor | None = None) -> Tensor:
        queries = None if read is None else x.gather(1, read[..., None].expand(-1, -1, x.shape[-1]))
        attended = self.dropout(self.attention(x, mask, queries))
        x = self.norm1((x if queries is None else queries) + attended)
        return self.norm2(x + self.dropout(self.mlp(x)))


class Layers(nn.ModuleList):
    """A run of layers: x (B, L, D), mask (B, L) with 1 for a token and 0 for padding -> (B, L, D).

    `read`: for each group of consecutive rows the positions (R, P) that are wanted; the last layer then works those
    alone, and a tuple of one tensor (R, P, D) a group is returned.
    """

    def __init__(self, config: TextConfig, count: int):
        super().__init__(Layer(config) for _ in range(count))
        self.checkpoint_activations = False

    def forward(self, x: Tensor, mask: Tensor, read: Sequence[Tensor] = ()) -> Tensor | tuple[Tensor, ...]:
        mask = mask.bool()[:, None, None, :]
        whole = list(self)[:-1] if read else list(self)
        for layer in whole:
            x = self.run(layer, x, mask)
        if not read:
            return x
        sizes = [len(positions) for positions in read]
        groups = zip(x.split(sizes), mask.split(sizes), read, strict=True)
        return tuple(self.run(self[-1], rows, masks, positions) for rows, masks, positions in groups)

    def run(self, layer: nn.Module, *given: Tensor) -> Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(layer, *given, use_reentrant=False)
        return layer(*given)


class TextEncoder(nn.Module):
    """Word ids (B, L) and mask (B, L) to text tokens (B, L, D); the first is [CLS]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.layers = Layers(config, config.fusion_layer)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.layers(self.embeddings(ids), mask))


class MultimodalEncoder(nn.Module):
    """Self-attention over [text tokens; video tokens] (paper, section 3.1, "Multimodal Encoder").

    text (B, L, D), mask (B, L), video (B, V, D) -> (B, L + V, D), text first. No position embedding is added:
    both encoders have put theirs in. `read` as in `Layers`.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layers = Layers(config, config.depth - config.fusion_layer)

    def forward(
        self, text: Tensor, mask: Tensor, video: Tensor, read: Sequence[Tensor] = ()
    ) -> Tensor | tuple[Tensor, ...]:
        seen = torch.ones(video.shape[:2], dtype=mask.dtype, device=mask.device)
        return self.layers(torch.cat([text, video], dim=1), torch.cat([mask, seen], dim=1), read)


class MlmHead(nn.Module):
    """BERT's prediction head, its decoder tied to the word embeddings: tokens (..., D) -> scores (..., vocab)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, tokens: Tensor, words: Tensor) -> Tensor:
        """words (vocab, D): the weight of the word embeddings."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), words, self.bias)
