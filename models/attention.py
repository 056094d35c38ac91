"""Multi-head self-attention on PyTorch's fused kernel, and the MLP: used by both encoders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.precision import type_of_products

# CUDA starts at most this many blocks in the dimension that holds the batch; more fail with
# "invalid configuration".
MAX_SEQUENCES = 65_535
# The fused kernels of a GPU compute tiles of this many queries and keys, however short a sequence
# is.
TILE = 128
MAX_PACKED = 16  # tokens of the longest sequence that is packed with others into a tile


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values (in that order).

    `forward(x, mask, first)`: x (B, L, D) -> (B, L, D). `mask` (B, 1, 1, L) is boolean, True where
    a token may be attended to; None attends to all tokens; that of `tile_mask` also attends to all,
    faster. With `first`, only the first tokens attend -> (B, first, D). `attend(qkv, mask)` is the
    part after the first linear, whose output (B, L, 3D) it takes.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int | None = None) -> Tensor:
        length = x.shape[1]
        width = x.shape[-1]
        weight = self.qkv.weight
        bias = self.qkv.bias

        # A token that attends only to itself, as the one frame of an image: the result is its
        # value.
        if length == 1 and mask is None and not self.dropout:
            value = F.linear(x, weight[-width:], bias[-width:])
            return self.proj(value)
        if first is None:
            return self.attend(self.qkv(x), mask)

        # The last layer of an encoder of which only [CLS] is read: one query, all keys and values.
        query = F.linear(x[:, :first], weight[:width], bias[:width])
        key_value = F.linear(x, weight[width:], bias[width:])
        (q,) = self.by_head(query, 1)
        k, v = self.by_head(key_value, 2)
        return self.output(q, k, v, mask)

    def attend(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.by_head(qkv, 3)
        return self.output(q, k, v, mask)

    def output(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout * self.training
        if is_on_gpu(q):
            out = attention_on_gpu(q, k, v, mask, dropout)
        elif q.dtype == torch.bfloat16 and q.requires_grad:
            # The backward pass of the fused kernel on a CPU: 66 ms of 8 x 197 tokens, products 45
            # ms.
            out = attention_by_products(q, k, v, mask, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = out.transpose(1, 2).flatten(2)  # (B, L, D)
        return self.proj(out)

    def by_head(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, L, count * D) -> `count` tensors (B, heads, L, D / heads)."""
        # `chunk` first: the gradient of its parts is one concatenation. That of `unbind` on a
        # permuted tensor is a stack and a copy.
        parts = x.chunk(count, dim=2)
        return tuple(part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)


def attention_on_gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As F.scaled_dot_product_attention, for any number of sequences; with a `tile_mask`, short ones
    share the tiles of the kernel."""
    if mask is not None and mask.dim() == 2:
        return packed_attention(q, k, v, mask, dropout)

    sequences = len(q)
    if sequences <= MAX_SEQUENCES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    outputs = []
    for start in range(0, sequences, MAX_SEQUENCES):
        rows = slice(start, start + MAX_SEQUENCES)
        # A mask of one row holds for all sequences.
        mask_of_rows = mask
        if mask is not None and len(mask) == sequences:
            mask_of_rows = mask[rows]
        output = F.scaled_dot_product_attention(
            q[rows],
            k[rows],
            v[rows],
            attn_mask=mask_of_rows,
            dropout_p=dropout,
        )
        outputs.append(output)
    return torch.cat(outputs)


def sequences_in_a_tile(sequences: int, length: int) -> int:
    """The largest divisor of the number of sequences, of so many that they fit a tile together."""
    max_count = max(1, TILE // length)
    divisors = [count for count in range(1, max_count + 1) if sequences % count == 0]
    return max(divisors)


def tile_mask(x: Tensor, sequences: int, length: int) -> Tensor | None:
    """The `block_mask` of as many of the `sequences` of `length` tokens as share a tile of a GPU's
    kernel, in the type of the products of x; None where they are too long to share one, and on a
    CPU.

    The temporal attention of a clip has a sequence of a few frames for each patch: by the roofline
    of an H100 (docs/gpu.md), 4 frames of 32 clips take a tenth of the time, since alone, a sequence
    fills 3 % of a tile. All layers have the same mask.
    """
    if not is_on_gpu(x) or not 1 < length <= MAX_PACKED:
        return None
    packed = sequences_in_a_tile(sequences, length)
    if packed == 1:
        return None
    return block_mask(packed, length, type_of_products(x), x.device)


def block_mask(packed: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask (S, S) of `packed` sequences of `length` tokens: 0 within one, -inf between two."""
    sequence_of_token = torch.arange(packed * length, device=device) // length
    is_other = sequence_of_token[:, None] != sequence_of_token
    mask = torch.zeros(is_other.shape, dtype=dtype, device=device)
    return mask.masked_fill(is_other, -torch.inf)


def is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def packed_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention within sequences (B, heads, L, D), S / L of which are one sequence of the kernel;
    `mask` (S, S) is their `block_mask`."""
    _, heads, length, width = q.shape
    packed = len(mask) // length

    def pack(x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, packed)).transpose(1, 2)
        return x.reshape(-1, heads, packed * length, width)

    # One mask for all sequences and heads, of four dimensions: nothing is packed again.
    out = attention_on_gpu(pack(q), pack(k), pack(v), mask[None, None], dropout)
    by_sequence = out.unflatten(2, (packed, length)).transpose(1, 2)
    return by_sequence.reshape(q.shape)


def attention_by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """As F.scaled_dot_product_attention, by two matrix products with a softmax, which is float32
    inside."""
    scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    weights = scores.softmax(dim=-1).to(v.dtype)
    return F.dropout(weights, dropout_p) @ v


class Mlp(nn.Module):
    """Linear, GELU, linear: (..., D) -> (..., D).

    activation: gelu is the exact one; quick_gelu is x * sigmoid(1.702 x), that of OpenAI's CLIP.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu"):
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if self.quick:
            activated = hidden * F.sigmoid(1.702 * hidden)
        else:
            activated = F.gelu(hidden)
        return self.fc2(activated)
