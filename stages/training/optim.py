"""AdamW or Muon with their parameter groups, and the learning rate schedule (paper, section 4.1)."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alpro.models.attention import Attention
from alpro.models.precision import WIDE, precision
from alpro.models.ranks import all_reduce_, belongs_to_this_rank
from alpro.models.text import Layer
from alpro.models.timesformer import Block
from alpro.stages.training.config import TrainingConfig

NO_DECAY = {
    "pos_embed",
    "time_embed",
    "cls_token",
    "position_embeddings",
    "temperature",
    "token_type_embeddings",
}
NO_DECAY |= {"position_embedding"}  # of a CLIP
NEW = {"temporal"}  # modules that a CLIP gets beside its own weights
BETAS, EPS = (0.9, 0.98), 1e-6

MOMENTUM, ITERATIONS = 0.95, 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the Newton-Schulz iteration (Jordan et al., Muon, 2024)


class Muon(torch.optim.AdamW):
    """AdamW whose group with `qkv` has matrices that are trained by Muon: a step along the orthogonalized momentum.

    The step is scaled to the RMS of one of AdamW, 0.2, so that both share learning rate and weight decay (Liu et al.,
    Muon is Scalable for LLM Training, 2025). qkv: for each matrix, the number of matrices that it stacks. Ranks divide
    the matrices among themselves; which rank computes one does not change it. torch.optim.Muon knows no `found_inf`,
    which skips a step without a device synchronization, and no stacked matrices, and takes one matrix at a time.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(
            self, state
        )  # AdamW's asks for a number of steps of every parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        group = self.param_groups.pop()
        try:
            super().step(closure)
        finally:
            self.param_groups.append(group)
        matrices = group["params"]
        finite = 1.0 - getattr(self, "found_inf", torch.zeros(()))
        merged = matrices[0].new_zeros(sum(matrix.numel() for matrix in matrices))
        updates = merged.split([matrix.numel() for matrix in matrices])
        alike = defaultdict[torch.Size, list[tuple[Tensor, Tensor]]](list)  # update, direction
        for number, (matrix, parts) in enumerate(zip(matrices, group["qkv"], strict=True)):
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            gradient = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
            gradient = torch.where(
                finite > 0, gradient, momentum
            )  # a product with 0 would keep what is not finite
            momentum.lerp_(gradient, 1 - MOMENTUM)
            if belongs_to_this_rank(number):
                direction = gradient.lerp(momentum, MOMENTUM).view(parts, -1, matrix.shape[1])
                alike[direction.shape[1:]].append((updates[number], direction))
        for pairs in alike.values():
            results = orthogonalized(
                torch.cat([direction for _, direction in pairs]), group["dtype"]
            )
            for (update, _), result in zip(
                pairs, results.split([len(d) for _, d in pairs]), strict=True
            ):
                torch.mul(result.reshape(-1), finite, out=update)
        all_reduce_(merged)
        decay = torch.where(finite > 0, 1 - group["lr"] * group["weight_decay"], 1.0)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(decay).add_(update.view_as(matrix), alpha=-group["lr"])


def orthogonalized(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (B, N, M) with all singular values near 1, times 0.2 sqrt(max(N, M)): RMS of about 0.2. dtype: of the
    products; in bfloat16, as in Jordan et al., the sample's take 6 ms a step instead of 17 (AMX)."""
    a, b, c = COEFFICIENTS
    rows, columns = matrices.shape[1:]
    x = matrices.mT if rows > columns else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype) * (0.2 * math.sqrt(max(rows, columns)))
    return x.mT if rows > columns else x


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, or with `optimizer = "muon"` Muon for the matrices of transformer layers.

    Weight decay is on matrices only: not on biases, norms, position and time embeddings, temperature. Modules that are
    new beside the initial weights have groups with an `lr_scale`.
    """
    layers = [m for m in model.modules() if isinstance(m, Block | Layer)]
    hidden = {id(p): 1 for m in layers for p in m.parameters() if p.ndim == 2}
    hidden |= {id(m.qkv.weight): 3 for m in model.modules() if isinstance(m, Attention)}
    muon = config.optimizer == "muon"
    matrices = list[nn.Parameter]()
    decays = defaultdict[tuple[bool, bool], list[nn.Parameter]](list)  # by new, decayed
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if muon and id(parameter) in hidden:
            matrices.append(parameter)
            continue
        parts = set(name.split("."))
        is_new = config.new_lr_scale != 1 and bool(parts & NEW)
        decays[is_new, parameter.ndim >= 2 and not parts & NO_DECAY].append(parameter)

    groups: list[dict[str, Any]] = [
        {"params": decays[False, True], "weight_decay": config.weight_decay},
        {"params": decays[False, False], "weight_decay": 0.0},
    ]
    for decayed in (True, False):
        if decays[True, decayed]:
            decay = config.weight_decay if decayed else 0.0
            group = {"params": decays[True, decayed], "weight_decay": decay}
            groups.append({**group, "lr_scale": config.new_lr_scale})

    settings: dict[str, Any] = {"lr": config.lr, "betas": BETAS, "eps": EPS, "fused": True}
    if not muon:
        return torch.optim.AdamW(groups, **settings)
    stacked, dtype = (
        [hidden[id(p)] for p in matrices],
        precision(WIDE, matrices[0].device, config.mixed_precision),
    )
    trained = {
        "params": matrices,
        "weight_decay": config.weight_decay,
        "qkv": stacked,
        "dtype": dtype,
    }
    return Muon([*groups, trained], **settings)


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
