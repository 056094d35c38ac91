"""Frame normalization: uint8 frames to the inputs of the video encoder, in training, evaluation and
inference alike."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.alpro import DualEncoder


def scale_frames(frames: Tensor, size: int) -> Tensor:
    """Frames (B, T, 3, H, W), uint8 or in [0, 1] -> (B, T, 3, size, size) in [0, 1], resized if
    needed."""
    pixels = frames
    if not frames.is_floating_point():
        pixels = frames.float().div_(255)
    if pixels.shape[-2:] == (size, size):
        return pixels

    # Antialiased: without it, fine patterns of a frame that shrinks become coarse ones.
    resized = F.interpolate(
        pixels.flatten(0, 1),
        (size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    return resized.unflatten(0, frames.shape[:2])


def normalize_frames(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """`scale_frames`, normalized. mean, std (3, 1, 1): per channel, of pixels in [0, 1]."""
    centered = scale_frames(frames, size) - mean
    return centered.div_(std)


class NormalizedModel(nn.Module):
    """A model with its frame normalization. mean, std: per channel, of pixels in [0, 1]; not in the
    state dict."""

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
        """Frames (B, T, 3, H, W), uint8 or in [0, 1], resized to the encoder's size (B, T, 3, S, S)
        and normalized."""
        size = self.model.config.video.image_size
        return normalize_frames(frames, size, self.mean, self.std)

    def pixels_of(self, clips: Iterable[np.ndarray]) -> Tensor:
        """`pixels` of clips (T, 3, H, W) uint8 of any heights and widths."""
        pixels = []
        # One by one: clips of different sizes fit no batch before they are resized.
        for clip in clips:
            frames = torch.from_numpy(clip)[None].to(self.mean.device)
            pixels.append(self.pixels(frames))
        return torch.cat(pixels)
