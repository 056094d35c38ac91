"""Temporal attention for the vision tower of a CLIP or SigLIP (beyond the paper)."""

from typing import Any

import torch
from torch import Tensor, nn

from alpro.models.attention import Attention, tile_mask
from alpro.models.weights import CLIP, convert, select_prefix


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip, at each patch, before a layer of the vision tower.

    Together with the layer it is divided space-time attention. Its norm, queries, keys and values
    start as copies of the layer's, its output projection at zero, so the tower starts unchanged. The
    time embedding is inside this branch. For another number of frames, the nearest time is used.

    Args:
        layer: The layer of the tower.
        heads: Attention heads of the tower.
        frames: Frames of a clip.

    Shape:
        x: (B * T, N, D) of clips of T frames.
        output: Same as x.
    """

    def __init__(self, layer: Any, heads: int, frames: int):
        super().__init__()
        width = layer.self_attn.q_proj.in_features
        self.norm = nn.LayerNorm(width, eps=layer.layer_norm1.eps)
        self.attn = Attention(width, heads)
        self.time_embed = nn.Parameter(0.02 * torch.randn(frames, width))

        spatial = convert(layer.state_dict(prefix="layer."), CLIP)
        self.norm.load_state_dict(select_prefix(spatial, "layer.norm1."))
        self.attn.load_state_dict(select_prefix(spatial, "layer.attn."))
        nn.init.zeros_(self.attn.proj.weight)
        nn.init.zeros_(self.attn.proj.bias)

    def times(self, frames: int) -> Tensor:
        """Return the time embeddings (T, D) of a clip of `frames` frames."""
        index = torch.arange(frames, device=self.time_embed.device)
        nearest = index * len(self.time_embed) // frames
        return self.time_embed[nearest]

    def forward(self, x: Tensor, frames: int) -> Tensor:
        # A sequence of T frames for each patch.
        clips = self.norm(x).unflatten(0, (-1, frames))  # (B, T, N, D)
        y = clips.transpose(1, 2) + self.times(frames)  # (B, N, T, D)
        clips_and_patches = y.shape[:2]
        sequences = y.flatten(0, 1)
        mask = tile_mask(sequences, len(sequences), frames)
        attended = self.attn(sequences, mask)
        # (B, T, N, D).
        update = attended.unflatten(0, clips_and_patches).transpose(1, 2)
        return x + update.flatten(0, 1)
