"""Controls: a ranker that sees colours only, and frames in shuffled or reversed order."""

import re
from collections import Counter

import numpy as np

from alpro.stages.evaluation.retrieval import Gallery


def reverse(frames: list[int]) -> list[int]:
    """The frames in reverse order."""
    return frames[::-1]


class Shuffle:
    """Shuffles frames, never to the original order; the seeded order differs from clip to clip."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 31])

    def __call__(self, frames: list[int]) -> list[int]:
        if len(set(frames)) < 2:
            return frames
        while True:
            order = [frames[i] for i in self.rng.permutation(len(frames))]
            if order != frames:
                return order


def colours_only(gallery: Gallery) -> np.ndarray | None:
    """Scores (texts, videos) of a ranker that knows only the true colours of a clip: their overlap with the colour
    words of the text. None if the manifest does not list the colours (column `things`)."""
    colours = []
    for number in gallery.numbers:
        things = gallery.reader[number].about["meta"].get("things")
        if not isinstance(things, list):
            return None
        colours.append(Counter(thing["colour"] for thing in things))
    known = set().union(*colours)
    mentioned = [
        Counter(word for word in re.findall(r"[a-z]+", text.lower()) if word in known) for text in gallery.texts
    ]
    return np.array([[(a & b).total() / max(1, (a | b).total()) for b in colours] for a in mentioned], np.float32)
