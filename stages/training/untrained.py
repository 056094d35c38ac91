"""Objectives around models with random weights, by task: to plan and to measure steps, which need no data."""

import torch
from torch.nn.functional import normalize

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.folder import Preprocessing
from alpro.stages.training.objective import MatchingObjective, Objective, PrompterObjective, QaObjective
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective

TASKS = ("prompter", "pretrain", "retrieval", "qa")
PAPER_WEIGHTS = LossWeights()


def untrained_objective(
    task: str,
    shape: ModelConfig,
    *,
    entities: int = 0,
    answers: int = 0,
    weights: LossWeights = PAPER_WEIGHTS,
    teacher: ModelConfig | None = None,
    negative_pool_size: int = 0,
) -> Objective:
    """The objective of a task of `TASKS`, on torch's default device.

    entities, answers: outputs of the heads. teacher: the prompter of pre-training; None: pre-training without
    one, whose batches have pseudo-labels. Every pseudo-label is kept (the threshold is 0).
    """
    norm = Preprocessing().mean, Preprocessing().std
    if task == "prompter":
        return PrompterObjective(Prompter(shape), *norm)
    if task == "retrieval":
        return MatchingObjective(Alpro(shape, entities), *norm, negative_pool_size)
    if task == "qa":
        return QaObjective(Alpro(shape, answers=answers), *norm)
    if task != "pretrain":
        raise ValueError(f"{task!r} is not one of {', '.join(TASKS)}")
    prompts = {}
    if teacher:
        kinds = "video", "image"
        prompts = {kind: normalize(torch.randn(entities, teacher.embed_dim), dim=1) for kind in kinds}
    return PretrainObjective(
        Alpro(shape, entities), *norm, Prompter(teacher) if teacher else None, prompts, weights, 0.0, negative_pool_size
    )
