"""Answers in a file of their own: ActivityNet-QA has the questions of its videos in train_q.json, and
their answers in train_a.json, by `question_id`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from alpro.errors import InputError
from alpro.shards.sources.answers import text_of
from alpro.shards.sources.records import Record, named_records

Answers = Mapping[str, Record]  # what a file has of the answers, by the ids of their questions
ANSWER_COLUMNS = ("answer", "answer_type")


def half_of(file: Path) -> Literal["", "questions", "answers"]:
    """Whether a file has questions alone, or answers alone, with the ids of questions, by its first
    record."""
    with suppress(InputError):  # the caller reads the file again
        for _, record in named_records(file):
            if not isinstance(record, dict):
                continue
            has_question = "question" in record
            has_answer = "answer" in record
            if "question_id" not in record or "path" in record or has_question == has_answer:
                return ""
            return "questions" if has_question else "answers"
    return ""


def without_answer_files(
    files: Mapping[str, Path],
) -> tuple[dict[str, Path], dict[str, Answers]]:
    """The annotation files without those of answers alone, and the answers, by split.

    files: with the keys of `annotations.keyed`. Answers count only beside a file of questions alone
    of the same split. Raises InputError if a question has two answers.
    """
    of_splits: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for key, file in files.items():
        of_splits[key.partition(".")[0]][key] = file

    kept = dict(files)
    answers = {}
    for split, of_split in of_splits.items():
        if len(of_split) == 1:
            continue
        halves = {key: half_of(file) for key, file in of_split.items()}
        if not {"questions", "answers"} <= set(halves.values()):
            continue
        answers[split] = read_answers([kept.pop(key) for key in halves if halves[key] == "answers"])
    return kept, answers


def read_answers(files: list[Path]) -> Answers:
    """The answers of some files. Raises InputError if a question has two."""
    answers: dict[str, Record] = {}
    for file in files:
        for where, record in named_records(file):
            if isinstance(record, str):
                continue  # its question has no answer, and is rejected for that
            question_id = text_of(record.get("question_id"))
            if not question_id:
                continue
            answer = {name: record[name] for name in ANSWER_COLUMNS if name in record}
            if answers.setdefault(question_id, answer) != answer:
                raise InputError(
                    f"{file}: {where}: the question_id {question_id!r} has another answer, too"
                )
    return answers


def answered(file: Path, answers: Answers) -> Iterator[tuple[str, Record | str]]:
    """The records of a file, as `named_records`; those of questions without an answer have that of
    the file of answers."""
    for where, record in named_records(file):
        if answers and isinstance(record, dict) and "answer" not in record:
            question_id = text_of(record.get("question_id"))
            record = {**record, **answers.get(question_id, {})}
        yield where, record
