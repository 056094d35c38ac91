"""Scores as pure functions: ranks with ties, recalls, accuracies, and what chance would reach."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """For each query: the wrong items that score better than its best right one, and the wrong and the right items
    that score the same as it."""

    better: np.ndarray  # (Q,)
    tied_wrong: np.ndarray  # (Q,)
    tied_right: np.ndarray  # (Q,) at least 1
    gallery: int

    def recall(self, k: int) -> np.ndarray:
        """(Q,) the probability that a right item is among the first k, tied items standing in random order."""
        slots = np.clip(k - self.better, 0, None)  # places left for the tied items
        missed = np.ones(len(slots))
        for place in range(int(slots.max(initial=0))):
            wrong = np.clip(self.tied_wrong - place, 0, None)
            left = np.maximum(self.tied_wrong + self.tied_right - place, 1)
            missed = np.where(place < slots, missed * wrong / left, missed)
        return 1 - missed

    @property
    def rank(self) -> np.ndarray:
        """(Q,) the expected rank of the best right item, from 1; with one right item ties count as half."""
        return self.better + (self.tied_wrong + self.tied_right + 1) / (self.tied_right + 1)


def rank(scores: np.ndarray, relevant: np.ndarray) -> Ranks:
    """Ranks of queries in a gallery. scores (Q, G); relevant (Q, G) boolean, at least one right item a query.

    A query with several right items is ranked by the best of them. A score that is not a number is the worst.

    >>> rank(np.array([[0.9, 0.1, 0.9]]), np.array([[True, False, False]])).rank
    array([1.5])
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    better = ((scores > best) & ~relevant).sum(axis=1)
    return Ranks(better, (tied & ~relevant).sum(axis=1), (tied & relevant).sum(axis=1), scores.shape[1])


def retrieval_metrics(scores: np.ndarray, video_of_text: np.ndarray) -> tuple[dict[str, float], Ranks, Ranks]:
    """Recall at 1, 5, 10 (per cent), median and mean rank, in both directions.

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
    """What random scores reach, under the names of `retrieval_metrics`: mean recalls, the median of the rank."""
    texts_of_video = np.bincount(video_of_text, minlength=videos)
    right = {"t2v": np.ones(len(video_of_text), np.int64), "v2t": texts_of_video[texts_of_video > 0]}
    galleries = {"t2v": videos, "v2t": len(video_of_text)}
    found: dict[str, float] = {}
    for way, counts in right.items():
        reached = chance_recalls(counts, galleries[way])
        half = [int(np.argmax(reached >= 0.5 - 1e-9)), int(np.argmax(reached > 0.5 + 1e-9))]
        found |= {f"{way}/R{k}": float(reached[min(k, len(reached)) - 1] * 100) for k in (1, 5, 10)}
        found[f"{way}/MdR"] = 1 + sum(half) / 2
    return found


def chance_recalls(right: np.ndarray, gallery: int) -> np.ndarray:
    """(G,) the mean recall at 1..G of random ranks; right (Q,): how many right items each query has among G.

    None of c right items is among the first k with probability (G - c)/G x (G - c - 1)/(G - 1) x ..., k factors.
    """
    drawn = np.arange(gallery)
    recalls = np.zeros(gallery)
    for count, queries in zip(*np.unique(right, return_counts=True), strict=True):
        missed = np.cumprod(np.clip(gallery - count - drawn, 0, None) / (gallery - drawn))
        recalls += queries * (1 - missed)
    return recalls / len(right)


def accuracy_by_type(right: np.ndarray, types: list[str]) -> dict[str, float]:
    """Per cent right: overall under "acc", and for each type under "acc_<type>"."""
    by_type: dict[str, list[bool]] = defaultdict(list)
    for value, kind in zip(right, types, strict=True):
        by_type[kind].append(bool(value))
    return {"acc": float(np.mean(right) * 100)} | {
        f"acc_{k}": float(np.mean(v) * 100) for k, v in sorted(by_type.items())
    }


def majority_baseline(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> np.ndarray:
    """Which test questions the most frequent training answer of their type gets right. Both lists: (type, answer)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for kind, answer in train:
        counts[kind][answer] += 1
        overall[answer] += 1

    def guess(kind: str) -> str:
        ranked = counts[kind] or overall
        return min(ranked, key=lambda answer: (-ranked[answer], answer)) if ranked else ""

    return np.array([guess(kind) == answer for kind, answer in test])
