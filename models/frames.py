"""Frame normalization: uint8 frames to the inputs of the video encoder, in training, evaluation and inference alike."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.alpro import DualEncoder


def normalize_frames(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Frames (B, T, 3, H, W) uint8 -> (B, T, 3, size, size): resized if needed, scaled to [0, 1] and normalized.

    mean, std (3, 1, 1): per channel, of pixels in [0, 1].
    """
    pixels = resize(frames.flatten(0, 1).float() / 255, size)
    return ((pixels - mean) / std).view(*frames.shape[:2], 3, size, size)


def resize(pixels: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) -> (N, 3, size, size), if they are not of this size."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)


class NormalizedModel(nn.Module):
    """A model with its frame normalization. mean, std: per channel, of pixels in [0, 1]; not in the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def black(self) -> Tensor:
        """A black pixel after normalization: (3, 1, 1)."""
        return -self.mean / self.std

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8, resized to the encoder's size (B, T, 3, S, S) and normalized."""
        return normalize_frames(frames, self.model.config.video.image_size, self.mean, self.std)
