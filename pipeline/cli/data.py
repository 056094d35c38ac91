"""`alpro data ...`: data before and after decoding."""

import argparse
import sys
from typing import Any

from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.pipeline.cli.arguments import ARTIFACT, add_action, add_group, add_json, add_workspace, print_json, user_path


def add_data_commands(commands: Any) -> None:
    """`alpro data ...`: the commands about data, before and after decoding."""
    actions = add_group(commands, "data", "check data before a run, describe decoded corpora")
    add_check(actions)
    add_inspect(actions)


def add_check(actions: Any) -> None:
    parser = add_action(
        actions,
        "check",
        check,
        "what is there, what is missing, and the splits",
        description="Reads every row of a manifest, folder or set of shards, decodes a few items, and prints what is "
        "there, what is missing, and the splits. The exit status is 1 if a run would fail.",
    )
    parser.add_argument("data", metavar="FOLDER_OR_MANIFEST", help="your videos, as for `alpro run --data`")
    parser.add_argument(
        "--config",
        default="own_videos",
        metavar="NAME_OR_FILE",
        help="the configuration whose decoding settings are used (default: own_videos)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change one value, such as corpora.data.frames=16; repeatable",
    )
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="number of items to decode (default: 5)")
    add_json(parser)


def add_inspect(actions: Any) -> None:
    parser = add_action(
        actions,
        "inspect",
        inspect_corpora,
        "describe decoded corpora: counts, lengths, captions, overlap of test and training",
        description="Prints counts, lengths, captions, repeated captions, and how many test videos also occur in "
        "training.",
    )
    parser.add_argument("corpora", nargs="+", metavar="CORPUS", help=f"a decoded corpus: {ARTIFACT} or URL")
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="write inspect.json and sheets of frames there")
    parser.add_argument(
        "--max-samples",
        type=int,
        default=20_000,
        metavar="N",
        help="maximum number of samples whose frames are compared, validation and test first (default: 20000; 0: none)",
    )
    add_json(parser)
    add_workspace(parser, "folder of the artifacts")


def check(arguments: argparse.Namespace) -> int:
    """`alpro data check`. Exit status 1 if something would end a run."""
    from alpro.pipeline.config.pipeline_config import load_config
    from alpro.shards.storage import located
    from alpro.stages.corpora.check_data import check_data

    settings = load_config(arguments.config, arguments.data, arguments.changes)
    corpus = settings.corpora["data"]
    if corpus.shards:
        raise InputError("corpora.data.shards are not decoded; `alpro data inspect` describes decoded corpora")
    paths = corpus.annotation_files, corpus.names_root
    stages = settings.trainings().items()
    lengths = {stage: training.max_text_tokens for stage, training in stages if "data" in training.corpora}
    report = check_data(located(corpus.data), corpus.decoding, *paths, arguments.samples, lengths)
    if arguments.json:
        print_json(report)
    else:
        print_check(report)
    return 1 if report["problems"] else 0


def inspect_corpora(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.reports.terminal import print_inspection
    from alpro.shards.inspect_corpus import inspect, save
    from alpro.shards.storage import absolute

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


def print_check(report: dict[str, Any]) -> None:
    """Prints the report of `check_data`."""
    kinds = " and ".join(f"{count:,} {kind}s" for kind, count in report["kinds"].items())
    print(f"{report['data']}: {report['form']}; {report['items']:,} items ({kinds})")
    for split, texts in report["splits"].items():
        counts = ", ".join(f"{texts[name]:,} {name}" for name in ("captions", "questions"))
        print(f"  {split:10} {texts['items']:>9,} items, {counts}")
    print(f"  splits     {report['split_source']}")
    bad = report["bad_rows"]
    for count, what, examples in (
        (bad["count"], "invalid rows or failed downloads", bad["examples"]),
        (report["missing"], "missing files", report["missing_examples"]),
        (report["without_text"], "items without a text", []),
    ):
        if count:
            print(f"  {count:,} {what}{''.join(f'{chr(10)}    {example}' for example in examples)}")
    for split, shared in report["also_in_training"].items():
        if shared["captions"]:
            of = f"{shared['captions']} of {shared['items']} {split} items"
            print(f"  {of} have a caption that a training item has too")
    for split, copies in report["copies_of_training"].items():
        if copies:
            print(f"  {len(copies)} {split} files are copies of training files, such as {copies[0]}")
    cut: dict[str, list[str]] = {}
    for stage, texts in report["long_texts"].items():
        if texts["cut"]:
            share = f"{texts['cut'] / texts['texts']:.1%}"
            what = f"at least {texts['cut']:,} of {texts['texts']:,} {texts['of']} ({share})"
            cut.setdefault(f"max_text_tokens = {texts['max_text_tokens']} cuts {what}", []).append(stage)
    for line, stages in cut.items():
        print(f"  {line} ({', '.join(stages)})")
    if report["group_hint"]:
        print(f"hint: {report['group_hint']}")
    decoded = report["decoded"]
    print(f"decoded {decoded['items']} items, {sum(decoded['rejected'].values())} rejected")
    for example in decoded["examples"]:
        print(f"    {example}")
    for problem in report["problems"]:
        print(f"problem: {problem}")
