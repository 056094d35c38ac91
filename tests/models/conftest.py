"""A small model with all components of the full one."""

import pytest
import torch

from alpro.models.alpro import ModelConfig, VideoConfig
from alpro.models.text import TextConfig


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """4 frames of 32 x 32 in a grid of 4 x 4 patches, 40 words. "scratch": no weight starts at
    zero."""
    return ModelConfig(
        video=VideoConfig(
            image_size=32,
            patch_size=8,
            frames=4,
            width=16,
            depth=2,
            heads=2,
            drop_path=0.0,
        ),
        text=TextConfig(
            vocab_size=40,
            width=16,
            depth=3,
            fusion_layer=2,
            heads=2,
            max_length=12,
            dropout=0.0,
        ),
        embed_dim=8,
        init="scratch",
    )


def near(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)
