"""Multi-head self-attention on PyTorch's fused kernel, and the MLP: used by both encoders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values (in that order).

    `forward(x, mask, first)`: x (B, L, D) -> (B, L, D). `mask` (B, 1, 1, L) is boolean, True where a token may be
    attended to; None attends to all tokens. With `first`, only the first tokens attend -> (B, first, D).
    `attend(qkv, mask)` is the part after the first linear, whose output (B, L, 3D) it takes.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int | None = None) -> Tensor:
        width, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
        if (
            x.shape[1] == 1 and mask is None and not self.dropout
        ):  # it attends to itself, as the one frame of an image
            return self.proj(F.linear(x, weight[-width:], bias[-width:]))
        if first is None:
            return self.attend(self.qkv(x), mask)
        (q,) = self.by_head(F.linear(x[:, :first], weight[:width], bias[:width]), 1)
        k, v = self.by_head(F.linear(x, weight[width:], bias[width:]), 2)
        return self.output(q, k, v, mask)

    def attend(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.by_head(qkv, 3)
        return self.output(q, k, v, mask)

    def output(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # The backward pass of the fused kernel in bfloat16 on a CPU: 66 ms of 8 x 197 tokens, products 45 ms.
        slow = q.dtype == torch.bfloat16 and not q.is_cuda and q.requires_grad
        attend = attention_by_products if slow else F.scaled_dot_product_attention
        out = attend(q, k, v, attn_mask=mask, dropout_p=self.dropout * self.training)
        return self.proj(out.transpose(1, 2).flatten(2))

    def by_head(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * D) -> `parts` tensors (B, heads, L, D / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attention_by_products(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """As F.scaled_dot_product_attention, by two matrix products with a softmax, which is float32 inside."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return F.dropout(scores.softmax(dim=-1).to(v.dtype), dropout_p) @ v


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
        y = self.fc1(x)
        return self.fc2(y * F.sigmoid(1.702 * y) if self.quick else F.gelu(y))
