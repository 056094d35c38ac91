"""The texts of the training splits of decoded corpora."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.reader import index_batches


def read_captions(corpora: Mapping[str, Path]) -> tuple[Counter[str], list[tuple[str, str]]]:
    """The captions with their counts, and (id, source) of training samples without a caption. Memory holds each
    distinct caption once. Raises InputError if there are none."""
    captions: Counter[str] = Counter()
    without: list[tuple[str, str]] = []
    for folder in corpora.values():
        for row in training_rows(folder, ["id", "source", "captions"]):
            captions.update(row["captions"])
            if not row["captions"]:
                without.append((row["id"], row["source"]))
    if not captions:
        raise InputError("the training split has no captions; check the splits of the corpora")
    return captions, without


def read_questions(corpora: Mapping[str, Path]) -> Counter[str]:
    """The questions with their counts."""
    questions: Counter[str] = Counter()
    for folder in corpora.values():
        for row in training_rows(folder, ["questions"]):
            questions.update(q["question"] for q in row["questions"])
    return questions


def training_rows(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in index_batches(folder, ["split", *columns]):
        yield from (row for row in batch.to_pylist() if row["split"] == "train")
