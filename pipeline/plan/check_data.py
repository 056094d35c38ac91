"""Checks a manifest, folder or set of shards before it is decoded: what is there and what is missing.

All rows are imported; no media are read except those of a few items, which are decoded.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import DecodeError
from alpro.shards.schema import KINDS, SPLITS, Row
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.storage import Location, is_url
from alpro.stages.decode_videos import Config, decode, fetched, plan_of

MAX_NAMED = 3  # items that are named as examples


def check_data(
    data: Location,
    config: Config,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    samples: int = 5,
    max_text_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Describes a source of items, decoding `samples` of them, evenly spaced.

    max_text_tokens: by the stages that train on the items. Raises InputError if the source cannot be read at all.
    """
    limits = max_text_tokens or {}
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as name:
        plan = plan_of(config, import_source(data, Path(name), annotations, root))
        bad = [f"{reject.id}: {reject.detail}" for reject in plan.rejects()]
        report = {
            "data": str(data),
            "form": plan.manifest.about["form"],
            "items": len(plan.numbers) + len(bad),
            "notes": plan.manifest.about.get("notes", []),
            "bad_rows": {"count": len(bad), "examples": bad[:MAX_NAMED]},
            "splits": plan.texts_by_split(),
            "split_source": split_source(plan),
            **describe_rows(plan, limits),
            "answers": describe_answers(plan),
            "group_hint": plan.group_hint(),
            "decoded": decode_some(plan.evenly_spaced(samples), config, Path(name)),
        }
    report["problems"] = list(problems(report, config, limits))
    return report


def describe_rows(plan: DecodePlan, max_text_tokens: Mapping[str, int]) -> dict[str, Any]:
    """Counts the rows by kind, those without a file or a text, the texts that training will cut, and by split the items
    with a caption that a training item has too."""
    kinds, missing, without_text, first = Counter[str](), list[str](), 0, 0
    captions: dict[str, list[set[int]]] = {split: [] for split in SPLITS}  # hashes, of each item
    words: dict[str, Counter[int]] = {
        "captions": Counter(),
        "questions": Counter(),
    }  # texts by their lengths
    for batch in plan.manifest.batches(["kind", "path", "captions", "questions"]):
        for number, row in enumerate(batch.to_pylist(), first):
            if not plan.mask[number]:
                continue
            kinds[row["kind"]] += 1
            without_text += not row["captions"] and not row["questions"]
            captions[SPLITS[plan.columns["split"][number]]].append(set(map(hash, row["captions"])))
            texts_of = {
                "captions": row["captions"],
                "questions": [q["question"] for q in row["questions"]],
            }
            for name, texts in texts_of.items():
                words[name].update(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
            if not is_url(row["path"]) and not Path(row["path"]).is_file():
                missing.append(row["path"])
        first += len(batch)
    trained = set().union(*captions.pop("train"))
    return {
        "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "without_text": without_text,
        "missing": len(missing),
        "missing_examples": missing[:MAX_NAMED],
        "also_in_training": {
            split: sum(not trained.isdisjoint(item) for item in items)
            for split, items in captions.items()
        },
        "long_texts": {
            stage: long_texts(words, stage, limit) for stage, limit in max_text_tokens.items()
        },
    }


def answers_by_split(plan: DecodePlan) -> dict[str, Counter[str]]:
    """The answers to the questions of each split, counted."""
    answers: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    first = 0
    for batch in plan.manifest.batches(["questions"]):
        for number, questions in enumerate(batch["questions"].to_pylist(), first):
            if questions and plan.mask[number]:
                split = SPLITS[plan.columns["split"][number]]
                answers[split].update(question["answer"] for question in questions)
        first += len(batch)
    return answers


def describe_answers(plan: DecodePlan) -> dict[str, Any]:
    """The number of different training answers, how many of them only differ in case or a final dot from another, and
    by split the answers and those that no training question has: a model of question answering cannot give them."""
    answers = answers_by_split(plan)
    trained = answers.pop("train")
    spellings = len(trained) - len({answer.casefold().rstrip(".") for answer in trained})
    unknown = {
        split: {
            "answers": counts.total(),
            "not_in_training": sum(n for answer, n in counts.items() if answer not in trained),
        }
        for split, counts in answers.items()
    }
    return {"training": len(trained), "spellings": spellings, **unknown}


def check_answers(manifest: Manifest, config: Config, name: str) -> None:
    """Raises InputError if all training questions have one answer: question answering chooses between answers."""
    answers = answers_by_split(plan_of(config, manifest))["train"]
    if len(answers) == 1:
        raise InputError(
            f"{name}: all training questions have the answer {next(iter(answers))!r}, and question answering needs "
            "at least 2; leave it out with --set finetune_qa=false"
        )


def long_texts(words: Mapping[str, Counter[int]], stage: str, limit: int) -> dict[str, Any]:
    """The kind of a stage's texts, their number, its `max_text_tokens`, and how many this cuts at least: a tokenizer
    makes one or more tokens of a word, and adds [CLS] and [SEP]."""
    kind = "questions" if stage == "finetune_qa" else "captions"
    cut = sum(texts for length, texts in words[kind].items() if length + 2 > limit)
    return {"of": kind, "texts": words[kind].total(), "max_text_tokens": limit, "cut": cut}


def split_source(plan: DecodePlan) -> str:
    return "named" if plan.named_splits else "generated" if plan.generated_splits else "none"


def decode_some(rows: Iterable[Row], config: Config, folder: Path) -> dict[str, Any]:
    """Decodes items in this process. Returns their number, and the rejects by reason."""
    count, rejected, examples = 0, Counter[str](), list[str]()
    for row in rows:
        count += 1
        try:
            with fetched(row, config.max_bytes, folder) as path:
                decode(row, path, config)
        except DecodeError as error:
            rejected[error.reason] += 1
            examples.append(f"{row.id}: {error}")
    return {"items": count, "rejected": dict(rejected), "examples": examples[:MAX_NAMED]}


def problems(report: dict[str, Any], config: Config, stages: Iterable[str]) -> Iterator[str]:
    """What would end a run of these training stages, or make it useless, one line each."""
    items, rejected = report["items"], report["bad_rows"]["count"]
    lost = rejected + report["missing"] + report["without_text"]
    if lost > config.max_reject_share * items:
        yield (
            f"{lost} of {items} items have no file, no text or an invalid row, more than max_reject_share = "
            f"{config.max_reject_share:g} allows"
        )
    decoded = report["decoded"]
    bad = sum(count for reason, count in decoded["rejected"].items() if reason != "missing")
    if bad > config.max_reject_share * max(1, decoded["items"]):
        yield f"{bad} of {decoded['items']} items cannot be decoded"
    splits = report["splits"]
    if not any(texts["items"] for texts in splits.values()):
        hint = [note for note in report["notes"] if "caption" in note]
        yield "; ".join(["no captions and no questions", *hint])
    elif not splits["train"]["items"]:
        yield "no item of the split train has a text"
    if "finetune_qa" in stages and report["answers"]["training"] == 1:
        yield "all training questions have one answer, and question answering needs at least 2"
    if not splits["test"]["items"]:
        yield f"no test split: {why_no_split('test', splits, config, report['split_source'])}"
    elif not splits["test"]["captions"] and set(stages) - {"finetune_qa"}:
        yield "no test captions: retrieval has nothing to score; leave it out, or name a test split with captions"
    elif report["also_in_training"]["test"] >= splits["test"]["items"]:
        yield "every test item has a caption of a training item, and is left out (evaluate.exclude_overlap)"


def why_no_split(
    split: str, splits: Mapping[str, Mapping[str, int]], config: Config, source: str
) -> str:
    if source == "named":
        named = ", ".join(
            f"{name} ({texts['items']})" for name, texts in splits.items() if texts["items"]
        )
        return f"the rows name the splits {named}" if named else "no row with a text names one"
    if not getattr(config, split):
        return f"no row names one, and its share `{split}` is 0"
    drawn = sum(texts["items"] for texts in splits.values())
    return (
        f"no row names one, and by its own hash none of {drawn} items with a text is drawn with a chance of "
        f"{split} = {getattr(config, split):g}; name the splits in a column `split`, or change `seed` or `{split}`"
    )


def items_of_split(manifest: Manifest, config: Config, split: str) -> tuple[dict[str, int], str]:
    """The items, captions and questions that a split of a source will have, and why it has none, or an empty string."""
    plan = plan_of(config, manifest)
    splits = plan.texts_by_split()
    return splits[split], "" if splits[split]["items"] else why_no_split(
        split, splits, config, split_source(plan)
    )
