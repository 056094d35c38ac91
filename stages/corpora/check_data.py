"""Checks a manifest, folder or set of shards before it is decoded: what is there and what is missing.

All rows are imported; no media are read except those of a few items, which are decoded, and the ends of local files of
equal size.
"""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from alpro.shards.decoding import DecodeError
from alpro.shards.schema import KINDS, SPLITS, Reject, Row
from alpro.shards.sources.manifest import TABLES
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.storage import Location, is_url
from alpro.stages.decode_videos import Config, decode, fetched, plan_of

MAX_NAMED = 3  # items that are named as examples
COMPARED_BYTES = 1 << 16  # of the start and the end of files of equal size


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
        plan = plan_of(config, data, annotations, root, Path(name))
        report = {
            "data": str(data),
            "form": plan.manifest.about["form"],
            "items": len(plan.numbers) + plan.manifest.about["rejects"],
            "bad_rows": count_reasons(plan.rejects()),
            "splits": plan.texts_by_split(),
            "split_source": split_source(plan),
            **describe_rows(plan, limits),
            "group_hint": plan.group_hint(),
            "decoded": decode_some(plan.evenly_spaced(samples), config, Path(name)),
        }
    report["problems"] = list(problems(report, config, limits))
    return report


def describe_rows(plan: DecodePlan, max_text_tokens: Mapping[str, int]) -> dict[str, Any]:
    """Counts rows, their files and their texts, also those that a training item has too."""
    kinds, missing, remote, without_text = Counter[str](), list[str](), 0, 0
    words: dict[str, Counter[int]] = {"captions": Counter(), "questions": Counter()}  # texts by their lengths
    captions: dict[str, list[set[int]]] = {split: [] for split in SPLITS}  # hashes, of each item with captions
    sizes: defaultdict[int, dict[str, str]] = defaultdict(dict)  # of local files, with a split of each
    planned = plan.mask
    first = 0
    for batch in plan.manifest.batches(["kind", "path", "captions", "questions"]):
        for number, row in enumerate(batch.to_pylist(), first):
            if not planned[number]:
                continue
            split, path = SPLITS[plan.columns["split"][number]], row["path"]
            kinds[row["kind"]] += 1
            without_text += not row["captions"] and not row["questions"]
            captions[split] += [set(map(hash, row["captions"]))] if row["captions"] else []
            texts_of = {"captions": row["captions"], "questions": [q["question"] for q in row["questions"]]}
            for name, texts in texts_of.items():
                words[name].update(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
            if is_url(path):
                remote += 1
            elif not Path(path).is_file():
                missing.append(path)
            else:
                sizes[Path(path).stat().st_size].setdefault(path, split)
        first += len(batch)
    known = set().union(*captions["train"])
    shared = {
        split: {"items": len(items), "captions": sum(not known.isdisjoint(item) for item in items)}
        for split, items in captions.items()
        if split != "train"
    }
    return {
        "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "without_text": without_text,
        "missing": len(missing),
        "missing_examples": missing[:MAX_NAMED],
        "remote": remote,
        "also_in_training": shared,
        "copies_of_training": copies_of_training(sizes),
        "long_texts": long_texts(words, max_text_tokens),
    }


def copies_of_training(sizes: Mapping[int, Mapping[str, str]]) -> dict[str, list[str]]:
    """By split, the files that are copies of a training file of another name: of equal size, start and end."""
    copies: dict[str, list[str]] = {split: [] for split in SPLITS[1:]}
    for size, files in sizes.items():
        if size and len(set(files.values())) > 1:
            digests = {path: digest_of_ends(path, size) for path in files}
            known = {digests[path] for path, split in files.items() if split == "train"}
            for path, split in files.items():
                if split != "train" and digests[path] in known:
                    copies[split].append(path)
    return copies


def digest_of_ends(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        start = file.read(COMPARED_BYTES)
        file.seek(max(0, size - COMPARED_BYTES))
        return blake2b(start + file.read(COMPARED_BYTES)).digest()


def long_texts(words: Mapping[str, Counter[int]], max_text_tokens: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """For each stage the kind of its texts, their number, its `max_text_tokens`, and how many this cuts at least: a
    tokenizer makes one or more tokens of a word, and adds [CLS] and [SEP]."""
    report = {}
    for stage, limit in max_text_tokens.items():
        kind = "questions" if stage == "finetune_qa" else "captions"
        cut = sum(texts for length, texts in words[kind].items() if length + 2 > limit)
        report[stage] = {"of": kind, "texts": words[kind].total(), "max_text_tokens": limit, "cut": cut}
    return report


def split_source(plan: DecodePlan) -> str:
    return "named" if plan.named_splits else "generated" if plan.generated_splits else "none"


def count_reasons(rejects: Iterable[Reject]) -> dict[str, Any]:
    """The rejects of a plan: their number, their number by reason, and the details of a few."""
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    for reject in rejects:
        reasons[reject.reason] += 1
        if len(examples) < MAX_NAMED:
            examples.append(f"{reject.id}: {reject.detail}")
    return {"count": reasons.total(), "reasons": dict(reasons), "examples": examples}


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
        folder = Path(report["data"])
        tables = sorted(p.name for p in folder.glob("*") if p.suffix.lower() in TABLES) if folder.is_dir() else []
        named = ", ".join(tables[:MAX_NAMED])
        yield f"no captions and no questions{f'; the texts may be in {named}: pass that file' if tables else ''}"
    elif not splits["train"]["items"]:
        yield "no item of the split train has a text"
    if not splits["test"]["items"]:
        yield f"no test split: {why_no_split('test', splits, config, report['split_source'])}"
    elif not splits["test"]["captions"] and set(stages) - {"finetune_qa"}:
        yield "no test captions: retrieval has nothing to score; leave it out, or name a test split with captions"


def why_no_split(split: str, splits: Mapping[str, Mapping[str, int]], config: Config, source: str) -> str:
    if source == "named":
        named = ", ".join(f"{name} ({texts['items']})" for name, texts in splits.items() if texts["items"])
        return f"the rows name the splits {named}" if named else "no row with a text names one"
    if not getattr(config, split):
        return f"no row names one, and its share `{split}` is 0"
    drawn = sum(texts["items"] for texts in splits.values())
    return (
        f"no row names one, and by its own hash none of {drawn} items with a text is drawn with a chance of "
        f"{split} = {getattr(config, split):g}; name the splits in a column `split`, or change `seed` or `{split}`"
    )


def items_of_split(
    data: Location, config: Config, split: str, annotations: Mapping[str, Path], root: Path | None, cache: Path
) -> tuple[dict[str, int], str]:
    """The items, captions and questions that a split of a source will have, and why it has none, or an empty string.
    cache: the folder of imported manifests."""
    plan = plan_of(config, data, annotations, root, cache)
    splits = plan.texts_by_split()
    return splits[split], "" if splits[split]["items"] else why_no_split(split, splits, config, split_source(plan))
