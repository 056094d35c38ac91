"""Samples frames of a clip and orders examples: pure functions of a random generator."""

import numpy as np


def segment_starts(available: int, count: int) -> list[int]:
    """Return the first of the available frames in each of `count` equal segments. With fewer frames
    than segments, frames repeat.

    >>> segment_starts(8, 4)
    [0, 2, 4, 6]
    >>> segment_starts(3, 4)
    [0, 0, 1, 2]
    """
    return [i * available // count for i in range(count)]


def frames_between(
    times: np.ndarray, start: float | None, end: float | None
) -> tuple[int, int]:
    """Return the frames of a window of seconds as a range of indices: from the frame nearest to
    `start` up to, but excluding, the frame nearest to `end`.

    The first is within half a frame of `start`, even with a variable frame rate, and consecutive
    windows neither share nor lose a frame. A window shorter than a frame has the frame nearest to
    its start. A window that starts half a frame or more after the last frame, or ends before it
    starts, is empty.

    Args:
        times: Start of each frame (N,), seconds, ascending.

    >>> frames_between(np.array([0.0, 0.1, 0.2, 0.3]), 0.06, 0.3)
    (1, 3)
    """
    # The time from which each frame is the nearest; the last entry stands for the frame after the
    # last.
    middles = (times[1:] + times[:-1]) / 2
    after_last = times[-1:] + last_frame_seconds(times) / 2
    nearest_from = np.concatenate([times[:1], middles, after_last])

    def nearest(seconds: float) -> int:
        # Shifted by a microsecond, so that a rounded time still selects its own frame.
        frames_until = np.searchsorted(nearest_from, seconds + 1e-6, side="right")
        return max(int(frames_until) - 1, 0)

    begin = 0.0 if start is None else start
    stop = np.inf if end is None else end
    first = nearest(begin)
    if first == len(times) or stop <= begin:
        return first, first
    # A window shorter than a frame has one frame.
    return first, max(nearest(stop), first + 1)


def last_frame_seconds(times: np.ndarray) -> float:
    """Estimate the duration of the last frame, seconds: the median of the 16 before it; 1 for a
    single frame.

    Few frames are used, so that a segment's end does not depend on how much of the file is read.
    """
    if len(times) < 2:
        return 1.0
    durations = np.diff(times[-17:])
    return float(np.median(durations))


def frames_in_halves(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """Sample frames for pre-training: at random, half of them from each half of the clip, in
    order."""
    if available < count or count == 1:  # one frame is from either half
        drawn = rng.integers(0, available, count)
        return sorted(drawn.tolist())

    late_count = count // 2
    early_count = count - late_count
    # If odd, the extra frame is from the first half.
    middle = (available + count % 2) // 2
    early = rng.choice(middle, early_count, replace=False)
    late = middle + rng.choice(available - middle, late_count, replace=False)
    return [*sorted(early.tolist()), *sorted(late.tolist())]


def frames_at_random(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """Sample frames for fine-tuning: at random, in order. Frames repeat only if there are too
    few."""
    has_too_few = available < count
    drawn = rng.choice(available, count, replace=has_too_few)
    return sorted(drawn.tolist())


def grouped_order(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of the examples in which the examples of a group are adjacent.

    Examples of a group in a batch are then each other's negatives in the contrastive and matching
    losses: clips of the same source are the hardest negatives.

    Args:
        groups: The group of each example (N,).
    """
    names, group_index = np.unique(groups, return_inverse=True)
    ranks = rng.permutation(len(names))
    rank_of_group = ranks[group_index]

    # Sorts by the rank of the group, and randomly within it: lexsort's last key counts first.
    random_key = rng.random(len(groups))
    return np.lexsort((random_key, rank_of_group))
