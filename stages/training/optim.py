"""AdamW on two groups of parameters, and the learning rate of every step."""

import torch
from torch import Tensor, nn

from alpro.stages.training.config import TrainingConfig

NO_DECAY = ("pos_embed", "time_embed", "cls_token", "position_embeddings", "temperature", "token_type_embeddings")


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, and none on biases, norms, embeddings of place and time, temperature."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place = any(part in NO_DECAY for part in name.split("."))
        (plain if parameter.ndim < 2 or place else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def step_if(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """One step where `finite` (a boolean on the device) is True, else none at all: nothing is read back to decide it.

    This is how torch's own gradient scaler lets the fused AdamW leave out a step.
    """
    optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate of step 0..steps-1: linear warm-up, then linear decay towards min_lr_ratio x lr."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
