"""AdamW with its parameter groups, and the learning rate schedule (paper, section 4.1)."""

import torch
from torch import Tensor, nn

from alpro.stages.training.config import TrainingConfig

NO_DECAY = {"pos_embed", "time_embed", "cls_token", "position_embeddings", "temperature", "token_type_embeddings"}
NO_DECAY |= {"position_embedding"}  # of a CLIP
BETAS, EPS = (0.9, 0.98), 1e-6


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, norms, position and time embeddings, temperature."""
    decayed, not_decayed = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            excluded = parameter.ndim < 2 or any(part in NO_DECAY for part in name.split("."))
            (not_decayed if excluded else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS, fused=True)


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
