"""`alpro config ...` and `alpro data ...`: what a run reads, configurations and data."""

import re
from itertools import takewhile
from typing import Any

from cyclopts import App

from alpro.errors import InputError
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Count,
    Source,
    Workspace,
    check_exists,
    toml_text,
)

FIRST = ("sample", "tiny")  # what runs without data

config_group = App(name="config", help="List and show configurations.")
data_group = App(name="data", help="Check data before a run.")


@config_group.command(name="list")
def list_configs() -> None:
    """List the shipped configurations."""
    from alpro.pipeline.config.load import CONFIGS, shipped
    from alpro.pipeline.reports.terminal import print_rows

    names = sorted(shipped(), key=lambda name: (name not in FIRST, name))
    rows = [
        {"name": name, "it runs": first_sentence((CONFIGS / f"{name}.toml").read_text("utf-8"))}
        for name in names
    ]
    print_rows(rows)


def first_sentence(text: str) -> str:
    """Return the first sentence of the comment that a configuration begins with, which may go over several lines.

    >>> first_sentence("# Videos of yours,\\n# every stage. Small.\\nname = 1")
    'Videos of yours, every stage'
    """
    comment = " ".join(
        line.removeprefix("#").strip()
        for line in takewhile(lambda line: line.startswith("#"), text.splitlines())
    )

    # A dot inside of a word, as in a file's name, ends no sentence.
    return re.split(r"\.(?:\s|$)", comment, maxsplit=1)[0]


@config_group.command(name="show")
def show_config(
    config: str, /, *, source: Source = Source(), workspace: Workspace = WORKSPACE
) -> None:
    """Print a configuration with all its values, as TOML.

    Args:
        config: A shipped configuration, or a TOML file, as for `alpro run --config`.
    """
    from alpro.pipeline.plan.models import read_settings

    settings = read_settings(source.command(config, workspace))
    print(toml_text(settings.as_written()), end="")


@data_group.command
def check(
    data: str, /, *, config: str = "own_videos", set: tuple[str, ...] = (), samples: Count = 5
) -> int:
    """Print what is there, what is missing, and the splits.

    Reads every row of a manifest, folder or set of shards, and decodes a few items. The exit status
    is 1 if a run would fail.

    Args:
        data: Your videos, as for `alpro run --data`.
        config: The configuration whose decoding settings are used.
        set: Change a value, such as corpora.data.frames=16; repeatable.
        samples: Number of items to decode.
    """
    from alpro.pipeline.config.command import Command, data_changes
    from alpro.pipeline.config.load import load_config
    from alpro.pipeline.plan.check_data import check_data
    from alpro.shards.sources.propose import UnknownColumns
    from alpro.shards.storage import located

    check_exists("--data", data)
    settings = load_config(Command(config, data_changes(data, set)))
    corpus = settings.corpora["data"]
    if corpus.shards:
        raise InputError(
            "corpora.data.shards are not decoded; `alpro run index_shards` checks them"
        )

    source = corpus.annotation_files, corpus.names_root, corpus.columns
    stages = settings.trainings().items()
    # The trainings that read this data cut longer texts.
    lengths = {
        stage: training.max_text_tokens for stage, training in stages if "data" in training.corpora
    }

    try:
        report = check_data(located(corpus.data), corpus.decoding, *source, samples, lengths)
    except UnknownColumns as error:
        rows = "\n  ".join(["With these columns, the first rows are:", *error.rows])
        print(f"{error}\n\n{rows}")
        return 2
    print_check(report)
    return 1 if report["problems"] else 0


def print_check(report: dict[str, Any]) -> None:
    """Print the report of `check_data`."""
    from alpro.pipeline.reports.terminal import print_rows

    kinds = " and ".join(f"{count:,} {kind}s" for kind, count in report["kinds"].items())
    problems = report["problems"]
    verdict = f"; a run fails: {len(problems)} problems" if problems else "; ready to run"
    if report["notes"]:
        verdict += f" ({len(report['notes'])} notes below)"
    print(f"{report['data']}: {report['form']}; {report['items']:,} items ({kinds}){verdict}")

    for problem in problems:
        print(f"problem: {problem}")

    counts = ("items", "captions", "questions", "answers")
    splits = report["splits"].items()
    print_rows([{"split": split, **{key: texts[key] for key in counts}} for split, texts in splits])
    print(f"splits: {report['split_source']}")

    bad = report["bad_rows"]
    decoded = report["decoded"]
    for count, what, examples in (
        (bad["count"], "invalid rows or failed downloads", bad["examples"]),
        (report["missing"], "missing files", report["missing_examples"]),
        (report["without_text"], "items without a text", []),
    ):
        if count:
            print(f"  {count:,} {what}", *examples, sep="\n    ")

    # A caption that training has seen makes a score too good.
    for split, count in report["also_in_training"].items():
        if count:
            print(
                f"  {count} of {report['splits'][split]['items']} {split} items have a caption of "
                f"a training item"
            )

    for stage, texts in report["long_texts"].items():
        if texts["cut"]:
            of = f"{texts['texts']:,} {texts['of']} ({texts['cut'] / texts['texts']:.1%})"
            print(
                f"  {stage}.max_text_tokens = {texts['max_text_tokens']} cuts at least "
                f"{texts['cut']:,} of {of}"
            )

    # finetune_qa chooses among its training answers.
    answers = report["answers"]
    for split in ("validation", "test"):
        if answers[split]["not_in_training"]:
            print(
                f"  {answers[split]['not_in_training']} of {answers[split]['answers']} {split} "
                f"answers are none of the "
                f"{answers['training']} training answers: a model cannot give them"
            )
    if answers["spellings"]:
        print(
            f"  {answers['spellings']} training answers differ from another only in case or a "
            f"final dot"
        )

    for note in report["notes"]:
        print(f"note: {note}")
    if report["group_hint"]:
        print(f"hint: {report['group_hint']}")

    rejected = sum(decoded["rejected"].values())
    print(
        f"decoded {decoded['items']} items, {rejected} rejected", *decoded["examples"], sep="\n    "
    )
