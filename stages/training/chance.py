"""Losses that ended where a model that has learned nothing has them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from alpro.stages.training.config import TrainingConfig

SHARE = 0.98  # of the level, from which on a loss counts as being there
WINDOW = 3  # the last values that are averaged


def chance_levels(config: TrainingConfig, answers: int) -> dict[str, float]:
    """The loss of a model that gives every pair, and every answer, the same probability, by the name of the loss.

    VTC: ln of the pairs that are contrasted. VTM: the entropy of one pair that matches and two that do not. QA: ln of
    the number of answers.
    """
    pairs = config.batch_size if config.contrasts_whole_batch else config.batch_size // config.accumulation_steps
    matching = math.log(3) - 2 / 3 * math.log(2)
    return {"vtc": math.log(pairs), "vtm": matching, "qa": math.log(max(answers, 1))}


def losses_at_chance(lines: Sequence[dict[str, Any]], config: TrainingConfig, answers: int) -> Iterator[str]:
    """A warning for each loss whose last values, of the lines of metrics.jsonl, are not below its level."""
    for name, level in chance_levels(config, answers).items():
        values = [line[f"train/loss_{name}"] for line in lines if f"train/loss_{name}" in line][-WINDOW:]
        if values and level and sum(values) / len(values) >= SHARE * level:
            yield (
                f"loss_{name} ended at {sum(values) / len(values):.3f}; a model that has learned nothing has "
                f"{level:.3f}: train for more steps, or change lr or the batch size"
            )
