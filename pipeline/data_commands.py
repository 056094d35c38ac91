"""`alpro data check`, and the check before a run that the corpora of an evaluation have items to evaluate."""

import argparse
import json
from pathlib import Path
from typing import Any, cast

from alpro.errors import InputError
from alpro.pipeline.artifacts.store import Step, Store
from alpro.pipeline.config import Corpus, PipelineConfig, load_config
from alpro.pipeline.console import console
from alpro.pipeline.steps import required
from alpro.shards.storage import located
from alpro.stages import EVALUATIONS
from alpro.stages.corpora.check_data import check_data, items_of_split
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig


def check(arguments: argparse.Namespace) -> int:
    """`alpro data check`. Exit status 1 if something would end a run."""
    corpus = load_config(arguments.config, arguments.data, arguments.changes).corpora["data"]
    if corpus.shards:
        raise InputError("corpora.data.shards are not decoded; `alpro data inspect` describes decoded corpora")
    config, paths = decoding_of(corpus)
    report = check_data(located(corpus.data), config, *paths, samples=arguments.samples)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print_check(report)
    return 1 if report["problems"] else 0


def decoding_of(corpus: Corpus) -> tuple[DecodeConfig, tuple[dict[str, Path], Path | None]]:
    """The configuration of the stage that decodes a corpus, and its annotation files with the root of their names."""
    config = DecodeConfig.model_validate(corpus.model_dump(exclude={"data", "shards", "annotations", "root"}))
    files: dict[str, Path] = {name: Path(file) for name, file in corpus.annotations.items()}
    return config, (files, Path(corpus.root) if corpus.root else None)


def print_check(report: dict[str, Any]) -> None:
    """Prints the report of `check_data`."""

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    kinds = " and ".join(f"{count:,} {kind}s" for kind, count in report["kinds"].items())
    show(f"{report['data']}: {report['form']}; {report['items']:,} items ({kinds})")
    for split, texts in report["splits"].items():
        show(
            f"  {split:10} {texts['items']:>9,} items, {texts['captions']:,} captions, {texts['questions']:,} questions"
        )
    show(f"  splits     {report['split_source']}")
    bad = report["bad_rows"]
    for count, what, examples in (
        (bad["count"], "invalid rows or failed downloads", bad["examples"]),
        (report["missing"], "missing files", report["missing_examples"]),
        (report["without_text"], "items without a text", []),
    ):
        if count:
            show(f"  {count:,} {what}{''.join(f'{chr(10)}    {example}' for example in examples)}")
    decoded, cost = report["decoded"], report["estimate"]
    rejected = sum(decoded["rejected"].values())
    show(f"decoded {decoded['items']} items in {decoded['seconds']:.1f} s, {rejected} rejected")
    for example in decoded["examples"]:
        show(f"    {example}")
    if decoded["items"] > rejected:
        show(
            f"all of them: about {duration(cost['seconds'])} with {cost['workers']} workers, and "
            f"{cost['bytes'] / 1e9:.2g} GB ({cost['free_bytes'] / 1e9:.0f} GB are free)"
        )
    for problem in report["problems"]:
        show(f"problem: {problem}")


def duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two.

    >>> [duration(seconds) for seconds in (0.2, 100, 400, 10_000, 1_000_000)]
    ['1 s', '100 s', '7 minutes', '3 hours', '12 days']
    """
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(1, round(seconds))} s"


def check_test_items(settings: PipelineConfig, steps: list[Step], store: Store) -> None:
    """Raises InputError, before anything is decoded, if a corpus that will be evaluated has no item to evaluate."""
    wanted = required(steps, store)
    for step in wanted:
        if step.stage not in EVALUATIONS or store.find(step):
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            corpus, decoding = settings.corpora[name], step.inputs[name]
            if not corpus.data or decoding not in wanted or store.find(decoding) or store.is_shared(decoding):
                continue
            decode_config, paths = decoding_of(corpus)
            counts, why = items_of_split(located(corpus.data), decode_config, config.split, *paths)
            for column, task in TASKS.items():
                if getattr(config, task) == name and not counts[column]:
                    reason = f": {why}" if why else ""
                    raise InputError(
                        f"{name}: no {config.split} item has {column}{reason}; assign some in the column split, raise "
                        f"corpora.{name}.{config.split}, or set evaluate.{task} to an empty string"
                    )
