"""Checks the data of a configuration before it is decoded: what is there, what is missing, and what
would end a run.

All rows are imported. Only a few items are decoded; no other media are read.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.checks import SELECTION_TEXTS, check_splits
from alpro.pipeline.plan.plan import import_corpus, without_questions
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import fetch
from alpro.shards.schema import Row
from alpro.stages import EVALUATIONS
from alpro.stages.decode_videos import Config, decode, make_plan

CORPUS = "data"  # the corpus of `--data`
SAMPLES = 5  # items to decode
MAX_EXAMPLES = 3  # items that a line names
MAX_STORED_COLUMNS = 20


class DataReport(NamedTuple):
    """What a run would find in its data."""

    form: str
    items: int
    splits: Mapping[str, Mapping[str, Any]]  # as `DecodePlan.splits`
    problems: list[str]  # what would end a run, or make it useless
    findings: list[str]  # what a user should know


def check_data(settings: PipelineConfig) -> DataReport:
    """Describe the corpus `data` of a configuration, decoding a few of its items.

    Raises:
        InputError: If the data cannot be read at all.
    """
    corpus = settings.corpora[CORPUS]
    # A temporary folder, because a check leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="alpro-check-") as folder:
        manifest = import_corpus(corpus, Path(folder))
        settings = without_questions(settings, {CORPUS: manifest})
        plan = make_plan(corpus, manifest)
        decoded = plan.evenly_spaced(SAMPLES)
        failures = decode_samples(decoded, corpus, Path(folder))

        about = manifest.about
        splits = plan.splits()
        rows = len(plan.row_indices)
        items = rows + about["rejects"]
        textless = rows - sum(split["items"] for split in splits.values())

        problems = []
        unusable = about["rejects"] + textless
        if unusable > corpus.max_reject_share * items:
            problems.append(
                f"{unusable} of {items} items have no file, no text or an invalid row, more than "
                f"corpora.data.max_reject_share = {corpus.max_reject_share:g} allows"
            )
        if len(failures) > corpus.max_reject_share * max(1, len(decoded)):
            problems.append(
                f"{len(failures)} of {len(decoded)} items cannot be decoded"
            )
        try:
            for stage in (*EVALUATIONS, *SELECTION_TEXTS):
                config = getattr(settings, stage)
                if config:
                    check_splits(stage, config, CORPUS, plan)
        except InputError as error:
            problems.append(str(error))
        else:
            if not splits["train"]["items"]:
                problems.append("no item of the split train has a text")

        problem_text = "\n".join(problems)
        generated = "generated" if plan.generated_splits else "none"
        source = "named" if plan.named_splits else generated
        findings = [
            f"splits: {source}",
            *list_rejects(plan.reject_table()),
            f"{textless:,} items without a text",
            *list_stored_columns(decoded),
            *(f"note: {note}" for note in about["notes"] if note not in problem_text),
            *(f"hint: {hint}" for hint in filter(None, [plan.group_hint()])),
            f"decoded {len(decoded)} items, {len(failures)} rejected",
            *failures[:MAX_EXAMPLES],
        ]
        return DataReport(about["form"], items, splits, problems, findings)


def list_rejects(rejects: pa.Table) -> Iterator[str]:
    """Yield how many items were rejected for each reason, the most frequent one first, with a few of
    them.

    Args:
        rejects: Rejects of an import or of a corpus, with the columns of REJECTS.
    """
    # Counted by Arrow: a large corpus has millions.
    reasons = rejects["reason"].value_counts().to_pylist()
    for reason in sorted(reasons, key=lambda reason: -reason["counts"]):
        is_alike = pc.field("reason") == reason["values"]
        examples = rejects.filter(is_alike).slice(0, MAX_EXAMPLES)
        texts = [
            f"{reject['id']}: {reject['detail']}".rstrip(": ")
            for reject in examples.to_pylist()
        ]
        yield f"{reason['counts']:,} rejected, {reason['values']}: {', '.join(texts)}"


def list_stored_columns(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the columns without a meaning, which a user may have meant as questions or times."""
    names = dict.fromkeys(name for row in rows for name in row.meta)
    shown = ", ".join([*names][:MAX_STORED_COLUMNS])
    if shown:
        yield f"further columns, whose meaning is set in `columns`: {shown}"


def decode_samples(rows: Iterable[Row], config: Config, folder: Path) -> list[str]:
    """Decode items in this process. Return a line for each that cannot be decoded."""
    failures = []
    for row in rows:
        try:
            with fetch(row.path, config.max_bytes, folder, row.member) as path:
                decode(row, path, config)
        except DecodeError as error:
            failures.append(f"{row.id}: {error}")
    return failures
