"""Which frames of a clip, and which samples in which order: pure functions of a random generator."""

import numpy as np


def segment_starts(available: int, count: int) -> list[int]:
    """The first of the available frames in each of `count` equal segments; fewer frames than segments repeat.

    >>> segment_starts(8, 4)
    [0, 2, 4, 6]
    >>> segment_starts(3, 4)
    [0, 0, 1, 2]
    """
    return [i * available // count for i in range(count)]


def frames_in_halves(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """Pre-training's sampling: half the frames at random from each half of the clip, in order."""
    if available < count:
        return sorted(int(i) for i in rng.integers(0, available, count))
    middle = (available + count % 2) // 2  # an odd one out is from the first half
    early = rng.choice(middle, count - count // 2, replace=False)
    late = middle + rng.choice(available - middle, count // 2, replace=False)
    return sorted(int(i) for i in (*early, *late))


def frames_at_random(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """Fine-tuning's sampling: frames at random, in order; with repeats only where there are too few."""
    return sorted(int(i) for i in rng.choice(available, count, replace=available < count))


def grouped_order(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the examples in which those of one group stand together.

    groups (N,): the group of each example. Members of a batch's groups are then each other's negatives in the
    contrastive and matching losses: clips of one source are the hardest there are.
    """
    names, group = np.unique(groups, return_inverse=True)
    place = rng.permutation(len(names))[group]
    return np.lexsort((rng.random(len(groups)), place))
