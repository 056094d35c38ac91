"""Errors that every part of the project raises, and messages that quote errors of libraries."""

from typing import Any

MAX_REASON = 200  # characters of a library's message that a message of ours quotes
MAX_MESSAGE = 2000  # characters of a message of ours, with its paths


class Failure(Exception):
    """An error that is no bug. Its message, one line, is shown without a traceback.

    Attributes:
        exit_status: Exit status of a command that it ends.
    """

    exit_status = 1


class InputError(Failure):
    """An error that the user can fix. The message is what is wrong, where, and what to do."""

    exit_status = 2


def one_line(error: BaseException, max_length: int = MAX_REASON) -> str:
    """Return the message of an error as a line of 1 to `max_length` characters.

    An error without a message is named by its type. A message of one line stays as it is, with the
    spaces of its file names. Longer messages end with an ellipsis.

    >>> one_line(ValueError("Missing keys:\\n\\t'a', 'b'\\n"))
    "Missing keys: 'a', 'b'"
    >>> one_line(TimeoutError())
    'TimeoutError'
    """
    # `splitlines` also breaks at form feeds and Unicode's separators, as readers of a log may.
    lines = [line.strip() for line in str(error).splitlines()]
    line = " ".join(filter(None, lines)) or type(error).__name__
    if len(line) > max_length:
        line = line[: max_length - 1] + "…"
    return line


def first_fault(error: Any) -> str:
    """Return the first fault of a pydantic ValidationError: its key and its message."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}"
