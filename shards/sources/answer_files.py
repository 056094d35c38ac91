"""Answers in a file of their own: ActivityNet-QA has the questions of its videos in train_q.json, and
their answers in train_a.json, by `question_id`."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.sources.columns import NAME_COLUMNS
from alpro.shards.sources.records import named_records

Record = dict[str, Any]
Answers = Mapping[str, Record]  # the records of answers, by the ids of their questions


def missing_half(file: Path) -> str:
    """`answer` for a file of questions alone, `question` for one of answers alone, by its first
    record; otherwise an empty string."""
    with suppress(InputError):  # the caller reads the file again
        for _, record in named_records(file):
            if not isinstance(record, dict):
                continue
            if "question_id" not in record or {"question", "answer"} <= record.keys():
                return ""
            if "question" in record:
                return "answer"
            names_file = not record.keys().isdisjoint(NAME_COLUMNS)
            return "question" if "answer" in record and not names_file else ""
    return ""


def without_answer_files(
    files: Mapping[str, Path],
) -> tuple[dict[str, Path], dict[str, Answers]]:
    """The annotation files without those that have only answers, and the answers, by split.

    files: with the keys of `annotations.keyed`. The only file of a split is always kept.
    """
    splits = {key: key.partition(".")[0] for key in files}
    counts = Counter(splits.values())
    kept = {}
    answers: defaultdict[str, dict[str, Record]] = defaultdict(dict)
    for key, file in files.items():
        split = splits[key]
        if counts[split] == 1 or missing_half(file) != "question":
            kept[key] = file
            continue
        for _, record in named_records(file):
            if isinstance(record, dict):
                answers[split][str(record.get("question_id"))] = record
    return kept, dict(answers)


def answered(file: Path, answers: Answers) -> Iterator[tuple[str, Record | str]]:
    """The records of a file, as `named_records`; those of questions without an answer have that of
    the file of answers."""
    for where, record in named_records(file):
        if answers and isinstance(record, dict) and "answer" not in record:
            record = answers.get(str(record.get("question_id")), {}) | record
        yield where, record
