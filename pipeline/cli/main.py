"""The command line: its parser, and the exit status of a command. The options of a command are in the file of the
command. These files import nothing slow before a command runs, so `--help` and usage errors are immediate."""

import argparse
import os
import select
import shutil
import signal
import sys
from pathlib import Path
from tempfile import gettempdir
from types import FrameType

from alpro.errors import InputError
from alpro.log import set_level
from alpro.pipeline.cli.arguments import Parser
from alpro.pipeline.cli.artifacts import add_artifact_commands, add_compare
from alpro.pipeline.cli.config import add_config_commands
from alpro.pipeline.cli.data import add_data_commands
from alpro.pipeline.cli.eval import add_eval
from alpro.pipeline.cli.index import add_index_commands
from alpro.pipeline.cli.model import add_model_commands
from alpro.pipeline.cli.run import add_stage_commands
from alpro.pipeline.cli.serve import add_serve
from alpro.pipeline.cli.servers import add_ui, add_up
from alpro.pipeline.cli.use import add_use_commands

EXIT_BROKEN_PIPE = 141  # as a shell has it for a program that SIGPIPE ends


def main() -> None:
    """Entry point. Prints the help if there is no command."""
    commands = parser()
    arguments = commands.parse_args()
    if arguments.version:
        arguments.run = print_version
    elif arguments.command is None:
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


def execute(arguments: argparse.Namespace) -> int:
    """Runs a command; returns its exit status. Errors that are not bugs are one line on standard error."""
    from alpro.stages.execution.interface import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, Interrupted, StageFailed

    if level := getattr(arguments, "log_level", ""):
        set_level(level)
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"{error}; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush the rest at exit, and fail
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if not (line := disk_full(error, getattr(arguments, "workspace", None))):
            raise
        print(f"error: {line}; free some disk space and run again to resume", file=sys.stderr)
        return EXIT_INPUT_ERROR


def disk_full(error: Exception, workspace: Path | None) -> str:
    """The line of an error because of a full disk; empty for others. Errors of Prefect's server and of databases do not
    say so: then the disk of the workspace, of Prefect's folder or of temporary files has less than a MiB left."""
    from alpro.shards.storage import DISK_FULL

    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    for folder in (workspace, Path(gettempdir())):
        if folder is not None and folder.is_dir() and shutil.disk_usage(folder).free < 2**20:
            return f"the disk of {folder} is full ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return ""


def stdout_is_closed() -> bool:
    """Whether what reads the output has ended, such as `head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def print_version(arguments: argparse.Namespace) -> None:
    from importlib.metadata import version

    print(f"alpro-pipeline {version('alpro-pipeline')}")


def parser() -> Parser:
    """The parser of the command line. `command` is the name of the command, or None."""
    top = Parser(
        prog="alpro",
        description="Captioned videos to a video-language model, the ALPRO way, stage by stage. Start with: alpro run",
        epilog="Results of stages are cached: a second run executes only missing stages and those that a change "
        "affects.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    add_stage_commands(commands)
    add_data_commands(commands)
    add_config_commands(commands)
    add_index_commands(commands)
    add_use_commands(commands)
    add_eval(commands)
    add_serve(commands)
    add_model_commands(commands)
    add_artifact_commands(commands)
    add_compare(commands)
    add_ui(commands)
    add_up(commands)
    return top


if __name__ == "__main__":
    main()
