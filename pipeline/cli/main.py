"""The command line. The options of a command are the parameters of its function, which is in the
file of its group. These files import nothing slow before a command runs, so that `--help` and usage
errors are immediate."""

import atexit
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType

from cyclopts import App, CycloptsError, Parameter

from alpro.environment import prepare
from alpro.errors import MAX_MESSAGE, Failure, InputError, one_line
from alpro.interpreter import let_only_interrupt_repeat
from alpro.log import keep, log, printable, say
from alpro.pipeline.cli import artifacts, index, inputs, model, run, serve
from alpro.shards.credentials import refuse_credentials

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
        show_default=lambda value: (
            str(value) if value not in ("", (), None, False, 0) else None
        ),
    ),
)
for command in (run.run, run.study, index.search, serve.serve, serve.up, serve.ui):
    app.command(command)
app.command(model.evaluate, name="eval")
for group in (
    inputs.data_group,
    inputs.config_group,
    artifacts.group,
    index.group,
    model.group,
):
    app.command(group)
app.register_install_completion_command(help="Install completion for this shell.")


def main() -> None:
    """Run the command line. Without arguments it prints the help."""
    # Imports create up to a million objects that stay. Searching them for garbage again and again
    # takes a sixth of the time of `alpro search`, and once more at the end a quarter; 3 s of a run.
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)
    prepare()
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        let_only_interrupt_repeat()
        # SIGTERM ends a command as Ctrl-C does: contexts are left, and stages write checkpoints.
        raise KeyboardInterrupt

    try:
        # SIGHUP is a terminal that was closed.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A background job of a shell ignores Ctrl-C, and one of nohup SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, stop)
        status = execute(sys.argv[1:])
    except BaseException as error:
        # Prefect may raise an error of its own, if the signal also reaches its server.
        if not received and not isinstance(error, KeyboardInterrupt):
            keep(traceback.format_exc())
            raise
        say("stopped; run the same command again to continue")
        # A shell reports this status for a program that a signal ends.
        status = 128 + (received or [signal.SIGINT])[0]

    sys.exit(status)


def execute(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status. An error that is no bug is one line on standard
    error."""
    option = "argument"
    try:
        # Before anything stores or repeats a URL with credentials. An empty value, such as an unset
        # variable, would stand for the default.
        for argument in arguments:
            if argument.startswith("-"):
                option = argument.partition("=")[0]
            if argument in ("", f"{option}="):
                raise InputError(
                    f"{option}: the value is empty; leave it out, or set it"
                )
            refuse_credentials(option, argument)

        status = app([*arguments], exit_on_error=False, print_error=False) or 0
        # At exit, a reader that has gone would be an error of Python's own.
        sys.stdout.flush()
        return status
    except CycloptsError as error:
        words = " ".join(["alpro", *(error.command_chain or ())])
        line = one_line(error, max_length=MAX_MESSAGE)
        return fail(f"error: {line} ({words} --help)")
    except Failure as error:
        return fail(f"error: {error}", error.exit_status)
    except BrokenPipeError:
        # `head` has read enough. Python would flush the output at exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if not error.strerror:
            raise
        log.debug("the error's traceback:", exc_info=True)
        if not error.filename:  # an error of standard output or of a process
            return fail(f"error: {error.strerror}; run again to resume")
        return fail(
            f"error: {error.filename}: {error.strerror}; check this path and its disk, and run again "
            "to resume"
        )


def fail(message: str, status: int = InputError.exit_status) -> int:
    """Print a message as one line, with the table of a configuration that it may end with."""
    line, table, keys = message.partition("\n\n[corpora.")
    for part in [line, *f"{table}{keys}".splitlines()]:
        say(printable(part))
    return status


if __name__ == "__main__":
    main()
