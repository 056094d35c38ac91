"""Frame normalization: uint8 frames to the inputs of the video encoder."""

import torch.nn.functional as F
from torch import Tensor


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
