"""Question answering: the questions of a split, and the logits of the answer head."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.progress import progress
from alpro.shards.reader import ShardReader
from alpro.stages.encoding.encode import Reorder, encode_texts, encode_videos
from alpro.stages.encoding.pairs import VIDEOS, score
from alpro.stages.evaluation.metrics import Queries


@dataclass
class Questions:
    """The questions of a split."""

    reader: ShardReader
    numbers: list[int]  # sample indices of the videos
    ids: list[str]
    texts: list[str]
    answers: list[str]
    types: list[str]
    video_of_question: np.ndarray  # (questions,) index of each question's video in `numbers`

    @classmethod
    def of(cls, folder: Path, split: str, exclude: Collection[str] = ()) -> "Questions":
        """Reads the questions of a split. exclude: ids of videos to skip."""
        reader = ShardReader(folder, split, exclude=exclude)
        by_video = reader.column("questions").to_pylist()
        numbers = [n for n, questions in enumerate(by_video) if questions]
        flat = [(place, q) for place, n in enumerate(numbers) for q in by_video[n]]
        ids = reader.column("id").to_pylist()
        texts, answers, types = ([q[key] for _, q in flat] for key in ("question", "answer", "type"))
        return cls(
            reader, numbers, [ids[n] for n in numbers], texts, answers, types, np.array([p for p, _ in flat], np.int64)
        )

    @property
    def queries(self) -> Queries:
        """The questions with the ids of their videos."""
        return Queries.of([self.ids[video] for video in self.video_of_question], self.texts)

    def first(self, videos: int) -> "Questions":
        """The questions about the first `videos` videos; 0: all."""
        return self.between(0, videos or len(self.ids))

    def between(self, start: int, stop: int) -> "Questions":
        """The questions about the videos [start, stop); questions are sorted by video."""
        some, chosen = slice(start, stop), slice(*np.searchsorted(self.video_of_question, [start, stop]))
        texts = self.texts[chosen], self.answers[chosen], self.types[chosen]
        return Questions(
            self.reader, self.numbers[some], self.ids[some], *texts, self.video_of_question[chosen] - start
        )


@torch.no_grad()
def answer_logits(
    encoder: NormalizedModel,
    questions: Questions,
    tokenizer: Tokenizer,
    length: int,
    device: torch.device,
    batch: int = 256,
    reorder: Reorder | None = None,
) -> Tensor:
    """Logits of the answer head (questions, answers), on the CPU.

    The device holds the tokens of VIDEOS videos and one batch of questions at a time.
    """
    model = cast(Alpro, encoder.model)
    parts = []
    with progress("answering", len(questions.texts), "questions") as advance:
        for start in range(0, len(questions.numbers), VIDEOS):
            some = questions.between(start, start + VIDEOS)
            videos = encode_videos(encoder, some.reader, some.numbers, device, reorder=reorder)
            for first in range(0, len(some.texts), batch):
                texts = encode_texts(model, tokenizer, some.texts[first : first + batch], length, device)
                places = some.video_of_question[first : first + batch]
                pairs = np.stack([np.arange(len(places)), places], axis=1)
                parts.append(score(model, answer_head(model), texts, videos, pairs).cpu())
                advance(len(places))
    return torch.cat(parts)


def answer_head(model: Alpro) -> nn.Module:
    """The question-answering head. Raises ValueError if the model has none."""
    if model.qa_head is None:
        raise ValueError("this model has no question-answering head: fine-tune one, or load a QA model")
    return model.qa_head
