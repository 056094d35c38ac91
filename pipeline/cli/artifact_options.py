"""The options of `alpro artifacts ...`, `alpro data ...` and `alpro compare`. Their commands are in
`artifact_commands.py` and `data_commands.py`, which are only imported to run one."""

import argparse
from typing import Any

from alpro.pipeline.cli.arguments import add_action, add_group, add_json, add_tracking_uri, add_workspace, user_path

ARTIFACT = (
    "a stage (its newest artifact is taken), a fingerprint as `alpro artifacts ls` prints it or its first characters, "
    "STAGE@FINGERPRINT, or a folder"
)


def add_artifact_commands(commands: Any) -> None:
    """`alpro artifacts ...`: the commands about the artifacts of a workspace."""
    actions = add_group(commands, "artifacts", "list, show, verify and remove artifacts")
    listing = add_action(actions, "ls", "list the artifacts, their inputs and their users")
    show = add_action(actions, "show", "show one artifact: configuration, inputs, counts, metrics")
    lineage = add_action(
        actions, "lineage", "show everything that an artifact was built from, and the command that builds it again"
    )
    verify = add_action(
        actions, "verify", "read every file of artifacts, and print which are damaged, missing or extra"
    )
    collect = add_action(actions, "gc", "list the artifacts that no run in MLflow needs, and with --yes remove them")
    for parser in (show, lineage):
        parser.add_argument("artifact", metavar="ARTIFACT", help=ARTIFACT)
    verify.add_argument(
        "artifacts", nargs="*", metavar="ARTIFACT", help="as `lineage` takes them (default: all artifacts)"
    )
    for parser in (listing, show, lineage, verify, collect):
        add_json(parser)
        add_workspace(parser, "folder of the artifacts")
    collect.add_argument("--yes", action="store_true", help="remove them")
    add_tracking_uri(collect)


def add_data_commands(commands: Any) -> None:
    """`alpro data ...`: the commands about data, before and after decoding."""
    actions = add_group(commands, "data", "check data before a run, describe decoded corpora")
    add_check(actions)
    add_inspect(actions)


def add_check(actions: Any) -> None:
    parser = add_action(
        actions,
        "check",
        "what is there, what is missing, the splits, and an estimate of time and disk space",
        description="Reads every row of a manifest, folder or set of shards, decodes a few items, and prints what is "
        "there, what is missing, the splits, and an estimate of time and disk space. The exit status is 1 if a run "
        "would fail.",
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
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="number of items to decode (default: 20)")
    add_json(parser)


def add_inspect(actions: Any) -> None:
    parser = add_action(
        actions,
        "inspect",
        "describe decoded corpora: counts, lengths, captions, overlap of test and training",
        description="Prints counts, lengths, captions, repeated captions, and how many test videos also occur in "
        "training.",
    )
    parser.add_argument(
        "corpora",
        nargs="+",
        metavar="CORPUS",
        help=f"a decoded corpus: {ARTIFACT} or URL",
    )
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


def add_compare(commands: Any) -> None:
    """`alpro compare`."""
    parser: argparse.ArgumentParser = add_action(
        commands,
        "compare",
        "compare evaluations score by score",
        description="Prints what differs between artifacts of evaluate (or of zero_shot) in configuration, data, code "
        "and versions, and for each score that they have over the same queries the values, the difference of each to "
        "the first, its 95 % paired bootstrap interval, and the p value of a paired permutation test, by test video. "
        "Writes the same as a page.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"two or more evaluations: {ARTIFACT}, or the name of a pipeline's run in MLflow",
    )
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="the page (default: WORKSPACE/reports/compare-RUN-RUN.html)"
    )
    add_json(parser)
    add_workspace(parser, "folder of the artifacts")
