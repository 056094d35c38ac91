"""Checks a manifest, folder or set of shards before it is decoded: what is there, what is missing, and what it costs.

All rows are read, no media except those of a few items, which are decoded, and the ends of local files of equal size.
"""

import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.decoding import DecodeError
from alpro.shards.schema import SPLITS, Reject, Row
from alpro.shards.sources.adapters import form_of, read_annotations
from alpro.shards.sources.annotations import annotation_file, table_of
from alpro.shards.sources.downloads import is_downloads
from alpro.shards.storage import Location
from alpro.shards.writer import encode_jpeg
from alpro.stages.build_vocabulary import Config as BuildVocabulary
from alpro.stages.build_vocabulary import merge_forms, select_words
from alpro.stages.corpora.languages import looks_foreign
from alpro.stages.decode_videos import Config, decode, fetched, group_hint, plan_of
from alpro.stages.execution.interface import Resources, cores
from alpro.stages.vocabulary.nouns import count_words

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_NAMED = 3  # items that are named as examples
MAX_TAGGED = 1 << 15  # captions of which the nouns are counted: a few seconds
LONG = 60.0  # seconds of a video from which on a few frames are far apart
COMPARED_BYTES = 1 << 16  # of the start and the end of files of equal size


def check_data(
    data: Location,
    config: Config,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
    samples: int = 20,
    workers: int = 0,
    max_text_tokens: Mapping[str, int] | None = None,
    vocabulary: BuildVocabulary | None = None,
) -> dict[str, Any]:
    """Describes a source of items, decoding `samples` of them, evenly spaced.

    workers: processes that would decode (0: one per core), for the estimate. max_text_tokens: by the stages that train
    on the items. vocabulary: how entities are chosen, if they are. Raises InputError if the source cannot be read at
    all.
    """
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as name:
        folder, files = Path(name), Files()
        with plan_of(config, data, annotations, root, folder, files.add) as plan:
            items = plan.count("rows") + plan.count("rejects")
            report = {
                "data": str(data),
                "form": "annotation files" if annotations else form_of_source(data),
                "items": items,
                "kinds": dict(files.kinds),
                "bad_rows": count_reasons(plan.rejects()),
                "without_text": files.without_text,
                "missing": files.missing,
                "missing_examples": files.examples,
                "remote": files.remote,
                "splits": plan.texts_by_split(),
                "also_in_training": files.also_in_training(plan.splits()),
                "copies_of_training": files.copies_of_training(list(plan.splits())),
                "foreign": {"captions": len(files.captions), "other": files.foreign},
                "group_hint": "" if config.group_pattern else group_hint(plan),
                "long_texts": files.long_texts(max_text_tokens or {}),
                "split_source": "generated" if plan.generated_splits else "named" if files.named_splits else "none",
                "decoded": decode_some(plan.evenly_spaced(samples), config, folder),
                "nouns": too_few_nouns(plan.captions(SPLITS[0]), vocabulary) if vocabulary else "",
            }
    report["estimate"] = estimate(report, workers or cores())
    report["problems"] = list(problems(report, config, max_text_tokens or {}))
    return report


class Files:
    """Counts rows and their files, without reading the files."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.without_text = self.missing = self.remote = self.foreign = 0
        self.examples: list[str] = []
        self.named_splits = False
        self.captions: list[int] = []  # the hash of each caption
        self.captions_of_row: list[int] = []
        self.of_size: defaultdict[int, dict[Path, int]] = defaultdict(dict)  # local files, each with a row of it
        # The number of texts by length, in words and punctuation marks.
        self.lengths: dict[str, Counter[int]] = {"captions": Counter(), "questions": Counter()}

    def add(self, row: Row) -> None:
        self.kinds[row.kind] += 1
        self.without_text += not row.captions and not row.questions
        self.named_splits |= bool(row.split)
        self.captions += map(hash, row.captions)
        self.foreign += sum(map(looks_foreign, row.captions))
        for name, texts in (("captions", row.captions), ("questions", [q.question for q in row.questions])):
            self.lengths[name].update(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
        if not isinstance(row.path, Path):
            self.remote += row.path.startswith("member://") is False
        elif not row.path.is_file():
            self.missing += 1
            if len(self.examples) < MAX_NAMED:
                self.examples.append(str(row.path))
        else:
            self.of_size[row.path.stat().st_size].setdefault(row.path, len(self.captions_of_row))
        self.captions_of_row.append(len(row.captions))

    def also_in_training(self, splits: Iterable[str]) -> dict[str, dict[str, int]]:
        """By split, the number of items with a caption, and of those with a caption that a training item has too.

        splits: of each row, in order.
        """
        counts = {split: {"items": 0, "captions": 0} for split in SPLITS[1:]}
        ends = list(accumulate(self.captions_of_row))
        rows = [
            (split, self.captions[end - count : end])
            for split, count, end in zip(splits, self.captions_of_row, ends, strict=True)
        ]
        known = {caption for split, captions in rows if split == SPLITS[0] for caption in captions}
        for split, captions in rows:
            if split in counts and captions:
                counts[split]["items"] += 1
                counts[split]["captions"] += not known.isdisjoint(captions)
        return counts

    def copies_of_training(self, splits: list[str]) -> dict[str, list[str]]:
        """By split, the files that are copies of a training file of another name: of equal size, start and end.

        splits: of each row, in order.
        """
        copies: dict[str, list[str]] = {split: [] for split in SPLITS[1:]}
        for size, rows in self.of_size.items():
            if size and len({splits[row] for row in rows.values()}) > 1:
                digests = {path: digest_of_ends(path, size) for path in rows}
                known = {digests[path] for path, row in rows.items() if splits[row] == SPLITS[0]}
                for path, row in rows.items():
                    if splits[row] != SPLITS[0] and digests[path] in known:
                        copies[splits[row]].append(str(path))
        return copies

    def long_texts(self, max_text_tokens: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """For each stage the kind of its texts, their number, its `max_text_tokens`, and how many this cuts at least: a
        tokenizer makes one or more tokens of a word, and adds [CLS] and [SEP]."""
        report = {}
        for stage, limit in max_text_tokens.items():
            kind = "questions" if stage == "finetune_qa" else "captions"
            cut = sum(texts for words, texts in self.lengths[kind].items() if words + 2 > limit)
            report[stage] = {"of": kind, "texts": self.lengths[kind].total(), "max_text_tokens": limit, "cut": cut}
        return report


def digest_of_ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        start = file.read(COMPARED_BYTES)
        file.seek(max(0, size - COMPARED_BYTES))
        return blake2b(start + file.read(COMPARED_BYTES)).digest()


def too_few_nouns(captions: Iterable[str], config: BuildVocabulary) -> str:
    """Why the captions have too few nouns for the vocabulary; empty if they have enough, or if there are more captions
    than are tagged here."""
    remaining = iter(captions)
    counted = Counter(islice(remaining, MAX_TAGGED))
    if config.entities_file or not counted:
        return ""
    try:
        select_words(merge_forms(count_words(counted, config.tagger, config.lemma, Resources(workers=1))), config)
    except InputError as error:
        return "" if next(remaining, None) is not None else str(error)
    return ""


def form_of_source(data: Location) -> str:
    """What a source is: shards of another tool, an annotation file in the form of a data set, a manifest, a folder."""
    if is_downloads(data):
        return "shards of video2dataset or img2dataset"
    if isinstance(data, Path) and (file := annotation_file(data)):
        first = next(record for _, record in read_annotations(file) if isinstance(record, dict))
        form = form_of(first)
        return f"{file.name}: {form.name if form else ''}"
    table = table_of(data)
    if isinstance(data, Path) and data.is_dir() and table is None:
        return "a folder of videos with texts"
    return f"a manifest, {Path(table or data).name}"


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
    """Decodes items in this process. Returns their number, the rejects by reason, the seconds, and bytes in a shard, of
    all of them, and the lengths of long videos in seconds."""
    count, size, rejected, examples, long = 0, 0, Counter[str](), list[str](), list[float]()
    start = time.perf_counter()
    for row in rows:
        count += 1
        try:
            with fetched(row.path, config.max_bytes, folder) as path:
                clip = decode(row, path, config)
        except DecodeError as error:
            rejected[error.reason] += 1
            if len(examples) < MAX_NAMED:
                examples.append(f"{row.id}: {error}")
            continue
        long += [round(clip.duration, 1)] if clip.duration > LONG else []
        size += sum(len(encode_jpeg(frame, config.quality)) + 1024 for frame in clip.frames)  # 1024: a tar header
    seconds = time.perf_counter() - start
    counts = {"items": count, "rejected": dict(rejected), "examples": examples, "long": long}
    return counts | {"seconds": seconds, "bytes": size}


def estimate(report: dict[str, Any], workers: int) -> dict[str, Any]:
    """The time and the disk space of decoding all items, from those that were decoded."""
    decoded, items = report["decoded"], report["items"] - report["bad_rows"]["count"]
    share = items / max(1, decoded["items"])
    free = shutil.disk_usage(Path.cwd()).free
    seconds = decoded["seconds"] * share / workers
    return {"workers": workers, "seconds": seconds, "bytes": round(decoded["bytes"] * share), "free_bytes": free}


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
    if not any(texts["items"] for texts in report["splits"].values()):
        tables = tables_in(Path(report["data"]))
        yield f"no captions and no questions{f'; the texts may be in {tables}: pass that file' if tables else ''}"
    elif not report["splits"]["train"]["items"]:
        yield "no item of the split train has a text"
    if not report["splits"]["test"]["items"]:
        yield f"no test split: {why_no_split('test', report['splits'], config, report['split_source'])}"
    elif not report["splits"]["test"]["captions"] and set(stages) - {"finetune_qa"}:
        yield "no test captions: retrieval has nothing to score; leave it out, or name a test split with captions"
    if report["nouns"]:
        yield report["nouns"]
    if report["estimate"]["bytes"] > report["estimate"]["free_bytes"]:
        yield "the shards need more disk space than is free"


def tables_in(folder: Path) -> str:
    """The names of the files of a folder that may list its videos."""
    found = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in TABLES) if folder.is_dir() else []
    return ", ".join(found[:MAX_NAMED])


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
    data: Location, config: Config, split: str, annotations: Mapping[str, Path] | None = None, root: Path | None = None
) -> tuple[dict[str, int], str]:
    """The items, captions and questions that a split of a source will have, and why it has none, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as name:
        files = Files()
        with plan_of(config, data, annotations, root, Path(name), files.add) as plan:
            splits = plan.texts_by_split()
    source = "named" if files.named_splits else "generated"
    return splits[split], "" if splits[split]["items"] else why_no_split(split, splits, config, source)
