"""Checks a manifest, folder or set of shards before it is decoded: what is there and what is missing.

All rows are imported; no media are read except those of a few items, which are decoded.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alpro.shards.decoding import DecodeError
from alpro.shards.schema import KINDS, Row
from alpro.shards.sources.manifest import TABLES
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
    stages: Iterable[str] = (),
) -> dict[str, Any]:
    """Describes a source of items, decoding `samples` of them, evenly spaced.

    stages: those that train on the items. Raises InputError if the source cannot be read at all.
    """
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as name:
        plan = plan_of(config, data, annotations, root, Path(name))
        bad = [f"{reject.id}: {reject.detail}" for reject in plan.rejects()]
        report = {
            "data": str(data),
            "form": plan.manifest.about["form"],
            "items": len(plan.numbers) + len(bad),
            "bad_rows": {"count": len(bad), "examples": bad[:MAX_NAMED]},
            "splits": plan.texts_by_split(),
            "split_source": split_source(plan),
            **describe_rows(plan),
            "group_hint": plan.group_hint(),
            "decoded": decode_some(plan.evenly_spaced(samples), config, Path(name)),
        }
    report["problems"] = list(problems(report, config, stages))
    return report


def describe_rows(plan: DecodePlan) -> dict[str, Any]:
    """Counts the rows by kind, and those without a file or a text."""
    kinds, missing, without_text, first = Counter[str](), list[str](), 0, 0
    for batch in plan.manifest.batches(["kind", "path", "captions", "questions"]):
        for number, row in enumerate(batch.to_pylist(), first):
            if not plan.mask[number]:
                continue
            kinds[row["kind"]] += 1
            without_text += not row["captions"] and not row["questions"]
            if not is_url(row["path"]) and not Path(row["path"]).is_file():
                missing.append(row["path"])
        first += len(batch)
    return {
        "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "without_text": without_text,
        "missing": len(missing),
        "missing_examples": missing[:MAX_NAMED],
    }


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
