"""Checks a manifest, folder or set of shards before it is decoded: what is there and what is
missing.

All rows are imported; no media are read except those of a few items, which are decoded.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import DecodeError
from alpro.shards.file_type import find_placeholder, read_head
from alpro.shards.schema import KINDS, SPLITS, Row
from alpro.shards.sources.form import Columns
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.sources.rows import NO_FILE
from alpro.shards.storage import Location, is_url
from alpro.stages.decode_videos import Config, decode, fetched, make_plan

MAX_EXAMPLES = 3  # items that a report names
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
WORD = re.compile(r"\w+|[^\w\s]")  # a word or a punctuation mark: at least one token


def check_data(
    data: Location,
    config: Config,
    annotations: Mapping[str, Sequence[Path]] | None = None,
    root: Path | None = None,
    columns: Columns | None = None,
    samples: int = 5,
    max_text_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Describe a source of items, decoding `samples` of them, evenly spaced.

    max_text_tokens: by the stages that train on the items. Raises InputError if the source cannot
    be read at all.
    """
    limits = max_text_tokens or {}
    # Not in a workspace: a check leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as name:
        scratch = Path(name)
        plan = make_plan(config, import_source(data, scratch, annotations, root, columns))
        missing: list[str] = []
        bad_rows: list[str] = []
        for reject in plan.rejects():
            line = f"{reject.id}: {reject.detail}".rstrip(": ")
            (missing if reject.reason == "missing" else bad_rows).append(line)
        report = {
            "data": str(data),
            "form": plan.manifest.about["form"],
            "items": len(plan.row_indices) + plan.manifest.about["rejects"],
            "notes": plan.manifest.about["notes"],
            "bad_rows": {"count": len(bad_rows), "examples": bad_rows[:MAX_EXAMPLES]},
            "splits": plan.splits(),
            "split_source": split_source(plan),
            **describe_rows(plan, limits, missing),
            "answers": describe_answers(plan),
            "group_hint": plan.group_hint(),
            "decoded": decode_samples(plan.evenly_spaced(samples), config, scratch),
        }

    report["problems"] = list(problems(report, config, limits))
    return report


def chosen_rows(plan: DecodePlan, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the columns of each row that will be decoded, with the row's split."""
    first = 0
    for batch in plan.manifest.batches(columns):
        for row_index, row in enumerate(batch.to_pylist(), first):
            # `is_planned` counts rows over the whole manifest, not in a batch.
            if plan.is_planned[row_index]:
                yield SPLITS[plan.columns["split"][row_index]], row
        first += len(batch)


def describe_rows(
    plan: DecodePlan, max_text_tokens: Mapping[str, int], missing: list[str]
) -> dict[str, Any]:
    """Count the rows by kind, those without a file or a text, files that are placeholders, the
    texts that training will cut, and by split the items with a caption that a training item has
    too. missing: the files that the import has not found."""
    kinds = Counter[str]()
    placeholders = Counter[str]()
    without_text = 0
    # Hashes, one set for each item: a corpus of millions would not fit in memory as text.
    captions: dict[str, list[set[int]]] = {split: [] for split in SPLITS}
    # The number of texts by their length in words.
    lengths: dict[str, Counter[int]] = {"captions": Counter(), "questions": Counter()}

    for split, row in chosen_rows(plan, ["kind", "path", "captions", "questions"]):
        kinds[row["kind"]] += 1
        without_text += not row["captions"] and not row["questions"]
        captions[split].append(set(map(hash, row["captions"])))
        lengths["captions"].update(map(words_in, row["captions"]))
        lengths["questions"].update(words_in(asked["question"]) for asked in row["questions"])
        # Files at URLs are not looked up, which would take a request each.
        if not is_url(row["path"]):
            try:
                placeholder = find_placeholder(read_head(Path(row["path"])))
            except OSError:
                missing.append(row["path"])
                continue
            if placeholder:
                placeholders[f"files are {placeholder.kind}s: {placeholder.remedy}"] += 1

    # `pop`, because the other splits are compared with this one.
    in_training = set().union(*captions.pop("train"))
    return {
        "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "without_text": without_text,
        "missing": len(missing),
        "missing_examples": missing[:MAX_EXAMPLES],
        "placeholders": dict(placeholders),
        "also_in_training": {
            split: sum(not in_training.isdisjoint(item) for item in items)
            for split, items in captions.items()
        },
        "long_texts": {
            stage: long_texts(lengths, stage, limit) for stage, limit in max_text_tokens.items()
        },
    }


def words_in(text: str) -> int:
    return len(WORD.findall(text))


def answers_by_split(plan: DecodePlan) -> dict[str, Counter[str]]:
    """Return the answers to the questions of each split, counted."""
    answers: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, row in chosen_rows(plan, ["questions"]):
        answers[split].update(asked["answer"] for asked in row["questions"] or ())
    return answers


def describe_answers(plan: DecodePlan) -> dict[str, Any]:
    """Count the different training answers and those that only differ in case or a final dot from
    another; by split, the answers and those that no training question has: a model of question
    answering cannot give them."""
    answers = answers_by_split(plan)
    in_training = answers.pop("train")
    normalized = {answer.casefold().rstrip(".") for answer in in_training}

    described: dict[str, Any] = {
        "training": len(in_training),
        "spellings": len(in_training) - len(normalized),
    }
    for split, counts in answers.items():
        unknown = [count for answer, count in counts.items() if answer not in in_training]
        described[split] = {"answers": counts.total(), "not_in_training": sum(unknown)}

    return described


def check_answers(manifest: Manifest, config: Config, name: str) -> None:
    """Raise InputError if all training questions have one answer: question answering chooses
    between answers."""
    answers = answers_by_split(make_plan(config, manifest))["train"]
    if len(answers) == 1:
        raise InputError(
            f"{name}: all training questions have the answer {next(iter(answers))!r}, and question "
            "answering needs at least 2; leave it out with --set finetune_qa=false"
        )


def long_texts(lengths: Mapping[str, Counter[int]], stage: str, limit: int) -> dict[str, Any]:
    """How many texts of a stage its `max_text_tokens` cuts, at least: a tokenizer makes one or more
    tokens of a word."""
    kind = "questions" if stage == "finetune_qa" else "captions"
    cut = sum(texts for length, texts in lengths[kind].items() if length + SPECIAL_TOKENS > limit)
    return {"of": kind, "texts": lengths[kind].total(), "max_text_tokens": limit, "cut": cut}


def split_source(plan: DecodePlan) -> str:
    if plan.named_splits:
        return "named"
    return "generated" if plan.generated_splits else "none"


def decode_samples(rows: Iterable[Row], config: Config, folder: Path) -> dict[str, Any]:
    """Decode items in this process, and count the rejects by reason."""
    count = 0
    rejected = Counter[str]()
    examples: list[str] = []
    for row in rows:
        count += 1
        try:
            with fetched(row, config.max_bytes, folder) as path:
                decode(row, path, config)
        except DecodeError as error:
            rejected[error.reason] += 1
            examples.append(f"{row.id}: {error}")

    return {"items": count, "rejected": dict(rejected), "examples": examples[:MAX_EXAMPLES]}


def problems(report: dict[str, Any], config: Config, stages: Iterable[str]) -> Iterator[str]:
    """Return what would end a run of these training stages, or make it useless, one line each."""
    for reason, count in report["placeholders"].items():
        yield f"{count} {reason}"
    lost = report["bad_rows"]["count"] + report["missing"] + report["without_text"]
    if lost > config.max_reject_share * report["items"]:
        line = (
            f"{lost} of {report['items']} items have no file, no text or an invalid row, more than "
            f"max_reject_share = {config.max_reject_share:g} allows"
        )
        # What the files are called, if the names of the table are not quite theirs.
        hints = [note for note in report["notes"] if NO_FILE in note]
        yield "; ".join([line, *hints])

    # Missing files are already counted above.
    decoded = report["decoded"]
    failed = sum(count for reason, count in decoded["rejected"].items() if reason != "missing")
    if failed > config.max_reject_share * max(1, decoded["items"]):
        yield f"{failed} of {decoded['items']} items cannot be decoded"

    splits = report["splits"]
    if not any(texts["items"] for texts in splits.values()):
        hints = [note for note in report["notes"] if "caption" in note]
        yield "; ".join(["no captions and no questions", *hints])
    elif not splits["train"]["items"]:
        yield "no item of the split train has a text"
    if "finetune_qa" in stages and report["answers"]["training"] == 1:
        yield "all training questions have one answer, and question answering needs at least 2"

    test = splits["test"]
    if not test["items"]:
        yield f"no test split: {test['why_empty']}"
    # Question answering alone needs no captions.
    elif not test["captions"] and set(stages) - {"finetune_qa"}:
        yield (
            "no test captions: retrieval has nothing to score; leave it out, or name a test split "
            "with captions"
        )
    elif report["also_in_training"]["test"] >= test["items"]:
        yield (
            "every test item has a caption of a training item, and is left out "
            "(evaluate.exclude_overlap)"
        )
