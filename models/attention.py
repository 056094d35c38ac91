"""Multi-head self-attention on PyTorch's fused kernel, and the MLP: used by both encoders."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values (in that order).

    `forward(x, mask, queries)`: x (B, L, D) -> (B, L, D). `mask` (B, 1, 1, L) is boolean, True where a token may be
    attended to; None attends to all tokens. With `queries` (B, Q, D), only these tokens attend -> (B, Q, D).
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        width = x.shape[-1]
        if queries is None:
            q, k, v = self.by_head(self.qkv(x), 3)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            (q,) = self.by_head(F.linear(queries, weight[:width], bias[:width]), 1)
            k, v = self.by_head(F.linear(x, weight[width:], bias[width:]), 2)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj(out.transpose(1, 2).flatten(2))

    def by_head(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * D) -> `parts` tensors (B, heads, L, D / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


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
