"""AdamW and Muon with their parameter groups, and the learning rate schedule (paper, section 4.1)."""

import math
from collections import defaultdict
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from alpro.models.attention import Attention, TransformerLayer
from alpro.models.precision import WIDE, compute_dtype
from alpro.stages.training.config import TrainingConfig

NO_DECAY = {
    "pos_embed",
    "time_embed",
    "cls_token",
    "position_embeddings",
    "temperature",
    "token_type_embeddings",
    "position_embedding",  # a CLIP's name of it
}
NEW_MODULES = {"temporal"}  # modules that are added to a CLIP
BETAS = (0.9, 0.98)
EPS = 1e-6

MOMENTUM = 0.95
ITERATIONS = 5
# Coefficients of the Newton-Schulz iteration (Jordan et al., Muon, 2024).
COEFFICIENTS = 3.4445, -4.7750, 2.0315


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the wrappers for code that torch.compile compiles.

    They import torch._dynamo, which takes more than a second in each process that trains. What is
    compiled here are models, not steps of an optimizer.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(AdamW):
    """AdamW whose last group has matrices that Muon trains: a step along the orthogonalized momentum.

    The step is scaled to the RMS of AdamW's, 0.2, so both share learning rate and weight decay (Liu
    et al., Muon is Scalable for LLM Training, 2025). `qkv` of the group has the number of matrices
    that each matrix stacks.

    torch.optim.Muon lacks `found_inf`, which skips a step without a host-device sync, and stacked
    matrices, and it orthogonalizes one matrix at a time.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's method requires the state `step` of every parameter, which Muon's lack.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        # AdamW trains all groups but the last one.
        group = self.param_groups.pop()
        try:
            super().step(closure)
        finally:
            self.param_groups.append(group)

        # Matrices of one shape are orthogonalized in one batch: pairs of matrix and direction.
        finite = 1.0 - getattr(self, "found_inf", torch.zeros(()))
        by_shape = defaultdict[torch.Size, list[tuple[Tensor, Tensor]]](list)
        for matrix, stacked in zip(group["params"], group["qkv"], strict=True):
            momentum = self.state[matrix].setdefault(
                "momentum", torch.zeros_like(matrix)
            )
            gradient = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
            # A skipped step does not change the momentum. Multiplying by 0 would keep NaN.
            gradient = torch.where(finite > 0, gradient, momentum)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            direction = gradient.lerp(momentum, MOMENTUM)
            direction = direction.view(stacked, -1, matrix.shape[1])
            by_shape[direction.shape[1:]].append((matrix, direction))

        decay = torch.where(finite > 0, 1 - group["lr"] * group["weight_decay"], 1.0)
        for pairs in by_shape.values():
            directions = [direction for _, direction in pairs]
            results = orthogonalize(torch.cat(directions), group["dtype"])
            split = results.split([len(direction) for direction in directions])
            for (matrix, _), result in zip(pairs, split, strict=True):
                update = result.reshape(matrix.shape) * finite
                matrix.mul_(decay).add_(update, alpha=-group["lr"])


OPTIMIZERS = {"adamw": AdamW, "muon": Muon}


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of matrices near 1, and scale to an RMS of about 0.2, by 0.2
    sqrt(max(N, M)).

    Args:
        matrices: (B, N, M).
        dtype: Compute dtype. In bfloat16, as in Jordan et al., the sample takes 6 ms a step instead
            of 17 (AMX).
    """
    a, b, c = COEFFICIENTS
    rows, columns = matrices.shape[1:]
    # Transposed so that the Gram matrix is the smaller of the two.
    x = matrices.mT if rows > columns else matrices
    # The iteration converges for singular values up to 1.
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    # x <- a x + (b G + c G^2) x, with G = x x^T.
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.to(matrices.dtype) * (0.2 * math.sqrt(max(rows, columns)))
    return x.mT if rows > columns else x


def build_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """Build AdamW, or with `optimizer = "muon"` Muon for the matrices of transformer layers.

    Weight decay applies to matrices, and not to biases, norms, position and time embeddings and the
    temperature. Modules that the initial weights lack have an `lr_scale` of their own.
    """
    # Number of stacked matrices by the id of a layer's matrix: queries, keys and values are three.
    stacked: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            stacked |= {
                id(weight): 1 for weight in module.parameters() if weight.ndim == 2
            }
        # Attention comes after the layer that has it.
        if isinstance(module, Attention):
            stacked[id(module.qkv.weight)] = 3

    muon = config.optimizer == "muon"
    matrices: list[nn.Parameter] = []
    # Keys are (is_new, is_undecayed).
    decays = defaultdict[tuple[bool, bool], list[nn.Parameter]](list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue

        if muon and id(parameter) in stacked:
            matrices.append(parameter)
            continue

        names = set(name.split("."))
        is_new = config.new_lr_scale != 1 and bool(names & NEW_MODULES)
        is_undecayed = parameter.ndim < 2 or bool(names & NO_DECAY)
        decays[is_new, is_undecayed].append(parameter)

    groups: list[dict[str, Any]] = []
    for is_new, is_undecayed in sorted(decays):
        group = {
            "params": decays[is_new, is_undecayed],
            "weight_decay": 0.0 if is_undecayed else config.weight_decay,
            "lr_scale": config.new_lr_scale if is_new else 1.0,
        }
        groups.append(group)

    if muon:  # its group is the last one
        group = {
            "params": matrices,
            "weight_decay": config.weight_decay,
            "lr_scale": 1.0,
            "qkv": [stacked[id(matrix)] for matrix in matrices],
            "dtype": compute_dtype(WIDE, matrices[0].device, config.mixed_precision),
        }
        groups.append(group)
    # Only the fused AdamW reads `found_inf`; see `step_if`.
    optimizer = OPTIMIZERS[config.optimizer]
    return optimizer(groups, lr=config.lr, betas=BETAS, eps=EPS, fused=True)


def step_if(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """Take a step if `finite`, a boolean tensor, is True, without a host-device sync.

    torch.amp.GradScaler uses the same attribute to make the fused AdamW skip a step.
    """
    optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Compute the learning rate of a step from 0 to steps - 1: linear warm-up to lr, then linear
    decay to min_lr_ratio * lr."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        # The first rate is above 0: a step with a rate of 0 would train nothing.
        return config.lr * (step + 1) / warmup
    remaining = (steps - step) / max(1, steps - warmup)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining)
