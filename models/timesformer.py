"""The video encoder: TimeSformer with divided space-time attention (paper, section 3.1, "Visual Encoder")."""

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import Attention, DropPath, Mlp


class VideoConfig(BaseModel):
    """Sizes of the video encoder; the defaults are the paper's (ViT-B/16 at 224 x 224, 4 frames)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(224, ge=16, description="height and width of a frame, pixels")
    patch_size: int = Field(16, ge=4, description="height and width of a patch, pixels")
    frames: int = Field(4, ge=1, description="frames of a clip")
    width: int = Field(768, ge=8, description="channels of a token")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden channels of the MLP, in widths")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block, from 0, linearly")

    @model_validator(mode="after")
    def _divides(self) -> "VideoConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


class Block(nn.Module):
    """Attention over time at each place, attention over space in each frame, MLP; pre-norm, residual."""

    def __init__(self, config: VideoConfig, drop_path: float):
        super().__init__()
        width, heads = config.width, config.heads
        self.temporal_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """cls (B, 1, D), patches (B, T, N, D) -> the same shapes."""
        b, t, n, d = patches.shape
        x = patches.transpose(1, 2).reshape(b * n, t, d)
        x = self.drop_path(self.temporal_attn(self.temporal_norm1(x)), b)
        patches = patches + self.temporal_fc(x).view(b, n, t, d).transpose(1, 2)

        # The [CLS] token attends in every frame; its T updates are averaged.
        x = torch.cat([cls.unsqueeze(1).expand(b, t, 1, d), patches], dim=2).view(b * t, n + 1, d)
        x = self.drop_path(self.attn(self.norm1(x)), b).view(b, t, n + 1, d)
        cls = cls + x[:, :, 0].mean(dim=1, keepdim=True)
        patches = patches + x[:, :, 1:]

        x = torch.cat([cls, patches.reshape(b, t * n, d)], dim=1)
        x = x + self.drop_path(self.mlp(self.norm2(x)), b)
        return x[:, :1], x[:, 1:].view(b, t, n, d)


class TimeSformer(nn.Module):
    """Frames (B, T, 3, S, S), normalised, to tokens (B, 1 + N, D): [CLS], then the N = (S / patch)^2 patch
    tokens in row-major order, each the mean over the T frames, after the final norm."""

    def __init__(self, config: VideoConfig):
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.checkpoint_activations = False

    def forward(self, frames: Tensor) -> Tensor:
        b, t, _, height, width = frames.shape
        size = self.config.image_size
        if (height, width) != (size, size) or t != self.config.frames:
            raise ValueError(
                f"(T, H, W) is ({t}, {height}, {width}); the encoder takes ({self.config.frames}, {size}, {size})"
            )
        x = self.patch_embed(frames.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B * T, N, D)
        patches = x.view(b, t, *x.shape[1:]) + self.pos_embed[:, None, 1:] + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        for block in self.blocks:
            if self.checkpoint_activations and self.training:
                cls, patches = checkpoint(block, cls, patches, use_reentrant=False)
            else:
                cls, patches = block(cls, patches)
        # Normalise each frame's tokens, then fuse over time (the paper's temporal mean pooling).
        return torch.cat([self.norm(cls), self.norm(patches).mean(dim=1)], dim=1)
