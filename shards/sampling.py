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


def frames_between(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """The frames that a window of seconds holds, as a range of indices: from the frame nearest to `start` up to, and
    without, the one nearest to `end`. So the first is within half a frame of the time asked, however unequal the
    frames, and windows that follow each other share no frame and lose none.

    times (N,): when each frame begins, seconds, ascending. A window shorter than a frame has the one nearest to its
    start; one that begins half a frame or more after the last frame, or ends before it begins, is empty.

    >>> frames_between(np.array([0.0, 0.1, 0.2, 0.3]), 0.06, 0.3)
    (1, 3)
    """
    # From where on each frame is the nearest; behind the last lies one that would be the next.
    nearest = np.concatenate([times[:1], (times[1:] + times[:-1]) / 2, times[-1:] + last_step(times) / 2])
    first = 0 if start is None else max(int(np.searchsorted(nearest, start + 1e-6, side="right")) - 1, 0)
    last = len(times) if end is None else max(int(np.searchsorted(nearest, end + 1e-6, side="right")) - 1, 0)
    if first >= len(times) or (start is not None and end is not None and end <= start):
        return first, first
    return first, max(min(last, len(times)), first + 1)


def last_step(times: np.ndarray) -> float:
    """How long the last frame is taken to stay, seconds: as the median of the 16 before it; one frame alone, a second.

    A few frames, and not all of them, so that a segment's end does not depend on how much of the file was read.
    """
    return float(np.median(np.diff(times[-17:]))) if len(times) > 1 else 1.0


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
