"""Question answering: the best answer of the head, right or wrong, overall and by type."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.alpro import Alpro
from shards.reader import ShardReader
from shards.schema import InputError
from stages.evaluation.encode import Reorder, check_readable, encode_texts, encode_videos
from stages.evaluation.metrics import accuracy_by_type
from stages.training.loop import Validate
from stages.training.objective import Objective


@dataclass
class Questions:
    """The questions of a split."""

    reader: ShardReader
    numbers: list[int]  # the samples that have questions
    ids: list[str]
    texts: list[str]
    answers: list[str]
    types: list[str]
    video_of_question: np.ndarray  # (questions,) place of each question's video among `numbers`

    @classmethod
    def of(cls, folder: Path, split: str, most: int | None = None) -> "Questions":
        reader = ShardReader(folder, split)
        asked = reader.column("questions").to_pylist()
        numbers = [n for n, questions in enumerate(asked) if questions][:most]
        flat = [(place, q) for place, n in enumerate(numbers) for q in asked[n]]
        ids = reader.column("id").to_pylist()
        texts, answers, types = ([q[key] for _, q in flat] for key in ("question", "answer", "type"))
        return cls(
            reader, numbers, [ids[n] for n in numbers], texts, answers, types, np.array([p for p, _ in flat], np.int64)
        )


@torch.no_grad()
def answer_logits(
    objective: Objective,
    questions: Questions,
    tokenizer: Tokenizer,
    length: int,
    device: torch.device,
    batch: int = 256,
    reorder: Reorder | None = None,
) -> Tensor:
    """The answer head's logits of every question: (questions, answers), on the CPU."""
    assert isinstance(objective.model, Alpro)
    texts = encode_texts(objective.model, tokenizer, questions.texts, length, device)
    videos = encode_videos(objective, questions.reader, questions.numbers, device, reorder=reorder)
    place = torch.from_numpy(questions.video_of_question).to(device)
    parts = []
    for start in range(0, len(place), batch):
        part = slice(start, start + batch)
        parts.append(
            objective.model.answer(texts.tokens[part], texts.mask[part], videos.tokens[place[part]]).float().cpu()
        )
    return torch.cat(parts)


def validate_qa(
    objective: Objective,
    inputs: dict[str, Path],
    tokenizer: Tokenizer,
    answers: list[str],
    length: int,
    most: int = 500,
) -> tuple[Validate, str]:
    """Accuracy on the questions of the first `most` validation videos, and the metric to select by."""
    questions = validation_questions(inputs, most)
    check_readable(questions.reader, questions.numbers)
    device = objective.mean.device

    def validate() -> dict[str, float]:
        best = answer_logits(objective, questions, tokenizer, length, device).argmax(1)
        right = np.array([answers[int(i)] == answer for i, answer in zip(best, questions.answers, strict=True)])
        return {f"validation/qa/{name}": value for name, value in accuracy_by_type(right, questions.types).items()}

    return validate, "validation/qa/acc"


def validation_questions(inputs: dict[str, Path], most: int) -> Questions:
    for folder in inputs.values():
        if (folder / "index.parquet").is_file():
            questions = Questions.of(folder, "validation", most)
            if questions.texts:
                return questions
    raise InputError(
        "no corpus has validation videos with questions: mark some in the column split, or raise `validation`"
    )
