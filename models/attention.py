"""Multi-head self-attention on PyTorch's fused kernel, and the MLP of both encoders."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alpro.models.precision import get_autocast_dtype, is_on_gpu

# CUDA allows at most this many blocks in the grid dimension of the batch. More fail with "invalid
# configuration".
MAX_SEQUENCES = 65_535
# The fused kernels of a GPU compute tiles of this many queries and keys, even of a shorter sequence.
TILE = 128
MAX_PACKED_TOKENS = 16  # longest sequence that is packed with others into a tile


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values, in that order.

    Args:
        x: Tokens (B, L, D).
        mask: Boolean (B, 1, 1, L), True where a token may be attended to. None attends to all
            tokens; a `tile_mask` also does, faster.
        outputs: Number of leading tokens to compute; by default all.
        qkv: Projected queries, keys and values (B, L, 3D) of x, if the caller has them.

    Shape:
        (B, L, D) -> (B, L, D), or (B, outputs, D).
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        outputs: int | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        width = x.shape[2]
        weight = self.qkv.weight
        bias = self.qkv.bias

        # A token that attends only to itself, such as the one frame of an image, returns its value.
        if x.shape[1] == 1 and mask is None and not self.dropout:
            value = F.linear(x, weight[-width:], bias[-width:])
            return self.proj(value)
        if outputs is None:
            q, k, v = self.by_head(self.qkv(x) if qkv is None else qkv, 3)
        else:
            # The last layer of an encoder whose [CLS] alone is read needs one query.
            leading = x[:, :outputs]
            query = F.linear(leading, weight[:width], bias[:width])
            key_value = F.linear(x, weight[width:], bias[width:])
            (q,) = self.by_head(query, 1)
            k, v = self.by_head(key_value, 2)

        dropout = self.dropout * self.training
        if is_on_gpu(q):
            out = attention_on_gpu(q, k, v, mask, dropout)
        elif q.dtype == torch.bfloat16 and q.requires_grad:
            # On a CPU, the backward pass of the fused kernel takes 66 ms for 8 x 197 tokens, matrix
            # products take 45 ms.
            out = attention_by_products(q, k, v, mask, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = out.transpose(1, 2).flatten(2)  # (B, L, D)
        return self.proj(out)

    def by_head(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """Split (B, L, count * D) into `count` tensors (B, heads, L, D / heads)."""
        # The gradient of `chunk` is one concatenation. The gradient of `unbind` on a permuted tensor
        # is a stack and a copy.
        return tuple(
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in x.chunk(count, dim=2)
        )


def attention_on_gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute F.scaled_dot_product_attention for any number of sequences.

    With a `tile_mask`, short sequences share the tiles of the kernel.
    """
    if mask is not None and mask.dim() == 2:
        return packed_attention(q, k, v, mask, dropout)

    attention = partial(F.scaled_dot_product_attention, dropout_p=dropout)
    if len(q) <= MAX_SEQUENCES:
        return attention(q, k, v, mask)

    inputs = [q, k, v]
    if mask is not None:
        # A mask of one row applies to all sequences.
        inputs.append(mask.expand(len(q), -1, -1, -1))
    parts = zip(*(x.split(MAX_SEQUENCES) for x in inputs), strict=True)
    return torch.cat([attention(*part) for part in parts])


def sequences_per_tile(sequences: int, length: int) -> int:
    """Return the largest divisor of the number of sequences that fits a tile."""
    counts = range(1, TILE // length + 1)
    return max(count for count in counts if sequences % count == 0)


def tile_mask(x: Tensor, sequences: int, length: int) -> Tensor | None:
    """Return the mask of sequences that share a tile of a GPU's attention kernel.

    The temporal attention of a clip has a sequence of a few frames for each patch. A sequence of 4
    frames fills 3 % of a tile. The gain is not measured yet (docs/gpu.md). All layers have the same
    mask.

    Args:
        x: Tokens, for the device and the autocast dtype.
        sequences: Number of sequences.
        length: Tokens of a sequence.

    Returns:
        A `block_mask`; None on a CPU, and if the sequences are too long to share a tile.
    """
    if not is_on_gpu(x) or not 1 < length <= MAX_PACKED_TOKENS:
        return None
    packed = sequences_per_tile(sequences, length)
    if packed == 1:
        return None
    return block_mask(packed, length, get_autocast_dtype(x), x.device)


def block_mask(
    packed: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the mask (S, S) of `packed` sequences: 0 within a sequence, -inf between two."""
    sequence_index = torch.arange(packed * length, device=device) // length
    is_same = sequence_index[:, None] == sequence_index
    return torch.where(is_same, 0.0, -torch.inf).to(dtype)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0
) -> Tensor:
    """Compute attention within sequences (B, heads, L, D) that are packed for the kernel.

    Args:
        mask: `block_mask` (S, S) of S / L sequences that are packed into one.
    """
    _, heads, length, width = q.shape
    packed = len(mask) // length

    def pack(x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, packed)).transpose(1, 2)
        return x.reshape(-1, heads, packed * length, width)

    # A mask of four dimensions applies to all sequences and heads, and is not packed again.
    mask = mask[None, None]
    out = attention_on_gpu(pack(q), pack(k), pack(v), mask, dropout)
    by_sequence = out.unflatten(2, (packed, length)).transpose(1, 2)
    return by_sequence.reshape(q.shape)


def attention_by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute F.scaled_dot_product_attention by two matrix products.

    The softmax between them is float32 internally.
    """
    scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    weights = scores.softmax(dim=-1).to(v.dtype)
    return F.dropout(weights, dropout_p) @ v


class Mlp(nn.Module):
    """Linear, GELU, linear.

    Args:
        activation: gelu is the exact one; quick_gelu is x * sigmoid(1.702 x), as in OpenAI's CLIP.

    Shape:
        (..., D) -> (..., D).
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu"):
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if self.quick:
            return self.fc2(hidden * F.sigmoid(1.702 * hidden))
        return self.fc2(F.gelu(hidden))


class TransformerLayer(nn.Module):
    """Base of the layers that training compiles, and whose matrices Muon trains.

    Attributes:
        checkpoint_activations: Whether `compute_layer` computes it again in the backward pass of
            training, which takes less memory.
    """

    checkpoint_activations = False


def compute_layer(layer: Any, *inputs: Any) -> Tensor:
    """Compute a `TransformerLayer`."""
    if layer.checkpoint_activations and layer.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
