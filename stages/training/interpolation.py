"""Interpolation between the weights before and after a fine-tuning (WiSE-FT: Wortsman et al., Robust
Fine-tuning of Zero-shot Models, 2022). After a small fine-tuning of a CLIP, weights in between often
score best, and keep more of what the CLIP knew."""

from collections.abc import Callable

import torch
from torch import nn

from alpro.models.ranks import broadcast
from alpro.stages.execution.interface import Metrics
from alpro.stages.training.checkpoint import Weights, copy_trainable, trainable

# 0: the weights before fine-tuning, 1: those after it.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def interpolate_(
    model: nn.Module,
    before: Weights,
    validate: Callable[[], Metrics],
    metric: str,
) -> Metrics:
    """Set the trained weights to the interpolation that is the best on validation. Among equally
    good ones, the largest share is chosen. Every rank calls this function.

    Args:
        before: The weights before fine-tuning.
        validate: Returns the metrics of the model's current weights.
        metric: The metric that decides; higher is better.

    Returns:
        The metrics of the chosen weights, `metric` of every share as
        `<metric>/interpolated/<share>`, and the chosen share as `interpolation_share`.
    """
    weights = trainable(model)
    # Only rank 0 has loaded the weights that were the best on validation (`Trainer.train`).
    broadcast(list(weights.values()))

    after = copy_trainable(model)

    def set_share(share: float) -> None:
        for name, weight in weights.items():
            weight.copy_(torch.lerp(before[name].float(), after[name].float(), share))

    results = dict[float, Metrics]()
    for share in SHARES:
        set_share(share)
        results[share] = validate()
    best = max(SHARES, key=lambda share: (results[share][metric], share))
    set_share(best)

    rows = {
        f"{metric}/interpolated/{share:g}": results[share][metric] for share in SHARES
    }
    return results[best] | rows | {"interpolation_share": best}
