"""The command line's options. What a command does is in `commands.py`, which is imported only to run one, so that
`--help` and a mistyped option answer at once."""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from alpro.stages import STAGES, declaration

TASKS = ("pretrain", "retrieval", "qa", "prompter")


def main() -> None:
    """Entry point. Prints the help if no command is given."""
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
        # Ctrl-C also ends Prefect's server, and Prefect raises errors of its own because it is gone.
        if not interrupts and not isinstance(error, KeyboardInterrupt):
            raise
        print("stopped; run the same command again to continue", file=sys.stderr)
        status = 130
    finally:
        signal.signal(signal.SIGINT, before)
    sys.exit(status)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. The command's name is in `command`, or None."""
    top = argparse.ArgumentParser(
        prog="alpro",
        description="Captioned videos to a video-language model, the ALPRO way, stage by stage. Start with: alpro run",
        epilog="Results of stages are cached: a second run executes only missing stages and those that a change "
        "affects.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    whole = commands.add_parser(
        "run", help="run the whole pipeline", description="Runs the pipeline: every stage that has no cached result."
    )
    add_run_options(whole)
    whole.set_defaults(stage="")
    for stage in STAGES:
        text = declaration(stage).help
        one = commands.add_parser(
            stage.replace("_", "-"),
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Missing inputs are built first.",
        )
        add_run_options(one)
        one.set_defaults(stage=stage)
    listing = commands.add_parser("ls", help="list the artifacts, their inputs and their users")
    showing = commands.add_parser("show", help="show one artifact: configuration, inputs, counts, metrics")
    showing.add_argument("fingerprint", help="its fingerprint as `alpro ls` prints it, or the first characters")
    inspecting = commands.add_parser(
        "inspect",
        help="describe decoded corpora: counts, lengths, captions, overlap of test and training",
        description="Prints counts, lengths, captions, repeated captions, and how many test videos also occur in "
        "training.",
    )
    add_inspect_options(inspecting)
    add_import_options(
        commands.add_parser(
            "import-checkpoint",
            help="convert an official ALPRO checkpoint (.pt) to a model folder",
            description="Reads only the tensors of a checkpoint of the official code and writes a model folder, which "
            "`pretrained` in a configuration takes. The prompter of a pre-training checkpoint is written to "
            "OUT/prompter.",
        )
    )
    page = commands.add_parser("ui", help="open the MLflow pages on this machine")
    page.add_argument("--port", type=port, default=5000, help="port to listen on (default 5000)")
    for command in (listing, showing, inspecting, page):
        add_workspace(command, "folder of the artifacts")
    return top


def port(text: str) -> int:
    """The number of a port."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port (1 to 65535)")
    return int(text)


def user_path(text: str) -> Path:
    """A path as a person types it; `~` is the home folder, also where the shell does not expand it (--out=~/x)."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)


def add_workspace(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument(
        "--workspace", type=user_path, default="workspace", metavar="FOLDER", help=f"{text} (default: workspace)"
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="only print which stages would run and which are cached"
    )
    command.add_argument(
        "--config",
        default="sample",
        metavar="NAME_OR_FILE",
        help="a configuration that ships, or a TOML file (default: sample)",
    )
    command.add_argument(
        "--data", default="", metavar="FOLDER_OR_MANIFEST", help="your videos, instead of the configuration's"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STAGE.KEY=VALUE",
        help="change one value, such as pretrain.lr=1e-4; repeatable",
    )
    add_workspace(command, "folder of artifacts, reports and the MLflow store")
    command.add_argument(
        "--profile", action="store_true", help="write a trace of a few steps of every training that runs, for Perfetto"
    )
    command.add_argument(
        "--tracking-uri", default="", metavar="URI", help="an MLflow server (default: a file in the workspace)"
    )


def add_inspect_options(inspecting: argparse.ArgumentParser) -> None:
    inspecting.add_argument(
        "corpora",
        nargs="+",
        metavar="CORPUS",
        help="a decoded corpus: its fingerprint, as `alpro ls` prints it, or its folder or URL",
    )
    inspecting.add_argument(
        "--out", type=user_path, metavar="FOLDER", help="write inspect.json and sheets of frames there"
    )
    inspecting.add_argument(
        "--looks",
        type=int,
        default=20_000,
        metavar="N",
        help="maximum number of samples whose frames are compared, validation and test first (default: 20000; 0: none)",
    )


def add_import_options(importing: argparse.ArgumentParser) -> None:
    importing.add_argument("file", type=user_path, metavar="FILE", help="the checkpoint")
    importing.add_argument("out", type=user_path, metavar="OUT", help="the folder to write, which must not exist yet")
    importing.add_argument("--task", required=True, choices=TASKS, help="what the checkpoint was trained for")
    importing.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        default="bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        help="its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt (default: bert-base-uncased)",
    )
    importing.add_argument(
        "--words",
        type=user_path,
        metavar="FILE",
        help="names of the entities (pretrain, prompter) or answers (qa) in the order of the head: a JSON list, JSON "
        "object of word to number (ans2label.json), or lines; without it they are numbered",
    )
    importing.add_argument(
        "--max-text-tokens",
        type=int,
        metavar="N",
        help="maximum word pieces of a text, as in its training (default: 30 for pretrain and prompter, 40 for "
        "retrieval and qa; the official DiDeMo model has 50)",
    )


if __name__ == "__main__":
    main()
