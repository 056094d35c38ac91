"""Resize and normalize frames for the video encoder, in training, evaluation and inference."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.alpro import DualEncoder


def scale_frames(frames: Tensor, size: int) -> Tensor:
    """Resize frames, if needed, and scale their pixels to [0, 1].

    Shape:
        frames: (B, T, 3, H, W), uint8 or in [0, 1].
        output: (B, T, 3, size, size).
    """
    pixels = frames if frames.is_floating_point() else frames.float().div_(255)
    if pixels.shape[-2:] == (size, size):
        return pixels

    # Without antialiasing, shrinking a frame turns fine patterns into coarse ones.
    resized = F.interpolate(
        pixels.flatten(0, 1),
        (size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    return resized.unflatten(0, frames.shape[:2])


def normalize_frames(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Resize frames as `scale_frames`, and normalize them per channel.

    Args:
        mean, std: Statistics (3, 1, 1) of pixels in [0, 1].
    """
    return (scale_frames(frames, size) - mean).div_(std)


class NormalizedModel(nn.Module):
    """A model with its frame normalization, which is not in the state dict.

    Args:
        mean, std: Statistics of pixels in [0, 1] per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            by_channel = torch.tensor(values).view(3, 1, 1)
            self.register_buffer(name, by_channel, persistent=False)

    @property
    def black(self) -> Tensor:
        """Normalized black pixel (3, 1, 1)."""
        return -self.mean / self.std

    def pixels(self, frames: Tensor) -> Tensor:
        """Resize frames to the size of the encoder, and normalize them.

        Shape:
            frames: (B, T, 3, H, W), uint8 or in [0, 1].
            output: (B, T, 3, S, S).
        """
        size = self.model.config.video.image_size
        return normalize_frames(frames, size, self.mean, self.std)

    def clip_pixels(self, clips: Iterable[np.ndarray]) -> Tensor:
        """Return `pixels` of clips (T, H, W, 3) uint8, which may differ in height and width."""
        frames = (
            torch.from_numpy(clip).movedim(3, 1)[None].to(self.mean.device)
            for clip in clips
        )
        # One by one, because clips of different sizes fit no batch before they are resized.
        return torch.cat([self.pixels(clip) for clip in frames])
