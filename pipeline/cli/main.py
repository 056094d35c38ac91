"""The options of the command line. The commands are in `commands.py`, which is only imported to run one, so that
`--help` and usage errors are immediate."""

import argparse
import json
import signal
import sys
from types import FrameType
from typing import Any

from alpro.pipeline.cli.arguments import (
    Parser,
    add_action,
    add_group,
    add_json,
    add_tracking_uri,
    add_verbosity,
    add_workspace,
    port,
    user_path,
)
from alpro.pipeline.cli.artifact_options import add_artifact_commands, add_compare, add_data_commands
from alpro.pipeline.cli.model_options import add_model_commands
from alpro.stages import STAGES


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
        from alpro.pipeline.cli.run import execute

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


class Completion(argparse.Action):
    """Prints the completion script of a shell and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        from alpro.pipeline.cli.completion import completion

        print(completion(parser, values))
        parser.exit()


def parser() -> Parser:
    """The parser of the command line. `command` is the name of the command, or None."""
    top = Parser(
        prog="alpro",
        description="Captioned videos to a video-language model, the ALPRO way, stage by stage. Start with: alpro run",
        epilog="Results of stages are cached: a second run executes only missing stages and those that a change "
        "affects.",
    )
    top.add_argument("--version", action=Version, help="print the version and exit")
    top.add_argument(
        "--completion", action=Completion, choices=("bash", "zsh"), help="print the completion script of a shell"
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    add_stage_commands(commands)
    add_artifact_commands(commands)
    add_data_commands(commands)
    add_config_commands(commands)
    add_model_commands(commands)
    add_compare(commands)
    ui_parser = add_action(commands, "ui", "open the MLflow pages on this machine")
    ui_parser.add_argument("--port", type=port, default=5000, help="port to listen on (default 5000)")
    add_workspace(ui_parser, "folder of the artifacts")
    add_up(commands)
    return top


def add_stage_commands(commands: Any) -> None:
    """The commands that run stages: all of them, a study, and one for each stage."""
    run_parser = add_action(
        commands,
        "run",
        "run the whole pipeline",
        description="Runs the pipeline: every stage that has no cached result.",
    )
    add_run_options(run_parser)
    run_parser.set_defaults(stage="")
    study_parser = add_action(
        commands,
        "study",
        "run variants of a configuration with several seeds",
        description="Runs every variant of a study with every seed, and prints the mean of each score, its interval "
        "over the seeds, and the difference to the first variant. Results of stages are shared and cached.",
    )
    study_parser.add_argument("file", metavar="NAME_OR_FILE", help="a shipped study, or a TOML file")
    add_run_options(study_parser, default="of the study")
    for stage in STAGES:
        stage_parser = add_action(
            commands, stage.replace("_", "-"), STAGES[stage].help, "Missing inputs are built first."
        )
        add_run_options(stage_parser)
        stage_parser.set_defaults(stage=stage)


def add_config_commands(commands: Any) -> None:
    """`alpro config ...`: the commands about configurations."""
    actions = add_group(commands, "config", "list, show and copy configurations")
    add_json(add_action(actions, "list", "list the shipped configurations"))
    show = add_action(actions, "show", "print a configuration with all its values, as TOML")
    show.add_argument("config", metavar="NAME_OR_FILE", help="as for `alpro run --config`")
    add_source_options(show)
    init = add_action(actions, "init", "write a copy of a shipped configuration to edit")
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


def add_run_options(command: argparse.ArgumentParser, default: str = "sample; with --data own_videos") -> None:
    """default: what --config is if it is not given, in words."""
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="only print which stages would run, and which are cached",
    )
    command.add_argument(
        "--config",
        default="",
        metavar="NAME_OR_FILE",
        help="a shipped configuration, or a TOML file; several joined by +, of which later ones complete and override "
        f"the earlier (default: {default})",
    )
    add_source_options(command)
    add_workspace(command, "folder of artifacts, reports and the MLflow store")
    command.add_argument(
        "--profile", action="store_true", help="write a trace of a few steps of each training stage, for Perfetto"
    )
    add_tracking_uri(command)
    add_json(command)
    add_verbosity(command)


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


def add_up(commands: Any) -> None:
    """`alpro up`."""
    up_parser = add_action(
        commands,
        "up",
        "start Prefect, MLflow and workers here",
        description="Starts a Prefect server, an MLflow server and a worker for each work pool on 127.0.0.1, "
        "deploys every flow, and prints the addresses. Ctrl-C stops all of it.",
    )
    up_parser.add_argument("--check", action="store_true", help="only check ports and databases")
    for name, number in (("prefect", 4200), ("mlflow", 5000)):
        up_parser.add_argument(
            f"--{name}-port", type=port, default=number, metavar="PORT", help=f"port to listen on (default {number})"
        )
    add_workspace(up_parser, "folder of artifacts, reports, databases and logs")


if __name__ == "__main__":
    main()
