"""The options of the command line. The commands are in `commands.py`, which is only imported to run one, so that
`--help` and usage errors are immediate."""

import argparse
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from alpro.pipeline.model_options import add_model_commands
from alpro.pipeline.options import add_tracking_uri, add_workspace, port, user_path
from alpro.stages import STAGES, declaration

MODEL_TASKS = ("pretrain", "retrieval", "qa", "prompter")


def main() -> None:
    """Entry point. Prints the help if there is no command."""
    commands = parser()
    arguments = commands.parse_args()
    if arguments.command is None:
        commands.print_help()
        return
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is signal.default_int_handler:  # a background job of a shell ignores Ctrl-C
            signal.signal(signal.SIGINT, interrupt)
        from alpro.pipeline.commands import execute

        status = execute(arguments)
    except BaseException as error:
        # Ctrl-C may reach Prefect where it raises an error of its own.
        if not interrupts and not isinstance(error, KeyboardInterrupt):
            raise
        print("stopped; run the same command again to continue", file=sys.stderr)
        status = 130
    finally:
        signal.signal(signal.SIGINT, before)
    sys.exit(status)


class Version(argparse.Action):
    """Prints the version and exits. Reading it takes time that other commands need not spend."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        from importlib.metadata import version

        print(f"alpro-pipeline {version('alpro-pipeline')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. `command` is the name of the command, or None."""
    top = argparse.ArgumentParser(
        prog="alpro",
        description="Captioned videos to a video-language model, the ALPRO way, stage by stage. Start with: alpro run",
        epilog="Results of stages are cached: a second run executes only missing stages and those that a change "
        "affects.",
    )
    top.add_argument("--version", action=Version, help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    run_parser = commands.add_parser(
        "run", help="run the whole pipeline", description="Runs the pipeline: every stage that has no cached result."
    )
    add_run_options(run_parser)
    run_parser.set_defaults(stage="")
    study_parser = commands.add_parser(
        "study",
        help="run variants of a configuration with several seeds",
        description="Runs every variant of a study with every seed, and prints the mean of each score, its interval "
        "over the seeds, and the difference to the first variant. Results of stages are shared and cached.",
    )
    study_parser.add_argument("file", metavar="NAME_OR_FILE", help="a shipped study, or a TOML file")
    add_run_options(study_parser, config="")
    for stage in STAGES:
        text = declaration(stage).help
        stage_parser = commands.add_parser(
            stage.replace("_", "-"),
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Missing inputs are built first.",
        )
        add_run_options(stage_parser)
        stage_parser.set_defaults(stage=stage)
    add_artifact_commands(commands)
    return top


def add_artifact_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands that read or import artifacts and run no stage."""
    add_store_commands(commands)
    add_data_commands(commands)
    add_config_commands(commands)
    add_model_commands(commands)
    compare_parser = commands.add_parser(
        "compare",
        help="compare evaluations score by score",
        description="Prints what differs between artifacts of evaluate (or of zero_shot) in configuration, data, code "
        "and versions, and for each score that they have over the same queries the values, the difference of each to "
        "the first, its 95 % paired bootstrap interval, and the p value of a paired permutation test, by test video. "
        "Writes the same as a page.",
    )
    add_compare_options(compare_parser)
    add_import_options(
        commands.add_parser(
            "import-checkpoint",
            help="convert an official ALPRO checkpoint",
            description="Reads only the tensors of a checkpoint of the official code and writes a model folder, which "
            "`pretrained` in a configuration takes. The prompter of a pre-training checkpoint is written to "
            "OUT/prompter.",
        )
    )
    ui_parser = commands.add_parser("ui", help="open the MLflow pages on this machine")
    ui_parser.add_argument("--port", type=port, default=5000, help="port to listen on (default 5000)")
    for command in (compare_parser, ui_parser):
        add_workspace(command, "folder of the artifacts")
    add_up_options(
        commands.add_parser(
            "up",
            help="start Prefect, MLflow and workers here",
            description="Starts a Prefect server, an MLflow server and a worker for each work pool on 127.0.0.1, "
            "deploys every flow, and prints the addresses. Ctrl-C stops all of it.",
        )
    )


def add_store_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`alpro artifacts ...`: the commands about the artifacts of a workspace."""
    text = "list, show, verify and remove artifacts"
    group = commands.add_parser("artifacts", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = group.add_subparsers(metavar="COMMAND", required=True)
    descriptions = {
        "ls": "list the artifacts, their inputs and their users",
        "show": "show one artifact: configuration, inputs, counts, metrics",
        "lineage": "show everything that an artifact was built from, and the command that builds it again",
        "verify": "read every file of artifacts, and print which are damaged, missing or extra",
        "gc": "list the artifacts that no run in MLflow needs, and with --yes remove them",
    }
    for name, text in descriptions.items():
        parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parser.set_defaults(command=f"artifacts {name}")
        if name in ("show", "lineage"):
            parser.add_argument(
                "fingerprint", help="its fingerprint as `alpro artifacts ls` prints it, or the first characters"
            )
        if name == "verify":
            parser.add_argument(
                "fingerprints",
                nargs="*",
                metavar="FINGERPRINT",
                help="as `lineage` takes them (default: all artifacts)",
            )
        add_workspace(parser, "folder of the artifacts")
        if name == "gc":
            parser.add_argument("--yes", action="store_true", help="remove them")
            add_tracking_uri(parser)


def add_data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`alpro data ...`: the commands about data, before and after decoding."""
    text = "check data before a run, describe decoded corpora"
    group = commands.add_parser("data", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = group.add_subparsers(metavar="COMMAND", required=True)
    check_parser = actions.add_parser(
        "check",
        help="what is there, what is missing, the splits, and an estimate of time and disk space",
        description="Reads every row of a manifest, folder or set of shards, decodes a few items, and prints what is "
        "there, what is missing, the splits, and an estimate of time and disk space. The exit status is 1 if a run "
        "would fail.",
    )
    check_parser.set_defaults(command="data check")
    add_check_options(check_parser)
    inspect_parser = actions.add_parser(
        "inspect",
        help="describe decoded corpora: counts, lengths, captions, overlap of test and training",
        description="Prints counts, lengths, captions, repeated captions, and how many test videos also occur in "
        "training.",
    )
    inspect_parser.set_defaults(command="data inspect")
    add_inspect_options(inspect_parser)
    add_workspace(inspect_parser, "folder of the artifacts")


def add_config_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`alpro config ...`: the commands about configurations."""
    text = "list, show and copy configurations"
    group = commands.add_parser("config", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = group.add_subparsers(metavar="COMMAND", required=True)
    descriptions = {
        "list": "list the shipped configurations",
        "show": "print a configuration with all its values, as TOML",
        "init": "write a copy of a shipped configuration to edit",
    }
    parsers = {}
    for name, text in descriptions.items():
        parsers[name] = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parsers[name].set_defaults(command=f"config {name}")
    show, init = parsers["show"], parsers["init"]
    show.add_argument("config", metavar="NAME_OR_FILE", help="as for `alpro run --config`")
    add_source_options(show)
    init.add_argument("file", type=user_path, metavar="FILE", help="the file to write, NAME.toml")
    init.add_argument(
        "--from", dest="source", default="own_videos", metavar="NAME", help="the configuration (default: own_videos)"
    )


class Pretrained(argparse.Action):
    """Adds the changes of `--pretrained MODEL_FOLDER` to those of `--set`."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        changes = [f"pretrained={json.dumps(values)}", "train_prompter=false", "pretrain=false"]
        namespace.changes = [*changes, *(namespace.changes or [])]


def add_run_options(command: argparse.ArgumentParser, config: str = "sample") -> None:
    """config: the default of --config; empty: what the study says."""
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="only print which stages would run, which are cached, and the memory that training needs",
    )
    command.add_argument(
        "--config",
        default=config,
        metavar="NAME_OR_FILE",
        help="a shipped configuration, or a TOML file; several joined by +, of which later ones complete and override "
        f"the earlier (default: {config or 'of the study'})",
    )
    add_source_options(command)
    add_workspace(command, "folder of artifacts, reports and the MLflow store")
    command.add_argument(
        "--profile", action="store_true", help="write a trace of a few steps of each training stage, for Perfetto"
    )
    add_tracking_uri(command)


def add_source_options(command: argparse.ArgumentParser) -> None:
    """The options that change a configuration."""
    command.add_argument(
        "--data", default="", metavar="FOLDER_OR_MANIFEST", help="your videos, in place of the configuration's corpora"
    )
    command.add_argument(
        "--pretrained",
        action=Pretrained,
        default=[],
        dest="changes",
        metavar="MODEL_FOLDER",
        help="start from this model, in place of the configuration's prompter and pre-training",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STAGE.KEY=VALUE",
        help="change one value, such as pretrain.lr=1e-4, or leave out a stage: finetune_qa=false; repeatable",
    )


def add_up_options(up_parser: argparse.ArgumentParser) -> None:
    up_parser.add_argument("--check", action="store_true", help="only check whether everything could start")
    for name, number in (("prefect", 4200), ("mlflow", 5000)):
        up_parser.add_argument(
            f"--{name}-port", type=port, default=number, metavar="PORT", help=f"port to listen on (default {number})"
        )
    add_workspace(up_parser, "folder of artifacts, reports, databases and logs")
    up_parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder, or URL, of videos and other files that runs may read besides the workspace; repeatable",
    )


def add_compare_options(compare_parser: argparse.ArgumentParser) -> None:
    compare_parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two or more: the fingerprint of each, its first characters, or the name of a pipeline's run in MLflow",
    )
    compare_parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="the page (default: WORKSPACE/reports/compare-RUN-RUN.html)"
    )
    compare_parser.add_argument("--json", action="store_true", help="print everything as JSON instead of tables")


def add_check_options(check_parser: argparse.ArgumentParser) -> None:
    check_parser.add_argument("data", metavar="FOLDER_OR_MANIFEST", help="your videos, as for `alpro run --data`")
    check_parser.add_argument(
        "--config",
        default="own_videos",
        metavar="NAME_OR_FILE",
        help="the configuration whose decoding settings are used (default: own_videos)",
    )
    check_parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change one value, such as corpora.data.frames=16; repeatable",
    )
    check_parser.add_argument(
        "--samples", type=int, default=20, metavar="N", help="number of items to decode (default: 20)"
    )
    check_parser.add_argument("--json", action="store_true", help="print JSON")


def add_inspect_options(inspect_parser: argparse.ArgumentParser) -> None:
    inspect_parser.add_argument(
        "corpora",
        nargs="+",
        metavar="CORPUS",
        help="a decoded corpus: its fingerprint, as `alpro artifacts ls` prints it, or its folder or URL",
    )
    inspect_parser.add_argument(
        "--out", type=user_path, metavar="FOLDER", help="write inspect.json and sheets of frames there"
    )
    inspect_parser.add_argument(
        "--max-samples",
        type=int,
        default=20_000,
        metavar="N",
        help="maximum number of samples whose frames are compared, validation and test first (default: 20000; 0: none)",
    )


def add_import_options(import_parser: argparse.ArgumentParser) -> None:
    import_parser.add_argument("file", type=user_path, metavar="FILE", help="the checkpoint")
    import_parser.add_argument(
        "out", type=user_path, metavar="OUT", help="the folder to write, which must not exist yet"
    )
    import_parser.add_argument("--task", required=True, choices=MODEL_TASKS, help="what the checkpoint was trained for")
    import_parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        default="bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        help="its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt (default: bert-base-uncased)",
    )
    import_parser.add_argument(
        "--words",
        type=user_path,
        metavar="FILE",
        help="names of the entities (pretrain, prompter) or answers (qa) in the order of the head: a JSON list, JSON "
        "object of word to number (ans2label.json), or lines; without it they are numbered",
    )
    import_parser.add_argument(
        "--max-text-tokens",
        type=int,
        metavar="N",
        help="maximum word pieces of a text, as in its training (default: 30 for pretrain and prompter, 40 for "
        "retrieval and qa; the official DiDeMo model has 50)",
    )


if __name__ == "__main__":
    main()
