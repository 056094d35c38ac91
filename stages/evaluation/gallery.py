"""The videos of a split with their captions or questions, and which videos are right for a text."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Row
from alpro.stages.evaluation.metrics import CAPTIONS, Queries

Question = dict[str, str]  # question, answer, type
SHOWN_VIDEOS = 4  # videos that a picture shows for a text


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """Samples of a corpus, read one at a time."""

    reader: ShardReader
    indices: list[int]  # in `reader`

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.reader[self.indices[index]]

    def frame_count(self, index: int) -> int:
        """Return the number of frames of a sample, without reading it."""
        return self.reader.frame_count(self.indices[index])


def pick(items: Any, indices: Iterable[int]) -> Any:
    """Return some of the items of a list or of `Samples`."""
    if isinstance(items, Samples):
        return Samples(items.reader, pick(items.indices, indices))
    return [items[index] for index in indices]


def as_pairs(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return pairs as an array (P, 2), also if there are none."""
    return np.array(pairs, int).reshape(-1, 2)


def read_labels(video: Sample | Row) -> dict[str, Any]:
    """Return what a corpus or a manifest says of a video."""
    return video.model_dump() if isinstance(video, Row) else video.metadata


@dataclass(frozen=True)
class Gallery:
    """Videos (V), the texts (N) about them, and which videos are right for each text.

    Attributes:
        videos: Samples of a corpus, or rows of a manifest, which are decoded when they are encoded.
        ids: (V,) their ids.
        texts: (N,) captions, or questions.
        right: (P, 2) pairs of the indices of a text and of a video that is right for it, by text.
        questions: (N,) for question answering, the question, answer and type of each text.
    """

    videos: Sequence[Sample | Row]
    ids: list[str]
    texts: list[str]
    right: np.ndarray
    questions: list[Question] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        corpus: Path,
        split: str,
        exclude: Collection[str] = (),
        column: str = "captions",
    ) -> "Gallery":
        """Read the videos of a split that have texts. Each text is right for its own video alone.

        Args:
            corpus: Folder of a decoded corpus.
            split: Split to read.
            exclude: Ids of videos to leave out.
            column: captions or questions.
        """
        reader = ShardReader(corpus, split, exclude=exclude)
        items_by_sample = reader.column(column).to_pylist()
        indices = [index for index, items in enumerate(items_by_sample) if items]
        ids = reader.column("id").to_pylist()

        items = pick(items_by_sample, indices)
        return cls.of(Samples(reader, indices), pick(ids, indices), items, column)

    @classmethod
    def of(
        cls,
        videos: Sequence[Sample | Row],
        ids: list[str],
        items: Sequence[list[Any]],
        column: str,
    ) -> "Gallery":
        """Return videos with the captions or questions of each."""
        listed = list(chain.from_iterable(items))
        pairs = []
        for video, texts in enumerate(items):
            pairs += [(len(pairs) + i, video) for i in range(len(texts))]

        if column == "captions":
            return cls(videos, ids, listed, as_pairs(pairs))
        texts = [question["question"] for question in listed]
        return cls(videos, ids, texts, as_pairs(pairs), questions=listed)

    @cached_property
    def relevant(self) -> np.ndarray:
        """(N, V) boolean: which videos are right for each text."""
        matrix = np.zeros((len(self.texts), len(self.ids)), bool)
        matrix[self.right[:, 0], self.right[:, 1]] = True
        return matrix

    @cached_property
    def video_of_text(self) -> np.ndarray:
        """(N,) index of the first right video of each text."""
        _, first = np.unique(self.right[:, 0], return_index=True)
        return self.right[first, 1]

    def sample(self, video: int) -> Sample:
        """Return a video of a decoded corpus."""
        sample = self.videos[video]
        assert isinstance(sample, Sample)
        return sample

    def metadata(self, video: int) -> dict[str, Any]:
        """Return what a corpus or a manifest says of a video."""
        return read_labels(self.videos[video])

    def queries(self, direction: str) -> Queries:
        """Return the queries of a direction: the texts, or the videos that have any, identified by
        all their texts."""
        ids = np.array(self.ids, object)
        texts = np.array(self.texts, object)
        if direction == "t2v":
            # A text belongs to its first right video: intervals resample videos.
            return Queries(ids[self.video_of_text], texts)

        has_text = self.relevant.any(0)
        captions = [CAPTIONS.join(texts[right]) for right in self.relevant.T[has_text]]
        return Queries.of(ids[has_text].tolist(), captions)

    def select(self, videos: Sequence[int]) -> "Gallery":
        """Return these videos, which are indices in ascending order, and their texts."""
        if len(videos) == len(self.ids):
            return self
        new_index = np.full(len(self.ids), -1)
        new_index[videos] = np.arange(len(videos))
        texts = self.right[:, 0]
        new_videos = new_index[self.right[:, 1]]

        pairs = np.stack([texts, new_videos], axis=1)
        right = pairs[new_videos >= 0]
        chosen = replace(
            self, videos=pick(self.videos, videos), ids=pick(self.ids, videos)
        )
        return chosen._with_pairs(right)

    def first(self, videos: int, texts: int = 0) -> "Gallery":
        """Return the first `videos` videos with the first `texts` texts of each; 0: all.

        Each text must be right for one video.
        """
        gallery = self.select(range(min(videos or len(self.ids), len(self.ids))))
        if not texts:
            return gallery
        video = gallery.right[:, 1]
        # The texts of a video are consecutive, and a binary search finds the first of them.
        position = np.arange(len(video)) - np.searchsorted(video, video)
        return gallery._with_pairs(gallery.right[position < texts])

    def _with_pairs(self, right: np.ndarray) -> "Gallery":
        """Return the gallery with some of its pairs, and without texts that are in none."""
        texts, text_of_pair = np.unique(right[:, 0], return_inverse=True)
        return replace(
            self,
            texts=pick(self.texts, texts),
            right=np.stack([text_of_pair, right[:, 1]], axis=1),
            questions=pick(self.questions, texts) if self.questions else [],
        )


def find_extremes(gallery: Gallery, scores: np.ndarray, count: int = 4) -> list[int]:
    """Return the texts with the best and with the worst ranks of their videos, `count` of each.

    Args:
        scores: (N, V), higher is better.
    """
    # Stable: of equal ranks, the same texts are drawn each time.
    by_rank = rank_videos(gallery, scores).argsort(kind="stable").tolist()
    return [*by_rank[:count], *by_rank[-count:]]


def rank_videos(gallery: Gallery, scores: np.ndarray) -> np.ndarray:
    """Return the rank (N,) of each text's video, from 0. In pictures, a tie counts for it."""
    right = scores[np.arange(len(scores)), gallery.video_of_text]
    is_better = scores > right[:, None]
    return is_better.sum(1)


def draw_searches(
    gallery: Gallery, scores: np.ndarray, texts: Sequence[int], file: Path
) -> None:
    """Draw the best videos of some texts.

    Args:
        scores: (N, V), higher is better.
        texts: Indices of texts.
        file: Picture to write.
    """
    rank_of_text = rank_videos(gallery, scores)
    queries = []
    for text in texts:
        right = int(gallery.video_of_text[text])
        rank = rank_of_text[text] + 1
        note = f"its video, {gallery.ids[right]}, came {rank} of {scores.shape[1]}"
        results = []
        for video in scores[text].argsort()[::-1][:SHOWN_VIDEOS].tolist():
            results.append(
                (read_frame(gallery, video), gallery.ids[video], video == right)
            )
        queries.append((gallery.texts[text], note, results))

    file.parent.mkdir(exist_ok=True)
    retrieval_picture(queries).save(file)


def read_frame(gallery: Gallery, video: int) -> np.ndarray:
    """Read the first frame (H, W, 3) of the second of three equal segments of a sample."""
    sample = gallery.sample(video)
    (frame,) = sample.frames([len(sample) // 3])
    return frame
