"""Contrast over the whole batch of a step that is computed in micro-batches (GradCache, Gao et al., 2021).

A first pass encodes every micro-batch without gradient and keeps its features only. VTC of all of them, over all ranks,
and its gradient with respect to the features follow. The second pass, an ordinary accumulated step, encodes each
micro-batch again, from the same random numbers, and continues the gradient of its features into the encoders. The step
computes what it would compute in one piece, up to rounding and the draws of dropout and stochastic depth. It needs the
memory of a micro-batch, and the time of a second forward pass of the encoders: 1.3 times that of micro-batches alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alpro.stages.training.batch import Batch
from alpro.stages.training.objective import Objective, WholeBatch

MicroBatch = tuple[Batch, Callable[[], AbstractContextManager]]


def contrast_whole_batch(
    objective: Objective, parts: list[Batch], autocast: Callable[[], AbstractContextManager], key: tuple[int, ...]
) -> list[MicroBatch]:
    """The first pass over the micro-batches `parts` of this rank; all ranks call it.

    Returns for each the batch, with pseudo-labels, and the context in which its loss is computed: the mean of these
    losses is the loss of the whole batch. key: seeds the random numbers of the micro-batches, different in every step
    and on every rank.
    """
    seeds = [int(seed) for seed in np.random.SeedSequence(key).generate_state(len(parts))]
    labeled, features, counts = list[Batch](), list[tuple[Tensor, Tensor]](), list[dict[str, Tensor]]()
    for part, seed in zip(parts, seeds, strict=True):
        with torch.no_grad(), autocast():
            labeled.append(objective.labeled(part, objective.pixels(part.frames)))
            with random_numbers(seed, part.video.device):
                features.append(objective.features(part))
        counts.append(objective.counts(labeled[-1]))
    wholes = whole_batch(objective, parts, features, counts)
    contexts = [partial(part_of, objective, whole, seed) for whole, seed in zip(wholes, seeds, strict=True)]
    return list(zip(labeled, contexts, strict=True))


def whole_batch(
    objective: Objective, parts: list[Batch], features: list[tuple[Tensor, Tensor]], counts: list[dict[str, Tensor]]
) -> list[WholeBatch]:
    """VTC over all micro-batches and ranks, and what each micro-batch has to know of it.

    features: embeddings (b, E) of the videos and texts of each micro-batch, without gradient. counts: of each, see
    `Objective.counts`.
    """
    video, text = (torch.cat(rows).requires_grad_() for rows in zip(*features, strict=True))
    numbers = torch.cat([part.video for part in parts])
    loss, _, _, metrics = objective.contrast_features(numbers, video, text)
    gradients = torch.autograd.grad(loss, [video, text, objective.model.temperature_parameter])
    # As each micro-batch is divided by its own count, that is the mean count of the whole batch.
    sums = {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}
    means = {name: objective.total(name, count) / len(parts) for name, count in sums.items()}
    rows = zip(*(gradient.split(len(parts[0].ids)) for gradient in gradients[:2]), strict=True)
    return [WholeBatch(loss.detach(), metrics, v, t, gradients[2], means, len(parts)) for v, t in rows]


@contextmanager
def part_of(objective: Objective, whole: WholeBatch, seed: int) -> Iterator[None]:
    """The objective computes a micro-batch of a whole batch, from the random numbers of the first pass."""
    objective.whole = whole
    try:
        with random_numbers(seed, whole.video.device):
            yield
    finally:
        objective.whole = None


@contextmanager
def random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the generators of the CPU and the device; their states are restored afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
