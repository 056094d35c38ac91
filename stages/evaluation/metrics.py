"""Metrics as pure functions: ranks with ties, recall, accuracy, and chance levels."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """For each query: the number of wrong items with a higher score than its best right item, and of the wrong and
    right items with an equal score."""

    better: np.ndarray  # (Q,)
    tied_wrong: np.ndarray  # (Q,)
    tied_right: np.ndarray  # (Q,) at least 1
    gallery: int

    def recall(self, k: int) -> np.ndarray:
        """Recall at k (Q,): the probability that a right item is among the first k, with ties in random order."""
        slots = np.clip(k - self.better, 0, None)  # places for the tied items
        missed = np.ones(len(slots))
        for place in range(int(slots.max(initial=0))):
            wrong = np.clip(self.tied_wrong - place, 0, None)
            remaining = np.maximum(self.tied_wrong + self.tied_right - place, 1)
            missed = np.where(place < slots, missed * wrong / remaining, missed)
        return 1 - missed

    @property
    def rank(self) -> np.ndarray:
        """Expected rank (Q,) of the best right item, from 1; with one right item a tie counts as half."""
        return self.better + (self.tied_wrong + self.tied_right + 1) / (self.tied_right + 1)


def rank(scores: np.ndarray, relevant: np.ndarray) -> Ranks:
    """Ranks of queries in a gallery. scores (Q, G); relevant (Q, G) boolean, at least one right item per query.

    A query with several right items is ranked by the best of them. NaN is the lowest score.

    >>> rank(np.array([[0.9, 0.1, 0.9]]), np.array([[True, False, False]])).rank
    array([1.5])
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    better = ((scores > best) & ~relevant).sum(axis=1)
    return Ranks(better, (tied & ~relevant).sum(axis=1), (tied & relevant).sum(axis=1), scores.shape[1])


def retrieval_metrics(scores: np.ndarray, video_of_text: np.ndarray) -> tuple[dict[str, float], Ranks, Ranks]:
    """Recall at 1, 5 and 10 (%), median and mean rank, in both directions (paper, section 4.1).

    scores (texts, videos), higher is better; video_of_text (texts,): the column of each text's own video. Returns
    metrics named t2v/R1, ..., v2t/MdR, and the ranks of texts and of videos.
    """
    relevant = video_of_text[:, None] == np.arange(scores.shape[1])[None]
    with_text = relevant.any(axis=0)
    t2v, v2t = rank(scores, relevant), rank(scores.T[with_text], relevant.T[with_text])
    metrics = {}
    for name, ranks in (("t2v", t2v), ("v2t", v2t)):
        for k in (1, 5, 10):
            metrics[f"{name}/R{k}"] = float(ranks.recall(k).mean() * 100)
        metrics[f"{name}/MdR"] = float(np.median(ranks.rank))
        metrics[f"{name}/MnR"] = float(ranks.rank.mean())
    return metrics, t2v, v2t


def chance_metrics(video_of_text: np.ndarray, videos: int) -> dict[str, float]:
    """Chance level of `retrieval_metrics`: mean recalls and the median rank of random scores."""
    texts_of_video = np.bincount(video_of_text, minlength=videos)
    right = {"t2v": np.ones(len(video_of_text), np.int64), "v2t": texts_of_video[texts_of_video > 0]}
    galleries = {"t2v": videos, "v2t": len(video_of_text)}
    metrics: dict[str, float] = {}
    for way, counts in right.items():
        recalls = chance_recalls(counts, galleries[way])
        half = [int(np.argmax(recalls >= 0.5 - 1e-9)), int(np.argmax(recalls > 0.5 + 1e-9))]
        metrics |= {f"{way}/R{k}": float(recalls[min(k, len(recalls)) - 1] * 100) for k in (1, 5, 10)}
        metrics[f"{way}/MdR"] = 1 + sum(half) / 2
    return metrics


def chance_recalls(right: np.ndarray, gallery: int) -> np.ndarray:
    """Mean recall (G,) at 1..G of random ranks; right (Q,): the number of right items of each query among G.

    None of c right items is among the first k with probability (G - c)/G x (G - c - 1)/(G - 1) x ..., k factors.
    """
    drawn = np.arange(gallery)
    recalls = np.zeros(gallery)
    for count, queries in zip(*np.unique(right, return_counts=True), strict=True):
        missed = np.cumprod(np.clip(gallery - count - drawn, 0, None) / (gallery - drawn))
        recalls += queries * (1 - missed)
    return recalls / len(right)


def accuracy_by_type(right: np.ndarray, types: list[str]) -> dict[str, float]:
    """Accuracy (%) of right (Q,): overall as "acc", and of each type as "acc_<type>"."""
    by_type: dict[str, list[bool]] = defaultdict(list)
    for value, kind in zip(right, types, strict=True):
        by_type[kind].append(bool(value))
    return {"acc": float(np.mean(right) * 100)} | {
        f"acc_{k}": float(np.mean(v) * 100) for k, v in sorted(by_type.items())
    }


def majority_baseline(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> np.ndarray:
    """Whether the most frequent training answer of its type answers each test question. Both lists: (type, answer)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for kind, answer in train:
        counts[kind][answer] += 1
        overall[answer] += 1

    def guess(kind: str) -> str:
        ranked = counts[kind] or overall
        return min(ranked, key=lambda answer: (-ranked[answer], answer)) if ranked else ""

    return np.array([guess(kind) == answer for kind, answer in test])
