"""A model with its frame normalization, in training, evaluation and inference alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alpro.models.alpro import DualEncoder
from alpro.models.folder import ModelFolder
from alpro.models.pixels import normalize_frames


class NormalizedModel(nn.Module):
    """A model with its frame normalization. mean, std: per channel, of pixels in [0, 1]; not in the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def from_folder(cls, folder: ModelFolder, device: torch.device) -> "NormalizedModel":
        """The model of a folder with its normalization, on `device` and in eval mode."""
        return cls(folder.model, folder.preprocessing.mean, folder.preprocessing.std).to(device).eval()

    @property
    def black(self) -> Tensor:
        """A black pixel after normalization: (3, 1, 1)."""
        return -self.mean / self.std

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8, resized to the encoder's size (B, T, 3, S, S) and normalized."""
        return normalize_frames(frames, self.model.config.video.image_size, self.mean, self.std)
