"""The videos of a split with their captions or questions, and which videos are right for a text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.metrics import CAPTIONS, Queries


@dataclass(frozen=True)
class Labels:
    """The videos (V) of a gallery by their ids, texts (N), and which videos are right for each text."""

    ids: list[str]
    texts: list[str]
    relevant: np.ndarray  # (N, V) boolean

    def queries(self, direction: str) -> Queries:
        """The queries of a direction: the texts, or the videos that have any, identified by all their texts."""
        ids, texts = np.array(self.ids, object), np.array(self.texts, object)
        if direction == "t2v":
            return Queries(ids[self.relevant.argmax(1)], texts)
        own = self.relevant.any(0)
        return Queries.of(
            ids[own].tolist(), [CAPTIONS.join(texts[right]) for right in self.relevant.T[own]]
        )


@dataclass(frozen=True)
class Gallery:
    """The videos of a split that have captions, and the captions."""

    reader: ShardReader
    numbers: list[int]  # sample indices of the videos
    ids: list[str]
    items: list[Any]  # the captions
    video_of_text: np.ndarray  # (texts,) index of each text's video in `numbers`, ascending
    column: ClassVar[str] = "captions"

    @classmethod
    def of(cls, folder: Path, split: str, exclude: Collection[str] = ()) -> Self:
        """Reads a split. exclude: ids of videos to skip."""
        reader = ShardReader(folder, split, exclude=exclude)
        ids, items = (reader.column(name).to_pylist() for name in ("id", cls.column))
        numbers = [n for n, some in enumerate(items) if some]
        video = np.repeat(np.arange(len(numbers)), np.array([len(items[n]) for n in numbers], int))
        return cls(
            reader,
            numbers,
            [ids[n] for n in numbers],
            [item for n in numbers for item in items[n]],
            video,
        )

    @cached_property
    def texts(self) -> list[str]:
        return self.items

    @property
    def video_ids(self) -> list[str]:
        """The id of each text's video."""
        return [self.ids[video] for video in self.video_of_text]

    @cached_property
    def labels(self) -> Labels:
        """Each text is right for its own video alone."""
        return Labels(self.ids, self.texts, self.video_of_text[:, None] == np.arange(len(self.ids)))

    def first(self, videos: int, texts: int = 0) -> Self:
        """The first `videos` videos with the first `texts` texts of each; 0: all."""
        return self.between(0, videos or len(self.ids), texts)

    def between(self, start: int, stop: int, texts: int = 0) -> Self:
        """The videos [start, stop) with the first `texts` texts of each; 0: all."""
        video, some = self.video_of_text, slice(start, stop)
        place = np.arange(len(video)) - np.searchsorted(
            video, video
        )  # of a text among those of its video
        kept = np.flatnonzero((video >= start) & (video < stop) & (place < (texts or len(video))))
        items, video = [self.items[i] for i in kept], video[kept] - start
        return replace(
            self, numbers=self.numbers[some], ids=self.ids[some], items=items, video_of_text=video
        )


class Questions(Gallery):
    """The videos of a split that have questions, and the questions, each a dict with `question`, `answer`, `type`."""

    column = "questions"

    @cached_property
    def texts(self) -> list[str]:
        return [question["question"] for question in self.items]


def extremes(gallery: Gallery, scores: np.ndarray, each: int = 4) -> list[int]:
    """The texts with the best and with the worst ranks of their videos. scores: (texts, videos)."""
    by_rank = ranks(gallery, scores).argsort(kind="stable").tolist()
    return [*by_rank[:each], *by_rank[-each:]]


def ranks(gallery: Gallery, scores: np.ndarray) -> np.ndarray:
    """The rank (texts,) of each text's video, from 0."""
    own = scores[np.arange(len(scores)), gallery.video_of_text]
    return (scores > own[:, None]).sum(1)


def draw_searches(gallery: Gallery, scores: np.ndarray, texts: Sequence[int], file: Path) -> None:
    """Draws the four best videos of some texts. scores: (texts, videos)."""
    better, queries = ranks(gallery, scores), []
    for text in texts:
        right = int(gallery.video_of_text[text])
        note = f"its video, {gallery.ids[right]}, came {better[text] + 1} of {scores.shape[1]}"
        best = scores[text].argsort()[::-1][:4]
        found = [(middle_frame(gallery, v), gallery.ids[v], bool(v == right)) for v in best]
        queries.append((gallery.texts[text], note, found))
    file.parent.mkdir(exist_ok=True)
    retrieval_picture(queries).save(file)


def middle_frame(gallery: Gallery, video: int) -> np.ndarray:
    """The first frame (H, W, 3) of the second of three equal segments of a video of a gallery."""
    sample = gallery.reader[gallery.numbers[video]]
    return sample.frames([len(sample) // 3])[0]
