"""Checks the data of a configuration before it is decoded: what is there, what is missing, and what
would end a run.

All rows are imported. Only a few items are decoded; no other media are read.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus, PipelineConfig
from alpro.pipeline.plan.checks import check_manifest, planned_rows
from alpro.pipeline.plan.corpora import import_corpus
from alpro.pipeline.plan.plan import without_questions
from alpro.shards.clip import DecodeError
from alpro.shards.schema import SPLITS, Row
from alpro.shards.sources.manifest import Manifest
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.sources.rows import NO_FILE
from alpro.stages.decode_videos import Config, check_texts, decode, fetched, make_plan

CORPUS = "data"  # the corpus of `--data`
MAX_EXAMPLES = 3  # items that a line names


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


class Rows:
    """What the rows of the data have, and which of their files are missing."""

    def __init__(self, plan: DecodePlan):
        self.kinds = Counter[str]()
        self.invalid: list[str] = []
        self.missing: list[str] = []
        self.without_text = 0
        # Hashes, a set for each item: the texts of millions of items would not fit in memory.
        self.captions: dict[str, list[set[int]]] = {split: [] for split in SPLITS}
        self.answers = {split: Counter[str]() for split in SPLITS}

        for reject in plan.rejects():
            rejects = self.missing if reject.reason == "missing" else self.invalid
            line = f"{reject.id}: {reject.detail}"
            rejects.append(line.rstrip(": "))
        for split, row in planned_rows(plan, ["kind", "captions", "questions"]):
            self._add_texts(split, row["captions"], row["questions"] or [])
            self.kinds[row["kind"]] += 1

    def _add_texts(self, split: str, captions: list[str], questions: list[dict[str, str]]) -> None:
        self.without_text += not captions and not questions
        hashes = set(map(hash, captions))
        answers = [asked["answer"] for asked in questions]
        self.captions[split].append(hashes)
        self.answers[split].update(answers)

    def count_overlap(self, split: str) -> int:
        """Return the number of items of a split with a caption that a training item has too."""
        in_training: set[int] = set().union(*self.captions["train"])
        items = self.captions[split]
        return sum(not in_training.isdisjoint(item) for item in items)


def check_data(settings: PipelineConfig, samples: int = 5) -> DataReport:
    """Describe the corpus `data` of a configuration, decoding a few of its items.

    Args:
        samples: The number of items to decode, evenly spaced.

    Raises:
        InputError: If the data cannot be read at all.
    """
    corpus = settings.corpora[CORPUS]
    # A temporary folder, because a check leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as folder:
        manifest = import_corpus(corpus, Path(folder))
        settings = without_questions(settings, {CORPUS: manifest})
        plan = make_plan(corpus.decoding, manifest)
        rows = Rows(plan)
        decoded = plan.evenly_spaced(samples)
        failures = decode_samples(decoded, corpus.decoding, Path(folder))

        problems = [*find_unusable(manifest, corpus, rows)]
        max_failures = corpus.max_reject_share * max(1, len(decoded))
        if len(failures) > max_failures:
            problems.append(f"{len(failures)} of {len(decoded)} items cannot be decoded")
        problems += find_empty_splits(manifest, plan, rows, settings)

        findings = [
            *list_items(rows.invalid, "invalid rows or failed downloads"),
            *list_items(rows.missing, "missing files"),
            *describe_texts(rows),
        ]
        findings += [f"note: {note}" for note in manifest.about["notes"]]
        for table, names in manifest.about["stored"].items():
            findings.append(
                f"{table}: only stored, unless `columns` names them: {', '.join(names)}"
            )
        hint = plan.group_hint()
        if hint:
            findings.append(f"hint: {hint}")
        findings.append(f"decoded {len(decoded)} items, {len(failures)} rejected")
        findings += failures[:MAX_EXAMPLES]
        about = manifest.about
        return DataReport(
            form=about["form"],
            items=rows.kinds.total() + about["rejects"],
            kinds=rows.kinds,
            splits=plan.splits(),
            split_source=describe_split_source(plan),
            problems=problems,
            findings=findings,
        )


def decode_samples(rows: Iterable[Row], config: Config, folder: Path) -> list[str]:
    """Decode items in this process. Return a line for each that cannot be decoded."""
    failures = []
    for row in rows:
        try:
            with fetched(row, config.max_bytes, folder) as path:
                decode(row, path, config)
        except DecodeError as error:
            failures.append(f"{row.id}: {error}")
    return failures


def describe_split_source(plan: DecodePlan) -> str:
    if plan.named_splits:
        return "named"
    return "generated" if plan.generated_splits else "none"


# Findings.


def list_items(items: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the number of items of a kind, and a few of them."""
    if items:
        examples = ", ".join(items[:MAX_EXAMPLES])
        yield f"{len(items):,} {kind}, such as {examples}"


def describe_texts(rows: Rows) -> Iterator[str]:
    """Yield what is wrong with the texts of some items."""
    if rows.without_text:
        yield f"{rows.without_text:,} items without a text"

    known_answers = rows.answers["train"]
    for split in ("validation", "test"):
        # A caption that training has seen makes a score too good.
        overlap = rows.count_overlap(split)
        if overlap:
            items = len(rows.captions[split])
            yield f"{overlap} of {items} {split} items have a caption of a training item"

        # A model of question answering chooses among its training answers.
        answers = rows.answers[split]
        counts = [count for answer, count in answers.items() if answer not in known_answers]
        unknown = sum(counts)
        if unknown:
            yield (
                f"{unknown} of {answers.total()} {split} answers are none of the "
                f"{len(known_answers)} training answers: a model cannot give them"
            )


# Problems.


def find_unusable(manifest: Manifest, corpus: Corpus, rows: Rows) -> Iterator[str]:
    """Yield a problem if too many items have no file, no text or an invalid row."""
    about = manifest.about
    items = rows.kinds.total() + about["rejects"]
    unusable = len(rows.invalid) + len(rows.missing) + rows.without_text
    allowed = corpus.max_reject_share * items
    if unusable > allowed:
        line = (
            f"{unusable} of {items} items have no file, no text or an invalid row, more than "
            f"max_reject_share = {corpus.max_reject_share:g} allows"
        )
        # What the files are called, if the names of the table are not quite theirs.
        hints = [note for note in about["notes"] if NO_FILE in note]
        yield "; ".join([line, *hints])


def find_empty_splits(
    manifest: Manifest, plan: DecodePlan, rows: Rows, settings: PipelineConfig
) -> Iterator[str]:
    """Yield a problem if a split has nothing to train on or to evaluate."""
    splits = plan.splits()
    try:
        check_texts(plan)
    except InputError as error:
        yield str(error)
        return
    if not splits["train"]["items"]:
        yield "no item of the split train has a text"

    try:
        check_manifest(settings, settings.evaluate, CORPUS, manifest)
    except InputError as error:
        yield str(error)

    items = splits["test"]["items"]
    if items and rows.count_overlap("test") >= items:
        yield (
            "every test item has a caption of a training item, and is left out "
            "(evaluate.exclude_overlap)"
        )
