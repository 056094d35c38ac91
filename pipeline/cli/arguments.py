"""What several commands share: the parser, groups of commands, options and what their values are."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ARTIFACT = (
    "a stage (its newest artifact is taken), a fingerprint as `alpro artifacts ls` prints it or its first characters, "
    "STAGE@FINGERPRINT, or a folder"
)
Run = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """Reports an error of usage as one line, with the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base class, but an unknown argument is an error, of the command that it was written for."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            name = unknown[0].partition("=")[0]
            hint = nearest(name, options) if name.startswith("-") else ""
            self.error(f"unknown {'option' if name.startswith('-') else 'argument'} {name}{hint}")
        return parsed, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"{self.prog} has no command {value}{nearest(value, action.choices)}")
        super()._check_value(action, value)


def nearest(name: str, names: Any) -> str:
    """A question after the name that is most like a wrong one; empty if none is.

    >>> nearest("pretran", ["run", "pretrain"]), nearest("x", ["run"])
    ('; did you mean pretrain?', '')
    """
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""


def add_group(commands: Any, name: str, text: str) -> Any:
    """A group of commands, `alpro NAME COMMAND`. Returns what `add_action` adds its commands to."""
    return add_action(commands, name, None, text).add_subparsers(metavar="COMMAND", required=True)


def add_action(
    commands: Any, name: str, run: Run | None, text: str, more: str = "", description: str = "", **defaults: Any
) -> Parser:
    """A command or, within a group, `alpro GROUP NAME`. `command` is then "NAME" or "GROUP NAME".

    run: called with the parsed arguments, `defaults` among them; its result is the exit status. text: its line in the
    list of commands. Its own help has `description`, or the text as a sentence followed by `more`.
    """
    description = description or f"{text[0].upper()}{text[1:]}. {more}".rstrip()
    parser: Parser = commands.add_parser(name, help=text, description=description)
    parser.set_defaults(command=parser.prog.partition(" ")[2], run=run, **defaults)
    return parser


def port(text: str) -> int:
    """The number of a port."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port (1 to 65535)")
    return int(text)


def natural(text: str, least: int = 0) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, {least} or more")
    return int(text)


def positive(text: str) -> int:
    return natural(text, 1)


def user_path(text: str) -> Path:
    """A path from the command line. `~` is the home folder, also if the shell does not expand it (--out=~/x)."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)


def add_workspace(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument(
        "--workspace", type=user_path, default="workspace", metavar="FOLDER", help=f"{text} (default: workspace)"
    )


def add_tracking_uri(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tracking-uri", default="", metavar="URI", help="an MLflow server (default: a file in the workspace)"
    )


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of text")


def add_verbosity(command: argparse.ArgumentParser) -> None:
    """-q and -v; `log_level` is the name of a level of `logging`, or empty."""
    levels = command.add_mutually_exclusive_group()
    for name, level, text in (
        ("quiet", "WARNING", "print no progress, only results, warnings and errors"),
        ("verbose", "DEBUG", "also print the paths and processes of the stages"),
    ):
        levels.add_argument(
            f"-{name[0]}", f"--{name}", action="store_const", const=level, default="", dest="log_level", help=text
        )


def print_json(values: Any) -> None:
    print(json.dumps(values, indent=1, ensure_ascii=False))


def add_source_options(command: argparse.ArgumentParser) -> None:
    """The options that change a configuration."""
    command.add_argument(
        "--data", default="", metavar="FOLDER_OR_MANIFEST", help="your videos, in place of the configuration's corpora"
    )
    command.add_argument(
        "--pretrained",
        default="",
        metavar="MODEL",
        help="start from this model (a folder or an artifact), in place of the configuration's prompter and "
        "pre-training",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STAGE.KEY=VALUE",
        help="change one value, such as pretrain.lr=1e-4, or leave out a stage: finetune_qa=false; repeatable",
    )


def changes_of(arguments: argparse.Namespace) -> list[str]:
    """The changes of `--set`, after those of `--pretrained`."""
    if not arguments.pretrained:
        return arguments.changes
    from alpro.inference.find import find_model
    from alpro.stages.encoding.encode import model_folder

    named = arguments.pretrained
    if not Path(named, "config.json").expanduser().is_file():
        named = str(model_folder(find_model(named, arguments.workspace)).resolve())
    return [f"pretrained={json.dumps(named)}", "train_prompter=false", "pretrain=false", *arguments.changes]
