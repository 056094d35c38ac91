"""Checks the data of a configuration before it is decoded: what is there, what is missing, and what
would end a run.

All rows are imported. No media are read except those of a few items, which are decoded.
"""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus, PipelineConfig
from alpro.pipeline.plan.checks import check_manifest, planned_rows
from alpro.pipeline.plan.corpora import import_corpus
from alpro.pipeline.plan.plan import without_questions
from alpro.shards.clip import DecodeError
from alpro.shards.file_type import find_placeholder, read_head
from alpro.shards.schema import Row
from alpro.shards.sources.manifest import Manifest
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.sources.rows import NO_FILE
from alpro.shards.storage import is_url
from alpro.stages.decode_videos import Config, decode, fetched, make_plan

CORPUS = "data"  # the corpus of `--data`
MAX_EXAMPLES = 3  # items that a line names
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
WORD = re.compile(r"\w+|[^\w\s]")  # a word or a punctuation mark: at least one token


@dataclass(frozen=True)
class DataReport:
    """What a run would find in its data."""

    form: str
    items: int
    kinds: Mapping[str, int]
    splits: Mapping[str, Mapping[str, Any]]  # as `DecodePlan.splits`, with the different answers
    split_source: str
    problems: list[str]  # what would end a run, or make it useless
    findings: list[str]  # what a user should know


@dataclass
class RowCounts:
    """What the rows of the data have."""

    kinds: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    placeholders: Counter[str] = field(default_factory=Counter)
    without_text: int = 0
    # Hashes by split, a set for each item: the texts of millions of items would not fit in memory.
    captions: defaultdict[str, list[set[int]]] = field(default_factory=lambda: defaultdict(list))
    # The number of texts by their length in words.
    captions_by_length: Counter[int] = field(default_factory=Counter)
    questions_by_length: Counter[int] = field(default_factory=Counter)
    answers: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def count_overlap(self, split: str) -> int:
        """Return the number of items of a split with a caption that a training item has too."""
        in_training: set[int] = set().union(*self.captions["train"])
        return sum(not in_training.isdisjoint(item) for item in self.captions[split])


def check_data(settings: PipelineConfig, samples: int = 5) -> DataReport:
    """Describe the corpus `data` of a configuration, decoding a few of its items.

    Args:
        samples: The number of items to decode, evenly spaced.

    Raises:
        InputError: The data cannot be read at all.
    """
    corpus = settings.corpora[CORPUS]
    # Not in a workspace: a check leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as folder:
        manifest = import_corpus(corpus, Path(folder))
        settings = without_questions(settings, {CORPUS: manifest})
        plan = make_plan(corpus.decoding, manifest)
        counts = count_rows(plan)
        splits = plan.splits()
        for split in splits:
            splits[split]["answers"] = len(counts.answers[split])
        rejects = [f"{reject.id}: {reject.detail}".rstrip(": ") for reject in invalid_rows(plan)]
        decoded, failures = decode_samples(
            plan.evenly_spaced(samples), corpus.decoding, Path(folder)
        )

        findings = [
            *list_items(rejects, "invalid rows or failed downloads"),
            *list_items(counts.missing, "missing files"),
            *describe_texts(counts, settings),
            *manifest.about["notes"],
            *filter(None, [plan.group_hint()]),
            f"decoded {decoded} items, {len(failures)} rejected",
            *failures[:MAX_EXAMPLES],
        ]
        return DataReport(
            form=manifest.about["form"],
            items=len(plan.row_indices) + manifest.about["rejects"],
            kinds=counts.kinds,
            splits=splits,
            split_source=describe_split_source(plan),
            problems=[
                *find_unusable(manifest, corpus, counts, len(rejects)),
                *find_undecodable(failures, decoded, corpus),
                *find_empty_splits(manifest, plan, counts, settings),
            ],
            findings=findings,
        )


def count_rows(plan: DecodePlan) -> RowCounts:
    """Count what the rows have that will be decoded, and look for their files on this machine."""
    counts = RowCounts()
    for reject in plan.rejects():
        if reject.reason == "missing":
            counts.missing.append(reject.id)

    for split, row in planned_rows(plan, ["kind", "path", "captions", "questions"]):
        captions = row["captions"]
        questions = row["questions"] or []
        counts.kinds[row["kind"]] += 1
        counts.without_text += not captions and not questions
        counts.captions[split].append(set(map(hash, captions)))
        counts.captions_by_length.update(count_words(caption) for caption in captions)
        counts.questions_by_length.update(count_words(one["question"]) for one in questions)
        counts.answers[split].update(one["answer"] for one in questions)

        # Files at URLs are not looked up, which would take a request each.
        if not is_url(row["path"]):
            try:
                placeholder = find_placeholder(read_head(Path(row["path"])))
            except OSError:
                counts.missing.append(row["path"])
                continue
            if placeholder:
                counts.placeholders[f"files are {placeholder.kind}s: {placeholder.remedy}"] += 1
    return counts


def invalid_rows(plan: DecodePlan) -> Iterator[Any]:
    """Yield the rejects of an import whose files are not just missing."""
    return (reject for reject in plan.rejects() if reject.reason != "missing")


def count_words(text: str) -> int:
    return len(WORD.findall(text))


def decode_samples(rows: Iterable[Row], config: Config, folder: Path) -> tuple[int, list[str]]:
    """Decode items in this process.

    Returns:
        The number of items, and a line for each that cannot be decoded.
    """
    count = 0
    failures = []
    for row in rows:
        count += 1
        try:
            with fetched(row, config.max_bytes, folder) as path:
                decode(row, path, config)
        except DecodeError as error:
            failures.append(f"{row.id}: {error}")
    return count, failures


def describe_split_source(plan: DecodePlan) -> str:
    if plan.named_splits:
        return "named"
    return "generated" if plan.generated_splits else "none"


# Findings.


def list_items(items: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the number of items of a kind, and a few of them."""
    if items:
        yield f"{len(items):,} {kind}, such as {', '.join(items[:MAX_EXAMPLES])}"


def describe_texts(counts: RowCounts, settings: PipelineConfig) -> Iterator[str]:
    """Yield what is wrong with the texts of some items."""
    if counts.without_text:
        yield f"{counts.without_text:,} items without a text"

    known_answers = counts.answers["train"]
    for split in ("validation", "test"):
        # A caption that training has seen makes a score too good.
        overlap = counts.count_overlap(split)
        if overlap:
            items = len(counts.captions[split])
            yield f"{overlap} of {items} {split} items have a caption of a training item"

        # A model of question answering chooses among its training answers.
        answers = counts.answers[split]
        unknown = sum(count for answer, count in answers.items() if answer not in known_answers)
        if unknown:
            yield (
                f"{unknown} of {answers.total()} {split} answers are none of the "
                f"{len(known_answers)} training answers: a model cannot give them"
            )

    for stage, training in settings.trainings().items():
        if CORPUS in training.corpora:
            kind = "questions" if stage == "finetune_qa" else "captions"
            lengths = getattr(counts, f"{kind}_by_length")
            limit = training.max_text_tokens - SPECIAL_TOKENS
            # A tokenizer makes one or more tokens of a word.
            truncated = sum(texts for length, texts in lengths.items() if length > limit)
            if truncated:
                yield (
                    f"{stage}.max_text_tokens = {training.max_text_tokens} truncates at least "
                    f"{truncated:,} of {lengths.total():,} {kind}"
                )


# Problems.


def find_unusable(
    manifest: Manifest, corpus: Corpus, counts: RowCounts, invalid: int
) -> Iterator[str]:
    """Yield a problem for files that are placeholders, and one if too many items are unusable."""
    for reason, count in counts.placeholders.items():
        yield f"{count} {reason}"

    about = manifest.about
    items = counts.kinds.total() + about["rejects"]
    unusable = invalid + len(counts.missing) + counts.without_text
    if unusable > corpus.max_reject_share * items:
        line = (
            f"{unusable} of {items} items have no file, no text or an invalid row, more than "
            f"max_reject_share = {corpus.max_reject_share:g} allows"
        )
        # What the files are called, if the names of the table are not quite theirs.
        hints = [note for note in about["notes"] if NO_FILE in note]
        yield "; ".join([line, *hints])


def find_undecodable(failures: Sequence[str], decoded: int, corpus: Corpus) -> Iterator[str]:
    """Yield a problem if too many of the decoded items were rejected."""
    if len(failures) > corpus.max_reject_share * max(1, decoded):
        yield f"{len(failures)} of {decoded} items cannot be decoded"


def find_empty_splits(
    manifest: Manifest, plan: DecodePlan, counts: RowCounts, settings: PipelineConfig
) -> Iterator[str]:
    """Yield a problem if a split has nothing to train on or to evaluate."""
    splits = plan.splits()
    if not any(texts["items"] for texts in splits.values()):
        hints = [note for note in manifest.about["notes"] if "caption" in note]
        yield "; ".join(["no captions and no questions", *hints])
        return
    if not splits["train"]["items"]:
        yield "no item of the split train has a text"

    try:
        check_manifest(settings, settings.evaluate, CORPUS, manifest)
    except InputError as error:
        yield str(error)

    items = splits["test"]["items"]
    if items and counts.count_overlap("test") >= items:
        yield (
            "every test item has a caption of a training item, and is left out "
            "(evaluate.exclude_overlap)"
        )
