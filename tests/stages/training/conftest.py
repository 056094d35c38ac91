"""Objectives on a model small enough for a test, and a batch for them that needs no corpus."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.stages.training.examples import Batch
from alpro.stages.training.objective import (
    MatchingObjective,
    Objective,
    PretrainObjective,
    PrompterObjective,
    QaObjective,
)

SIZE, LENGTH, WORDS, ENTITIES, ANSWERS = 4, 8, 40, 6, 5
MEAN, STD = [0.5] * 3, [0.25] * 3


@pytest.fixture
def small_batch() -> Batch:
    """Four videos in two frames of 32 x 32; three words of the longest text are masked."""
    random = torch.Generator().manual_seed(3)
    text = torch.randint(5, WORDS, (SIZE, LENGTH), generator=random)
    labels = torch.full_like(text, -100)
    for row, positions in enumerate(([1, 4, 6], [2], [], [1, 2])):
        labels[row, positions] = text[row, positions]
    return Batch(
        step=0,
        kind="video",
        ids=[f"clip{n}" for n in range(SIZE)],
        video=torch.arange(SIZE),
        frames=torch.randint(0, 256, (SIZE, 2, 3, 32, 32), generator=random, dtype=torch.uint8),
        text=text,
        mask=(torch.arange(LENGTH) < torch.tensor([8, 5, 6, 4])[:, None]).long(),
        masked=torch.where(labels != -100, 4, text),
        labels=labels,
        boxes=torch.tensor([[0, 0, 2, 3], [1, 1, 3, 2], [2, 0, 2, 4], [0, 2, 4, 2]]),
        answers=torch.tensor([0, 3, -100, 4]),
        uniforms=torch.rand(SIZE, 2, generator=random, dtype=torch.double),
        max_masked=3,
    )


@pytest.fixture
def small_objective() -> Callable[..., Objective]:
    """small_objective(name, width=..., dropout=..., pool=..., **weights): an objective by the name of its stage,
    the same each time."""

    def make(name: str, width: int = 16, dropout: float = 0.0, pool: int = 0, **weights: float) -> Objective:
        video = {"image_size": 32, "patch_size": 8, "frames": 2, "width": width, "depth": 2, "heads": 2}
        text = {"vocab_size": WORDS, "width": width, "depth": 4, "fusion_layer": 2, "heads": 2, "max_length": 16}
        values: dict[str, Any] = {"video": video | {"drop_path": dropout}, "text": text | {"dropout": dropout}}
        shape = ModelConfig.model_validate(values | {"embed_dim": 8, "init": "scratch"})
        torch.manual_seed(0)
        if name == "prompter":
            return PrompterObjective(Prompter(shape), MEAN, STD)
        if name == "retrieval":
            return MatchingObjective(Alpro(shape), MEAN, STD, pool)
        if name == "qa":
            return QaObjective(Alpro(shape, answers=ANSWERS), MEAN, STD)
        prompts = {kind: torch.randn(ENTITIES, 8) for kind in ("video", "image")}
        weights = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0, "pem": 1.0} | weights
        model, teacher = Alpro(shape, ENTITIES), Prompter(shape)
        return PretrainObjective(model, MEAN, STD, teacher, prompts, weights, 0.0, pool)

    return make
