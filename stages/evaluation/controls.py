"""Controls: a ranker that knows only some words of a video, and frames in shuffled or reversed order."""

from collections import Counter

import numpy as np

from alpro.stages.evaluation.columns import video_words, words_of
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


def words_only(gallery: Gallery, path: str) -> np.ndarray:
    """Scores (texts, videos) of a ranker that knows only the words of a video at a path into the manifest's columns:
    their overlap with those words that the text mentions. Raises InputError as `video_words`."""
    shown = [Counter(words) for words in video_words(gallery, path)]
    known: set[str] = set().union(*shown)
    mentioned = [Counter(word for word in words_of(text) if word in known) for text in gallery.texts]
    return np.array([[(a & b).total() / max(1, (a | b).total()) for b in shown] for a in mentioned], np.float32)
