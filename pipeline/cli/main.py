"""The command line. The options of a command are the parameters of its function, which is in the
file of its group. These files import nothing slow before a command runs, so that `--help` and usage
errors are immediate."""

import errno
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError

from alpro.credentials import refuse_credentials
from alpro.environment import prepare
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.log import printable
from alpro.pipeline.cli import artifacts, index, inputs, model, run, serve
from alpro.stages.execution.lifecycle import ignore_signals

EXIT_INPUT_ERROR = 2
# A disk, or its server, that fails or lacks a function: no bug of a program.
DISK_FAILS = (
    *(errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO),
    *(errno.EUCLEAN, errno.ENODEV, errno.ENOSYS, errno.ENOLCK),
)
EXIT_BROKEN_PIPE = 141  # as a shell has it for a program that SIGPIPE ends


app = App(
    name="alpro",
    help="Captioned videos to a video-language model, the ALPRO way, stage by stage; and with it, or "
    "with a CLIP, search videos, ask about them and serve both. Start with: alpro run. Results of "
    "stages are cached: a second run executes only missing stages and those that a change affects.",
    version=f"alpro-pipeline {version('alpro-pipeline')}",
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(  # defaults that say nothing are not shown
        negative=(),
        show_default=lambda value: str(value) if value not in ("", (), None, False) else None,
    ),
)
for command in (run.run, run.study, index.search, serve.serve, serve.up, serve.ui):
    app.command(command)
app.command(model.evaluate, name="eval")
for group in (inputs.data_group, inputs.config_group, artifacts.group, index.group, model.group):
    app.command(group)


def main() -> None:
    """Entry point. Without arguments it prints the help."""
    open_standard_files()
    prepare()

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # A second one would cut short what the first has begun. A second Ctrl-C is meant so.
        ignore_signals(signal.SIGTERM)
        # SIGTERM ends a command as Ctrl-C does: contexts are left, and stages write checkpoints.
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # a background job of a shell ignores Ctrl-C
                signal.signal(number, stop)
        status = execute(sys.argv[1:])
    except BaseException as error:
        # Prefect may raise an error of its own, if the signal reaches its server, too.
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        print("stopped; run the same command again to continue", file=sys.stderr)
        # As a shell has it for a program that a signal ends.
        status = 128 + (received or [signal.SIGINT])[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    sys.exit(status)


def open_standard_files() -> None:
    """Opens what a shell has closed (`alpro run >&-`): the next file to be opened would be standard
    output, and programs would print into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it has the lowest number that is free
        # Python sets a stream to None that was closed when it started.
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def check_folder() -> None:
    """Raises InputError if the current folder is gone: libraries end the process when they ask for
    it."""
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd is the same
    except OSError as error:
        raise InputError("the current folder was deleted or moved; cd to another one") from error


def execute(arguments: Sequence[str]) -> int:
    """Runs a command; returns its exit status. Errors that are not bugs are one line on standard
    error."""
    # Python reads other bytes as surrogates, which can be neither printed nor stored.
    if wrong := [
        argument
        for argument in arguments
        if argument != argument.encode("utf-8", "ignore").decode()
    ]:
        return failed(f"error: {wrong[0]!a}: this argument is not UTF-8")

    try:
        check_folder()
        check_addresses(arguments)
        status = app([*arguments], exit_on_error=False, print_error=False) or 0
        # At exit, a reader that has gone would be an error of Python's own.
        sys.stdout.flush()
        return status
    except CycloptsError as error:
        words = " ".join(["alpro", *(error.command_chain or ())])
        hint = ""
        if isinstance(error, UnknownOptionError) and words in ("alpro run", "alpro study"):
            hint = " A value of the configuration is changed with --set, such as --set pretrain.lr=1e-4 or --set "
            hint += "finetune_qa.phases.0.epochs=3; alpro config show CONFIG prints all."
        return failed(f"error: {one_line(error, max_length=MAX_MESSAGE)}{hint} ({words} --help)")
    except InputError as error:
        return failed(f"error: {error}")
    except BrokenPipeError:
        # Of any other pipe, it is a bug.
        if not output_has_no_reader():
            raise
        # Python would flush it at exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        # Imported only now: `--help` must not wait for them.
        from alpro.shards.storage import DISK_FULL
        from alpro.stages.execution.interface import EXIT_INTERRUPTED, Interrupted, StageFailed

        if isinstance(error, StageFailed):
            return failed(f"error: {error}", 1)
        if isinstance(error, Interrupted):
            return failed(f"{error}; run the same command again to continue", EXIT_INTERRUPTED)
        if not isinstance(error, OSError) or error.errno not in (*DISK_FULL, *DISK_FAILS):
            raise

        place = f"{error.filename}: " if error.filename else ""
        what_to_do = "check this disk"
        if error.errno in DISK_FULL:
            what_to_do = "free some disk space"
        return failed(f"error: {place}{error.strerror}; {what_to_do} and run again to resume")


def output_has_no_reader() -> bool:
    """Whether what reads this command's output has ended, such as `head`."""
    poll = select.poll()
    # Linux reports POLLERR for a pipe whose reading end is closed.
    poll.register(sys.stdout.fileno(), select.POLLERR)
    return bool(poll.poll(0))


def check_addresses(arguments: Sequence[str]) -> None:
    """Raises InputError for a URL with credentials, before anything stores or repeats it: also the
    list of processes shows it."""
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and equals:
            refuse_credentials(name, value)
        refuse_credentials(option or "address", argument)
        # The next argument is the value of this option.
        option = argument if argument.startswith("-") and not equals else ""


def failed(message: str, status: int = EXIT_INPUT_ERROR) -> int:
    """Print a message as one line, with the table of a configuration that it may end with."""
    line, table, keys = message.partition("\n\n[corpora.")
    print(printable(line), file=sys.stderr)
    for part in f"{table}{keys}".splitlines():
        print(printable(part), file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
