"""Controls: what a blinder ranker would reach, and what is left when the frames stand in another order."""

import re
from collections import Counter

import numpy as np

from alpro.stages.evaluation.retrieval import Gallery


def reverse(frames: list[int]) -> list[int]:
    """The frames backwards."""
    return frames[::-1]


class Shuffle:
    """The frames in random order, never the true one; seeded, another for each clip."""

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
    """Scores (texts, videos) of a ranker that knows nothing but the true colours of a clip: the overlap of these with
    the colour words of the text. None where the manifest does not tell the colours (column `things`)."""
    seen = []
    for number in gallery.numbers:
        things = gallery.reader[number].about["meta"].get("things")
        if not isinstance(things, list):
            return None
        seen.append(Counter(thing["colour"] for thing in things))
    known = set().union(*seen)
    said = [Counter(word for word in re.findall(r"[a-z]+", text.lower()) if word in known) for text in gallery.texts]
    return np.array([[(a & b).total() / max(1, (a | b).total()) for b in seen] for a in said], np.float32)
