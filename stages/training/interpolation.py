"""Weights between those before and after a fine-tuning (WiSE-FT: Wortsman et al., Robust
Fine-tuning of Zero-shot Models, 2022): a small fine-tuning of a CLIP often gains most on the way,
and keeps more of what the CLIP knew."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from alpro.log import log
from alpro.models.ranks import broadcast, rank
from alpro.stages.training.checkpoint import trainable

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the fine-tuning; 0: the weights before it


@torch.no_grad()
def interpolate_(
    model: nn.Module,
    before: dict[str, Tensor],
    validate: Callable[[], dict[str, float]],
    metric: str,
) -> dict[str, float]:
    """Sets the trained weights to the best on validation between those `before` and their present
    values.

    Of equal shares the largest is kept. Every rank calls it; the present weights of rank 0 count.

    Returns:
        The metrics of the chosen weights, `metric` of every share as
        `<metric>/interpolated/<share>`, and the chosen
        share as `interpolation_share`.
    """
    weights = trainable(model)
    # Rank 0 alone has loaded the weights that were the best on validation (`Run.train`).
    broadcast(list(weights.values()))

    after = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}

    def set_share(share: float) -> None:
        for name, weight in weights.items():
            weight.copy_(torch.lerp(before[name].float(), after[name].float(), share))

    results = dict[float, dict[str, float]]()
    for share in SHARES:
        set_share(share)
        results[share] = validate()
    best = max(SHARES, key=lambda share: (results[share][metric], share))
    set_share(best)

    rows = {f"{metric}/interpolated/{share:g}": results[share][metric] for share in SHARES}
    if rank() == 0:
        scores = ", ".join(f"{share:g}: {results[share][metric]:.2f}" for share in SHARES)
        log.info(f"{metric} by share of the fine-tuning in the weights: {scores}; kept {best:g}")
    return results[best] | rows | {"interpolation_share": best}
