"""BERT split in two: the first layers encode text, the last ones fuse text and video (paper,
section 3.1)."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alpro.models.attention import Attention, Mlp
from alpro.models.precision import as_residual


class TextConfig(BaseModel):
    """Sizes of BERT; the defaults are BERT-base's, split after layer 6 as in the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(default=30522, ge=5, description="vocabulary size, word pieces")
    width: int = Field(default=768, ge=8, description="hidden size")
    depth: int = Field(default=12, ge=2, description="layers of both encoders together")
    fusion_layer: int = Field(
        default=6, ge=1, description="layers of the text encoder; the others fuse text and video"
    )
    heads: int = Field(default=12, ge=1, description="attention heads")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden size of the MLP / width")
    max_length: int = Field(default=512, ge=8, description="position embeddings")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout probability")

    @model_validator(mode="after")
    def _cut(self) -> "TextConfig":
        if self.fusion_layer >= self.depth:
            raise ValueError(
                f"fusion_layer {self.fusion_layer} leaves no fusion layer of depth {self.depth}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings: ids (B, L) -> (B, L, D). All tokens have type 0.

    Raises ValueError for texts longer than the position embeddings.
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


class Layer(nn.Module):
    """A post-norm transformer layer as in BERT: x (B, L, D), mask (B, 1, 1, L) -> (B, L, D).

    With `first`, only the first tokens are computed: (B, first, D). `qkv` (B, L, 3D): the projected
    queries, keys and values of x, where the caller has them.
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
        first: int | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        if qkv is None:
            attended = self.attention(x, mask, first)
        else:
            attended = self.attention.attend(qkv, mask)

        x = as_residual(self.norm1(x[:, :first] + self.dropout(attended)))
        y = self.dropout(self.mlp(x))
        return as_residual(self.norm2(x + y))


class Layers(nn.ModuleList):
    """A stack of layers: x (B, L, D), mask (B, L) with 1 for tokens and 0 for padding -> (B, L, D).

    With `first`, the last layer computes the first tokens only: (B, first, D).
    """

    def __init__(self, config: TextConfig, count: int):
        super().__init__(Layer(config) for _ in range(count))
        self.checkpoint_activations = False

    def forward(self, x: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        mask = mask.bool()[:, None, None, :]  # for all heads and queries
        *layers, last = self
        for layer in layers:
            x = self.compute(layer, x, mask)
        return self.compute(last, x, mask, first)

    def forward_groups(
        self,
        x: Tensor,
        mask: Tensor,
        sizes: list[int],
        firsts: list[int | None],
    ) -> list[Tensor]:
        """`forward` of consecutive groups of the batch, of `sizes` and each with its own `first`:
        they share all layers but the last."""
        mask = mask.bool()[:, None, None, :]
        *layers, last = self
        for layer in layers:
            x = self.compute(layer, x, mask)

        groups = zip(x.split(sizes), mask.split(sizes), firsts, strict=True)
        return [self.compute(last, *group) for group in groups]

    def compute(
        self, layer: nn.Module, x: Tensor, mask: Tensor, first: int | None = None
    ) -> Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(layer, x, mask, first, use_reentrant=False)
        return layer(x, mask, first)


class TextEncoder(nn.Module):
    """Token ids (B, L) and attention mask (B, L) -> text tokens (B, L, D); the first is [CLS]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.layers = Layers(config, config.fusion_layer)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded = self.embeddings(ids)
        return self.layers(embedded, mask)


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts and videos to fuse.

    Attributes:
        text: text tokens (B, L, D).
        mask: (B, L), 1 = token, 0 = padding.
        video: video tokens (B, V, D).
        first: how many of the fused tokens are read; None: all.
    """

    text: Tensor
    mask: Tensor
    video: Tensor
    first: int | None = None


def are_groups_merged(x: Tensor) -> bool:
    """Whether groups of pairs go through the multimodal encoder in one pass.

    On a GPU: a compiled step of pre-training has fewer kernels (docs/gpu.md). On a CPU, one pass is
    not faster, and sums would be rounded differently.
    """
    return x.is_cuda


class MultimodalEncoder(nn.Module):
    """Self-attention over [text tokens; video tokens] (paper, section 3.1, "Multimodal Encoder").

    text (B, L, D), mask (B, L), video (B, V, D) -> (B, L + V, D), text first. No position embedding
    is added: both encoders add their own. `first` as in `Layers`.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layers = Layers(config, config.depth - config.fusion_layer)

    def forward(
        self,
        text: Tensor,
        mask: Tensor,
        video: Tensor,
        first: int | None = None,
    ) -> Tensor:
        tokens, masks = self.concatenate(text, mask, video)
        return self.layers(tokens, masks, first)

    def forward_groups(self, groups: list[Pairs]) -> list[Tensor]:
        """`forward` of each group in one pass. Texts of all groups have one length."""
        text = torch.cat([as_residual(pairs.text) for pairs in groups])
        mask = torch.cat([pairs.mask for pairs in groups])
        video = torch.cat([as_residual(pairs.video) for pairs in groups])
        tokens, masks = self.concatenate(text, mask, video)

        sizes = [len(pairs.text) for pairs in groups]
        firsts = [pairs.first for pairs in groups]
        return self.layers.forward_groups(tokens, masks, sizes, firsts)

    def concatenate(self, text: Tensor, mask: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, L + V, D) of pairs and their mask (B, L + V)."""
        tokens = torch.cat([as_residual(text), as_residual(video)], dim=1)
        video_mask = torch.ones(video.shape[:2], dtype=mask.dtype, device=mask.device)
        return tokens, torch.cat([mask, video_mask], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """The queries, keys and values (B, L, 3D) of tokens (B, L, D) in the first layer, which
        depend on no other token: those of a text or a video are the same in all its pairs."""
        first_layer = cast(Layer, self.layers[0])
        return first_layer.attention.qkv(tokens)

    def pairs(
        self,
        text: Tensor,
        of_text: Tensor,
        video: Tensor,
        qkv: Tensor,
        of_video: Tensor,
    ) -> Tensor:
        """The fused [CLS] (P, D) of pairs of texts and videos, as `forward` gives it in evaluation
        mode.

        text (T, L, D): texts without padding; video (V, N, D); qkv (V, N, 3D): the projected
        videos; of_text (P,), of_video (P,): indices of texts and videos.
        """
        x = torch.cat([text[of_text], video[of_video]], dim=1)
        *layers, last = self.layers

        # The first layer reads its queries, keys and values: pairs share those of their texts and
        # videos.
        for layer in layers[:1]:
            text_qkv = self.project(text)
            shared = torch.cat([text_qkv[of_text], qkv[of_video]], dim=1)
            x = layer(x, None, qkv=shared)
        for layer in layers[1:]:
            x = layer(x, None)
        # No mask: texts have no padding. Of the last layer only [CLS] is read.
        cls = last(x, None, first=1)
        return cls[:, 0]


class MlmHead(nn.Module):
    """BERT's prediction head with the decoder tied to the word embeddings: tokens (..., D) ->
    logits (..., vocab)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, tokens: Tensor, words: Tensor) -> Tensor:
        """words (vocab, D): the weight of the word embeddings."""
        hidden = F.gelu(self.dense(tokens))
        return F.linear(self.norm(hidden), words, self.bias)
