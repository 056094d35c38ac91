"""Configuration of exported models."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class AlproConfig(PretrainedConfig):
    """Configuration of an exported model.

    Attributes:
        task: prompter, pretrain, retrieval or qa.
        sizes: Values of `ModelConfig`.
        mean, std: Statistics of pixels in [0, 1] per channel.
        max_text_tokens: Length to which texts are truncated.
        entities, answers: Labels of the heads, in order.
        auto_map: The classes that transformers loads.
    """

    model_type = "alpro"

    task: str = "retrieval"
    sizes: dict[str, Any] | None = None
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    max_text_tokens: int = 30
    entities: Sequence[str] = ()
    answers: Sequence[str] = ()
    auto_map: dict[str, str] | None = None

    @property
    def projection_dim(self) -> int:
        """Dimension of an embedding."""
        return int(self.sizes["embed_dim"]) if self.sizes else 0
