"""The videos of a split with their captions or questions, and which videos are right for a text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Row
from alpro.stages.evaluation.metrics import CAPTIONS, Queries

Labels = dict[str, Any]  # what a corpus or a manifest says of a video
Question = dict[str, str]  # question, answer, type
SHOWN_TEXTS = 4  # best, and worst, texts that a picture shows
SHOWN_VIDEOS = 4  # videos that a picture shows for a text


def pick(items: Any, indices: Sequence[int]) -> Any:
    """Return some of the items of a list or of a reader."""
    if isinstance(items, ShardReader):
        return items.select(indices)
    return [items[index] for index in indices]


@dataclass(frozen=True)
class Gallery:
    """Videos (V) with their captions or questions: the texts (N), each with its right videos.

    Attributes:
        videos: Samples of a corpus, or rows of a manifest, which are decoded when they are encoded.
        ids: (V,) their ids.
        items: (V,) captions or questions of each video.
        merged: Equal captions, whatever their case, are one text with several right videos.
    """

    videos: Sequence[Sample | Row]
    ids: list[str]
    items: Sequence[list[Any]]
    merged: bool = False

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
        selected = reader.select(indices)
        items = [items_by_sample[index][: texts or None] for index in indices]
        return cls(selected, selected.column("id").to_pylist(), items)

    @cached_property
    def right(self) -> list[tuple[Any, list[int]]]:
        """(N,) each caption or question, as its first video writes it, and the indices of the
        videos that are right for it, in ascending order."""
        right: dict[Any, tuple[Any, list[int]]] = {}
        for video, items in enumerate(self.items):
            for item in items:
                key = item.casefold() if self.merged else len(right)
                right.setdefault(key, (item, []))[1].append(video)
        return [*right.values()]

    @cached_property
    def texts(self) -> list[str]:
        """(N,) captions, or questions."""
        items = [item for item, _ in self.right]
        return [item["question"] for item in self.questions] or items

    @cached_property
    def questions(self) -> list[Question]:
        """(N,) the question, answer and type of each text; empty if the texts are captions."""
        return [item for item, _ in self.right if isinstance(item, dict)]

    @cached_property
    def relevant(self) -> np.ndarray:
        """(N, V) boolean: which videos are right for each text."""
        matrix = np.zeros((len(self.texts), len(self.ids)), bool)
        for text, (_, videos) in enumerate(self.right):
            matrix[text, videos] = True
        return matrix

    @cached_property
    def video_of_text(self) -> np.ndarray:
        """(N,) index of the right video of each text, of several that of the first id."""
        # Whatever the order of the rows: intervals and p values depend on it.
        id_of = self.ids.__getitem__
        return np.array([min(videos, key=id_of) for _, videos in self.right], int)

    def sample(self, video: int) -> Sample:
        """Return a video of a decoded corpus."""
        sample = self.videos[video]
        assert isinstance(sample, Sample)
        return sample

    def queries(self, direction: str) -> Queries:
        """Return the queries of a direction: the texts, or the videos that have any, identified by
        all their texts."""
        ids = np.array(self.ids, object)
        texts = np.array(self.texts, object)
        if direction == "t2v":
            # A text belongs to one video: intervals resample videos.
            return Queries(ids[self.video_of_text], texts)

        has_text = self.relevant.any(0)
        captions = [CAPTIONS.join(texts[right]) for right in self.relevant.T[has_text]]
        return Queries.of(ids[has_text].tolist(), captions)

    def select(self, videos: Sequence[int]) -> "Gallery":
        """Return these videos, which are indices in ascending order, and their texts."""
        return Gallery(
            pick(self.videos, videos),
            pick(self.ids, videos),
            pick(self.items, videos),
            self.merged,
        )


def draw_searches(gallery: Gallery, table: pa.Table, file: Path) -> None:
    """Draw the best videos of the texts with the best and with the worst ranks of their videos.

    Args:
        gallery: The gallery.
        table: The table of the texts as queries (`evaluate_model.add_ranking`).
        file: Picture to write.
    """
    # The sort is stable: of equal ranks, the same texts are drawn each time.
    rows = table.sort_by("rank").to_pylist()
    queries = []
    for row in [*rows[:SHOWN_TEXTS], *rows[-SHOWN_TEXTS:]]:
        note = f"its video, {row['id']}, came {row['rank']:g} of {len(gallery.ids)}"
        results = []
        for name in row["best"][:SHOWN_VIDEOS]:
            sample = gallery.sample(gallery.ids.index(name))
            # The first frame of the second of three equal segments.
            (frame,) = sample.frames([len(sample) // 3])
            results.append((frame, name, name == row["id"]))
        queries.append((row["text"], note, results))

    file.parent.mkdir(exist_ok=True)
    retrieval_picture(queries).save(file, compress_level=1)
