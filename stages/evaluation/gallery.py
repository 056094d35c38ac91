"""The videos of a split with their captions or questions, and which videos are right for a text."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Row
from alpro.stages.evaluation.metrics import CAPTIONS, Queries

Labels = dict[str, Any]  # what a corpus or a manifest says of a video
Question = dict[str, str]  # question, answer, type
SHOWN_TEXTS = 4  # best, and worst, texts that a picture shows
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


def read_labels(video: Sample | Row) -> Labels:
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
        videos: int = 0,
        texts: int = 0,
    ) -> "Gallery":
        """Read the videos of a split that have texts. Each text is right for its own video alone.

        Args:
            corpus: Folder of a decoded corpus.
            split: Split to read.
            exclude: Ids of videos to leave out.
            column: captions or questions.
            videos: Read only the first ones; 0: all.
            texts: Read only the first ones of each video; 0: all.
        """
        reader = ShardReader(corpus, split, exclude=exclude)
        items_by_sample = reader.column(column).to_pylist()
        indices = [index for index, items in enumerate(items_by_sample) if items]
        indices = indices[: videos or None]
        ids = reader.column("id").to_pylist()

        items = [items_by_sample[index][: texts or None] for index in indices]
        return cls.of(Samples(reader, indices), pick(ids, indices), items, column)

    @classmethod
    def of(
        cls,
        videos: Sequence[Sample | Row],
        ids: list[str],
        items: Sequence[list[Any]],
        column: str,
        relevant: Sequence[Collection[int]] | None = None,
    ) -> "Gallery":
        """Return videos with the captions or questions of each.

        Args:
            videos: The videos.
            ids: Their ids.
            items: Captions or questions of each video.
            column: captions or questions.
            relevant: For each video, others for which its captions are right. With it, equal
                captions, whatever their case, are one text with several right videos.
        """
        listed: dict[Any, Any] = {}  # by their key, as the first video writes them
        right: dict[Any, set[int]] = {}
        for video, texts in enumerate(items):
            for text in texts:
                key = len(listed) if relevant is None else text.casefold()
                listed.setdefault(key, text)
                right.setdefault(key, {video})
                if relevant is not None:
                    right[key] |= {video, *relevant[video]}

        pairs = [
            (index, video)
            for index, right_videos in enumerate(right.values())
            for video in sorted(right_videos)
        ]
        pair_array = np.array(pairs, int).reshape(-1, 2)
        distinct = [*listed.values()]
        if column == "captions":
            return cls(videos, ids, distinct, pair_array)
        texts = [question["question"] for question in distinct]
        return cls(videos, ids, texts, pair_array, distinct)

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

    def metadata(self, video: int) -> Labels:
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
        new_videos = new_index[self.right[:, 1]]

        is_chosen = new_videos >= 0
        # A text without a right video is left out.
        texts, new_texts = np.unique(self.right[is_chosen, 0], return_inverse=True)
        return Gallery(
            pick(self.videos, videos),
            pick(self.ids, videos),
            texts=pick(self.texts, texts),
            right=np.stack([new_texts, new_videos[is_chosen]], axis=1),
            questions=pick(self.questions, texts) if self.questions else [],
        )


def draw_searches(gallery: Gallery, scores: np.ndarray, file: Path) -> None:
    """Draw the best videos of the texts with the best and with the worst ranks of their videos.

    Args:
        scores: (N, V), higher is better.
        file: Picture to write.
    """
    right_scores = scores[np.arange(len(scores)), gallery.video_of_text]
    # In a picture, a tie counts for the right video.
    ranks = (scores > right_scores[:, None]).sum(1)
    # Stable: of equal ranks, the same texts are drawn each time.
    by_rank = ranks.argsort(kind="stable").tolist()

    queries = []
    for text in [*by_rank[:SHOWN_TEXTS], *by_rank[-SHOWN_TEXTS:]]:
        right = int(gallery.video_of_text[text])
        note = f"its video, {gallery.ids[right]}, came {ranks[text] + 1} of {scores.shape[1]}"
        results = []
        for video in scores[text].argsort()[::-1][:SHOWN_VIDEOS].tolist():
            sample = gallery.sample(video)
            # The first frame of the second of three equal segments.
            (frame,) = sample.frames([len(sample) // 3])
            results.append((frame, gallery.ids[video], video == right))
        queries.append((gallery.texts[text], note, results))

    file.parent.mkdir(exist_ok=True)
    retrieval_picture(queries).save(file, compress_level=1)
