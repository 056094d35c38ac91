"""`alpro data ...`, and the check before a run that the corpora of an evaluation have items to evaluate."""

import argparse
import sys
from pathlib import Path
from typing import Any, cast

from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.pipeline.cli.artifacts import print_json
from alpro.pipeline.config.pipeline_config import Corpus, PipelineConfig, load_config
from alpro.pipeline.plan.steps import required
from alpro.pipeline.reports.terminal import console, print_inspection
from alpro.pipeline.store.artifacts import Step, Store
from alpro.progress import rough_duration
from alpro.shards.storage import absolute, located
from alpro.stages import EVALUATIONS, TRAININGS
from alpro.stages.corpora.check_data import check_data, items_of_split
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig


def check(arguments: argparse.Namespace) -> int:
    """`alpro data check`. Exit status 1 if something would end a run."""
    settings = load_config(arguments.config, arguments.data, arguments.changes)
    corpus = settings.corpora["data"]
    if corpus.shards:
        raise InputError("corpora.data.shards are not decoded; `alpro data inspect` describes decoded corpora")
    config, paths = decoding_of(corpus)
    stages = ((stage, getattr(settings, stage, None)) for stage in TRAININGS)
    lengths = {stage: values.max_text_tokens for stage, values in stages if values and "data" in values.corpora}
    report = check_data(located(corpus.data), config, *paths, samples=arguments.samples, max_text_tokens=lengths)
    if arguments.json:
        print_json(report)
    else:
        print_check(report)
    return 1 if report["problems"] else 0


def inspect_corpora(arguments: argparse.Namespace) -> None:
    """`alpro data inspect`."""
    from alpro.shards.inspect_corpus import inspect, save

    folders = [
        place if isinstance(place, str) or place.is_dir() else find_artifact(name, arguments.workspace)[0]
        for name, place in ((name, absolute(name)) for name in arguments.corpora)
    ]
    report = inspect(folders, arguments.max_samples)
    if arguments.json:
        print_json(report)
    else:
        print_inspection(report)
    if arguments.out:
        files = save(report, folders, arguments.out)
        print(*files, sep=", ", file=sys.stderr if arguments.json else sys.stdout)


def decoding_of(corpus: Corpus) -> tuple[DecodeConfig, tuple[dict[str, Path], Path | None]]:
    """The configuration of the stage that decodes a corpus, and its annotation files with the root of their names."""
    config = DecodeConfig.model_validate(corpus.model_dump(exclude={"data", "shards", "annotations", "root"}))
    return config, (corpus.annotation_files, Path(corpus.root) if corpus.root else None)


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
    for split, shared in report["also_in_training"].items():
        if shared["captions"]:
            show(
                f"  {shared['captions']} of {shared['items']} {split} items have a caption that a training item has too"
            )
    cut: dict[str, list[str]] = {}
    for stage, texts in report["long_texts"].items():
        if texts["cut"]:
            what = f"at least {texts['cut']:,} of {texts['texts']:,} {texts['of']}"
            cut.setdefault(f"max_text_tokens = {texts['max_text_tokens']} cuts {what}", []).append(stage)
    for line, stages in cut.items():
        show(f"  {line} ({', '.join(stages)})")
    if report["group_hint"]:
        show(f"hint: {report['group_hint']}")
    decoded, cost = report["decoded"], report["estimate"]
    rejected = sum(decoded["rejected"].values())
    show(f"decoded {decoded['items']} items in {decoded['seconds']:.1f} s, {rejected} rejected")
    for example in decoded["examples"]:
        show(f"    {example}")
    if decoded["items"] > rejected:
        show(
            f"all of them: about {rough_duration(cost['seconds'])} with {cost['workers']} workers, and "
            f"{cost['bytes'] / 1e9:.2g} GB ({cost['free_bytes'] / 1e9:.0f} GB are free)"
        )
    for problem in report["problems"]:
        show(f"problem: {problem}")


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
