"""Video encoder: TimeSformer, divided space-time attention (paper, section 3.1, "Visual Encoder")."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from alpro.models.attention import (
    Attention,
    Mlp,
    TransformerLayer,
    compute_layer,
    tile_mask,
)
from alpro.models.precision import as_residual, get_autocast_dtype

# Epsilon of the layer norms of most ViTs, and of a CLIP, which has `pre_norm`.
EPS = 1e-6
CLIP_EPS = 1e-5
# Bounds of the sizes of a model, because a configuration may come from a stranger.
MAX_DEPTH = 64
MAX_WIDTH = 8192
# Fields of both encoders.
WIDTH = Field(default=768, ge=8, le=MAX_WIDTH, description="hidden size")
HEADS = Field(default=12, ge=1, description="attention heads")
MLP_RATIO = Field(
    default=4.0, gt=0, le=64, description="hidden size of the MLP / width"
)


def check_multiple(config: BaseModel, key: str, divisor: str) -> None:
    """Raise ValueError if one value of a configuration is not a multiple of another."""
    value = getattr(config, key)
    factor = getattr(config, divisor)
    if value % factor:
        raise ValueError(f"{key} {value} is not a multiple of {divisor} {factor}")


class VideoConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the video encoder. The defaults are the paper's (ViT-B/16, 224 x 224, 4 frames)."""

    image_size: int = Field(
        default=224,
        ge=16,
        le=4096,
        description="height and width of a frame, pixels",
    )
    patch_size: int = Field(
        default=16,
        ge=4,
        le=4096,
        description="height and width of a patch, pixels",
    )
    stem: Literal["patch", "conv"] = Field(
        default="patch",
        description="embedding of patches: linear (patch), or convolutions for training from "
        "random weights (conv)",
    )
    frames: int = Field(default=4, ge=1, le=4096, description="frames of a clip")
    width: int = WIDTH
    depth: int = Field(default=12, ge=1, le=MAX_DEPTH, description="blocks")
    heads: int = HEADS
    mlp_ratio: float = MLP_RATIO
    pre_norm: bool = Field(
        default=False, description="layer norm before the first block, as in CLIP"
    )
    activation: Literal["gelu", "quick_gelu"] = Field(
        default="gelu", description="activation of the MLPs; quick_gelu: OpenAI's CLIP"
    )
    drop_path: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="stochastic depth rate of the last block, linear from 0",
    )

    @model_validator(mode="after")
    def _check_divisions(self) -> "VideoConfig":
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "width", "heads")
        # Each convolution of the stem halves the sides.
        if self.stem == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"a conv stem needs a patch_size that is a power of 2, not {self.patch_size}"
            )
        return self

    @property
    def norm_eps(self) -> float:
        """Epsilon of the layer norms."""
        return CLIP_EPS if self.pre_norm else EPS

    @property
    def grid(self) -> int:
        """Number of patches along one side of a frame."""
        return self.image_size // self.patch_size


def build_conv_stem(width: int, patch: int) -> nn.Sequential:
    """Build convolutions of stride 2 that embed patches, with doubling channels.

    See Xiao et al., Early Convolutions Help Transformers See Better, 2021. With a linear projection,
    the outline of a small object is inside one patch, and a small model that is trained from random
    weights hardly learns it.

    Args:
        width: Channels D of the last convolution.
        patch: Size of a patch in pixels.

    Shape:
        Frames (N, 3, S, S) -> (N, D, S / patch, S / patch).
    """
    layers: list[nn.Module] = []
    channels = 3
    halvings = patch.bit_length() - 1
    for later_halvings in reversed(range(halvings)):
        out_channels = max(8, width >> later_halvings)
        layers.append(nn.Conv2d(channels, out_channels, 3, stride=2, padding=1))
        channels = out_channels
        # The last convolution is the projection, which has no activation.
        if later_halvings:
            layers += [nn.GroupNorm(1, channels), nn.GELU()]
    return nn.Sequential(*layers)


class Block(TransformerLayer):
    """Divided space-time attention, pre-norm: temporal attention per patch, spatial per frame, MLP.

    Args:
        x: [CLS] and the patches of T frames (B, 1 + T * N, D).
        frames: T.
        keep: Factors (3, B) of the three branches (see `TimeSformer.sample_drop_path`); None: all 1.
        mask: `tile_mask` of B * N sequences of T tokens.
        cls_only: If True, compute only [CLS].

    Shape:
        (B, 1 + T * N, D) -> same, or (B, 1, D) with `cls_only`.
    """

    def __init__(self, config: VideoConfig):
        super().__init__()
        width = config.width
        eps = config.norm_eps
        self.temporal_norm1 = nn.LayerNorm(width, eps=eps)
        self.temporal_attn = Attention(width, config.heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.activation)

    def forward(
        self,
        x: Tensor,
        frames: int,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        cls_only: bool = False,
    ) -> Tensor:
        # The gradient of `split` is one concatenation. The gradient of a slice is a tensor of zeros,
        # as large as x.
        cls, patches = x.split((1, x.shape[1] - 1), dim=1)
        patches = patches.unflatten(1, (frames, -1))
        b, t, n, d = patches.shape

        # Temporal attention: a sequence of T tokens for each patch.
        y = patches.transpose(1, 2).reshape(b * n, t, d)
        y = self.temporal_attn(self.temporal_norm1(y), mask)
        y = drop_path(y, keep, 0)
        y = self.temporal_fc(y).view(b, n, t, d)
        patches = patches + y.transpose(1, 2)

        # Spatial attention: a sequence of 1 + N tokens for each frame. [CLS] attends to every frame
        # separately; its T updates are averaged.
        cls_per_frame = cls.unsqueeze(1).expand(b, t, 1, d)
        y = torch.cat([cls_per_frame, patches], dim=2)
        y = self.norm1(y.view(b * t, n + 1, d))
        y = self.attn(y, outputs=1 if cls_only else None)
        y = drop_path(y, keep, 1).unflatten(0, (b, t))
        cls_update, update = y.split((1, y.shape[2] - 1), dim=2)
        x = cls + cls_update.mean(dim=1)
        if not cls_only:
            patches = (patches + update).reshape(b, t * n, d)
            x = torch.cat([x, patches], dim=1)

        y = self.mlp(self.norm2(x))
        return x + drop_path(y, keep, 2)


def drop_path(x: Tensor, keep: Tensor | None, branch: int) -> Tensor:
    """Scale x (B * n, ...), n consecutive rows per factor, by the factors keep[branch] (B,)."""
    if keep is None:
        return x
    factors = keep[branch][:, None]
    scaled = x.reshape(len(factors), -1) * factors
    return scaled.view_as(x)


class TimeSformer(nn.Module):
    """Encode clips: [CLS] and patch tokens, which are averaged over the frames after the final norm.

    Args:
        frames: Normalized frames (B, T, 3, S, S). T is 1 for an image as one frame.
        cls_only: If True, the last block computes [CLS] only.

    Shape:
        (B, T, 3, S, S) -> (B, 1 + N, D), [CLS] first, then the N = (S / patch)^2 patches in row-major
        order; (B, 1, D) with `cls_only`.

    Raises:
        ValueError: If the number or size of the frames is not the configured one.
    """

    def __init__(self, config: VideoConfig):
        super().__init__()
        self.config = config

        width = config.width
        patch = config.patch_size
        self.patch_embed: nn.Module
        if config.stem == "conv":
            self.patch_embed = build_conv_stem(width, patch)
        else:
            self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, width))

        self.pre_norm = (
            nn.LayerNorm(width, eps=CLIP_EPS) if config.pre_norm else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        b, t, *shape = frames.shape
        size = self.config.image_size
        if shape != [3, size, size] or t not in (1, self.config.frames):
            raise ValueError(
                f"frames are {tuple(frames.shape)}; the encoder takes (B, {self.config.frames}, 3, "
                f"{size}, {size})"
            )

        # Patches (B, T, N, D) with the embeddings of their positions and times; [CLS] has no time.
        x = self.patch_embed(frames.flatten(0, 1))
        x = x.flatten(2).transpose(1, 2)  # (B * T, N, D)
        positions = self.pos_embed[:, None, 1:]
        times = self.time_embed[:, :t, None]
        patches = x.view(b, t, *x.shape[1:]) + positions + times

        cls = self.cls_token + self.pos_embed[:, :1]
        cls = cls.expand(b, -1, -1)
        tokens = torch.cat([cls, patches.flatten(1, 2)], dim=1)
        x = as_residual(self.pre_norm(tokens))

        # Computed once, because it depends on no weights of a block.
        keeps = self.sample_drop_path(x)
        mask = tile_mask(x, b * patches.shape[2], t)
        last = self.blocks[-1]
        for block, keep in zip(self.blocks, keeps, strict=True):
            x = compute_layer(block, x, t, keep, mask, cls_only and block is last)

        # The paper's temporal mean pooling averages normalized tokens.
        x = self.norm(x)
        if cls_only:
            return x
        cls, patches = x.split((1, x.shape[1] - 1), dim=1)
        frame_mean = patches.unflatten(1, (t, -1)).mean(dim=1)
        return torch.cat([cls, frame_mean], dim=1)

    def set_frames(self, frames: int) -> None:
        """Change the number of frames of a clip, and resize the time embedding."""
        if frames == self.config.frames:
            return
        self.time_embed = nn.Parameter(resize_times(self.time_embed.data, frames))
        self.config = self.config.model_copy(update={"frames": frames})

    def sample_drop_path(self, x: Tensor) -> Tensor | list[None]:
        """Sample the stochastic depth of all blocks, with one call to the generator.

        The rate grows linearly from 0 in the first block to `drop_path` in the last.

        Returns:
            Factors (depth, 3, B) of the branches for tokens `x` (B, L, D), in their compute dtype:
            0 for a dropped branch, else 1 / keep probability. None for each block in eval mode.
        """
        depth = self.config.depth
        if not self.training or self.config.drop_path == 0.0:
            return [None] * depth
        # Made on the device, so nothing is copied; in double precision, 1 - rate is exact.
        blocks = torch.arange(depth, dtype=torch.float64, device=x.device)
        drop_rates = self.config.drop_path * blocks / max(1, depth - 1)
        keep_rates = (1 - drop_rates).float()

        rates = keep_rates[:, None, None].expand(-1, 3, len(x))
        # Divided by the rate, the expectation is the value in evaluation.
        factors = torch.bernoulli(rates) / rates
        return factors.to(get_autocast_dtype(x))


def resize_times(times: Tensor, frames: int) -> Tensor:
    """Resize a time embedding (1, T, D) to (1, frames, D) by the nearest earlier times."""
    by_channel = times.transpose(1, 2)
    return F.interpolate(by_channel, size=frames, mode="nearest").transpose(1, 2)


def resize_positions(positions: Tensor, grid: int, name: str = "pos_embed") -> Tensor:
    """Resize a position embedding (1, 1 + N, D) to (1, 1 + grid^2, D), bicubic.

    Args:
        name: Its name in messages.

    Raises:
        ValueError: If it is not [CLS] and a square grid, as in a distilled ViT.
    """
    shape = tuple(positions.shape)
    side = math.isqrt(max(0, shape[1] - 1)) if len(shape) == 3 else 0
    if not side or shape[1] != 1 + side**2:
        raise ValueError(f"{name} is {shape}, not [CLS] and a square grid")
    if side == grid:
        return positions

    # [CLS] has no position on the grid, so it stays as it is.
    cls, patches = positions.split((1, side**2), dim=1)
    by_channel = patches.transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(
        by_channel, size=(grid, grid), mode="bicubic", align_corners=False
    )
    return torch.cat([cls, resized.flatten(2).transpose(1, 2)], dim=1)
