"""AdamW with its parameter groups, and the learning rate schedule (paper, section 4.1)."""

from typing import Any

import torch
from torch import Tensor, nn

from alpro.stages.training.config import TrainingConfig

NO_DECAY = {"pos_embed", "time_embed", "cls_token", "position_embeddings", "temperature", "token_type_embeddings"}
NO_DECAY |= {"position_embedding"}  # of a CLIP


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, norms, position and time embeddings, temperature.

    The `ratio` of a group is the multiple of the learning rate that it has: `tower_lr_ratio` for the towers of a CLIP.
    """
    decayed: dict[float, list[nn.Parameter]] = {}  # by rate, as a multiple of lr
    not_decayed: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        excluded = any(part in NO_DECAY for part in name.split("."))
        ratio = getattr(config, "tower_lr_ratio", 1.0) if name.startswith("model.clip.") else 1.0
        (not_decayed if parameter.ndim < 2 or excluded else decayed).setdefault(ratio, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "ratio": ratio}
        for kind, decay in ((decayed, config.weight_decay), (not_decayed, 0.0))
        for ratio, parameters in kind.items()
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def step_if(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """Takes a step if `finite`, a boolean tensor, is True, without a device synchronization.

    torch.amp.GradScaler uses the same attribute to make the fused AdamW skip a step.
    """
    optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate of a step from 0 to steps - 1: linear warm-up to lr, then linear decay to min_lr_ratio * lr."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    remaining = (steps - step) / max(1, steps - warmup)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining)
