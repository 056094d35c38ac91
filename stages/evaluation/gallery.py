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
    """The videos (V) of a gallery by their ids, texts (N), and which videos are right for each
    text."""

    ids: list[str]
    texts: list[str]
    relevant: np.ndarray  # (N, V) boolean

    def queries(self, direction: str) -> Queries:
        """The queries of a direction: the texts, or the videos that have any, identified by all
        their texts."""
        ids = np.array(self.ids, object)
        texts = np.array(self.texts, object)
        if direction == "t2v":
            # A text belongs to its first right video: intervals resample videos.
            return Queries(ids[self.relevant.argmax(1)], texts)

        has_text = self.relevant.any(0)
        captions = [CAPTIONS.join(texts[right]) for right in self.relevant.T[has_text]]
        return Queries.of(ids[has_text].tolist(), captions)


@dataclass(frozen=True)
class Gallery:
    """The videos of a split that have captions, and the captions."""

    reader: ShardReader
    sample_indices: list[int]  # of the videos, in `reader`
    ids: list[str]  # of the videos
    items: list[Any]  # the captions
    video_of_text: np.ndarray  # (texts,) index of each text's video in `ids`, ascending
    column: ClassVar[str] = "captions"

    @classmethod
    def of(cls, folder: Path, split: str, exclude: Collection[str] = ()) -> Self:
        """Reads a split. exclude: ids of videos to skip."""
        reader = ShardReader(folder, split, exclude=exclude)
        ids = reader.column("id").to_pylist()
        items_of_samples = reader.column(cls.column).to_pylist()

        sample_indices: list[int] = []
        items = []
        video_of_text = []
        for i, of_sample in enumerate(items_of_samples):
            if of_sample:
                video_of_text += [len(sample_indices)] * len(of_sample)
                sample_indices.append(i)
                items += of_sample
        return cls(
            reader,
            sample_indices=sample_indices,
            ids=[ids[i] for i in sample_indices],
            items=items,
            video_of_text=np.array(video_of_text, int),
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
        video = self.video_of_text
        # The first text of a video, by a binary search: `video` ascends.
        first_text = np.searchsorted(video, video)  # of the same video
        position = np.arange(len(video)) - first_text
        is_kept = (video >= start) & (video < stop) & (position < (texts or len(video)))
        kept = np.flatnonzero(is_kept)

        return replace(
            self,
            sample_indices=self.sample_indices[start:stop],
            ids=self.ids[start:stop],
            items=[self.items[i] for i in kept],
            video_of_text=video[kept] - start,
        )


class Questions(Gallery):
    """The videos of a split that have questions, and the questions, each a dict with `question`,
    `answer`, `type`."""

    column = "questions"

    @cached_property
    def texts(self) -> list[str]:
        return [question["question"] for question in self.items]


def extremes(gallery: Gallery, scores: np.ndarray, each: int = 4) -> list[int]:
    """The texts with the best and with the worst ranks of their videos. scores: (texts, videos)."""
    # Stable: of equal ranks, the same texts are drawn each time.
    by_rank = ranks(gallery, scores).argsort(kind="stable").tolist()
    return [*by_rank[:each], *by_rank[-each:]]


def ranks(gallery: Gallery, scores: np.ndarray) -> np.ndarray:
    """The rank (texts,) of each text's video, from 0."""
    right = scores[np.arange(len(scores)), gallery.video_of_text]
    # For pictures, where a tie counts for the text's own video.
    return (scores > right[:, None]).sum(1)


def draw_searches(gallery: Gallery, scores: np.ndarray, texts: Sequence[int], file: Path) -> None:
    """Draws the four best videos of texts, which are indices. scores: (texts, videos)."""
    rank_of_text = ranks(gallery, scores)
    queries = []
    for text in texts:
        right = int(gallery.video_of_text[text])
        rank = rank_of_text[text] + 1
        note = f"its video, {gallery.ids[right]}, came {rank} of {scores.shape[1]}"
        results = []
        for video in scores[text].argsort()[::-1][:4]:
            frame = middle_frame(gallery, video)
            results.append((frame, gallery.ids[video], bool(video == right)))
        queries.append((gallery.texts[text], note, results))

    file.parent.mkdir(exist_ok=True)
    retrieval_picture(queries).save(file)


def middle_frame(gallery: Gallery, video: int) -> np.ndarray:
    """The first frame (H, W, 3) of the second of three equal segments of a video of a gallery."""
    sample = gallery.reader[gallery.sample_indices[video]]
    return sample.frames([len(sample) // 3])[0]
